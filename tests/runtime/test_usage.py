"""Accounts of tokens and time: they add up, and survive a file."""

import json

from gradprism.runtime.usage import Usage

ONE = Usage(tokens_forward=10, tokens_backward=4, tokens_generated=3, environment_steps=2, wall_seconds=1.5, cpu_seconds=2.25)


def test_every_figure_is_added() -> None:
    assert ONE + Usage(5, 1, 1, 1, 0.5, 0.75) == Usage(15, 5, 4, 3, 2.0, 3.0)
    assert sum([ONE, ONE], Usage()) == ONE + ONE


def test_an_account_survives_json_and_passes_over_what_it_does_not_know() -> None:
    stored = json.loads(json.dumps(ONE.to_json()))
    assert Usage.from_json(stored) == ONE
    assert Usage.from_json({"tokens_forward": 7, "attempts": 2}) == Usage(tokens_forward=7)
