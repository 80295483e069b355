"""The entry point: what becomes of mistakes."""

import json

import pytest

from helpers.cli import assert_refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("guess",), "No such command 'guess'"),
        (("route", "--nothing"), "No such option: --nothing"),
        (("route",), "Missing argument 'DIR'"),
        (("route", "probe", "--out", "routes", "--seed", "-1"), "Invalid value for '--seed'"),
        (("route", "probe", "--out", "routes", "--rl-share", "half"), "Invalid value for '--rl-share'"),
    ],
)
def test_wrong_options_are_one_line(cli, arguments, words):
    assert_refused(cli(*arguments), words)


def test_a_group_without_a_command_shows_its_help(cli):
    code, out, err = cli("experiment")
    assert (code, out) == (2, "") and err.startswith("Usage: ") and "Commands:" in err


def test_a_model_that_is_not_shipped_is_told_with_those_that_are(cli, tmp_path):
    for words in (["probe", "--data", "x", "--model"], ["evaluate", "--agent"], ["evaluate", "--model"]):
        result = cli(*words, "shipped:nope", "--out", tmp_path / "o")
        assert_refused(
            result,
            "shipped:nope: is no model that comes with gradprism; "
            "choose one of alfworld-tiny, dialogue-tiny, stories-tiny, webshop-tiny",
        )


def test_sft_takes_the_shipped_corpus(cli, tmp_path):
    words = ("sft", "--model", "shipped:alfworld-tiny", "--out", tmp_path / "o", "--data")
    assert_refused(
        cli(*words, "shipped:nope"), "shipped:nope: does not come with gradprism; choose one of alfworld-quickstart.jsonl"
    )
    code, out, _ = cli(*words, "shipped:alfworld-quickstart.jsonl", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["trajectories"]["value"] == 564
    assert not (tmp_path / "o").exists()
