import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import binomtest

from gradprism.environments.protocol import Task
from gradprism.evaluation.summary import headline, parts_text, summarise, wilson_interval
from gradprism.rollouts.episode import Episode, StopReason, Turn


@pytest.mark.parametrize(
    ("successes", "episodes"), [(0, 64), (1, 64), (7, 64), (32, 64), (63, 64), (64, 64), (3, 5), (0, 1), (1, 1)]
)
def test_wilson_interval_equals_scipys(successes, episodes):
    expected = binomtest(successes, episodes).proportion_ci(method="wilson")
    low, high = wilson_interval(successes, episodes)
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)


def test_wilson_interval_of_nothing_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def played(split, task_type, success, steps, invalid, name="1"):
    turns = [Turn("seen", "look", valid=number >= invalid) for number in range(steps)]
    return Episode(Task("x", f"{task_type}/{name}", task_type, split), turns, success=success, score=float(success))


def test_summary_counts_by_split_and_type():
    rows = summarise(
        [
            played("unseen", "look", True, 4, 0),
            played("unseen", "pick", False, 20, 10),
            played("unseen", "pick", True, 6, 2, "2"),
            played("seen", "pick", False, 20, 0),
        ]
    )
    assert [(r.split, r.task_type, r.successes, r.episodes) for r in rows] == [
        ("unseen", "all", 2, 3),
        ("unseen", "look", 1, 1),
        ("unseen", "pick", 1, 2),
        ("seen", "all", 0, 1),
        ("seen", "pick", 0, 1),
    ]
    everything = rows[0]
    assert everything.success == everything.score == pytest.approx(2 / 3)
    assert everything.mean_steps == 10
    assert everything.invalid_share == pytest.approx(12 / 30)
    assert (everything.low, everything.high) == wilson_interval(2, 3)
    assert all(math.isfinite(v) for r in rows for v in dataclasses.asdict(r).values() if isinstance(v, float))
    assert headline(rows).startswith("unseen 66.7 % [20.8, 93.9] · seen 0.0 % [0.0, 79.3]")


def test_attempts_at_a_task_are_not_independent_and_any_of_them_solves_it():
    """Intervals over tasks, against numpy and the definition: four of the same outcome tell what one tells."""
    won = {"a": [1, 1, 1, 1], "b": [0, 0, 0, 0], "c": [0, 1, 0, 0], "d": [1, 1, 0, 1]}
    [row, _] = summarise([played("unseen", "look", bool(w), 3, 0, name) for name, of in won.items() for w in of])
    assert (row.tasks, row.episodes, row.successes, row.solved) == (4, 16, 8, 0.75)
    rates = np.array([np.mean(of) for of in won.values()])
    effective = 0.25 / (rates.var(ddof=1) / 4)
    for end in (row.low, row.high):  # Wilson's ends: just so far away that the mean is 1.96 of their own standard errors off
        assert (0.5 - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / effective)
    half = 1.959963984540054 * rates.std(ddof=1) / 2
    assert (row.score, row.score_low, row.score_high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    expected = binomtest(3, 4).proportion_ci(method="wilson")
    assert (row.solved_low, row.solved_high) == pytest.approx((expected.low, expected.high))
    assert headline([row]).endswith(", pass@4 75.0 % [30.1, 95.4]")


@pytest.mark.parametrize("won", [0, 1])
def test_tasks_that_are_all_won_or_all_lost_are_not_certain(won):
    [row, *_] = summarise([played("unseen", "look", bool(won), 3, won, name) for name in "abc" for _ in range(4)])
    alone = wilson_interval(3 * won, 3)
    assert (row.low, row.high) == (row.score_low, row.score_high) == (row.solved_low, row.solved_high) == alone


def test_tasks_that_are_alike_tell_what_their_episodes_tell():
    [row, *_] = summarise([played("unseen", "look", k < 2, 3, 0, name) for name in "abc" for k in range(4)])
    assert (row.low, row.high) == wilson_interval(6, 12)


def test_a_transcript_gives_the_episode_back_but_for_its_tokens():
    made = played("unseen", "look", True, 3, 1)
    made.turns[2].reward, made.observation, made.stop_reason, made.details = 1.0, "won", StopReason.SUCCESS, {"n": 3}
    assert Episode.from_json(made.to_json()) == made
    assert made.to_json() | {"steps": 3, "invalid": 1, "tokens": 0, "reward": 1.0} == made.to_json()


def test_named_parts_of_the_score_are_means_over_the_episodes_that_have_them():
    episodes = [played("unseen", "look", True, 1, 0, str(number)) for number in range(4)]
    for episode, parts in zip(episodes, ({"ending": 1.0, "name": 0.0}, {"ending": 0.0}, {"ending": 0.5}, {}), strict=True):
        episode.parts = parts
    [everything, _] = summarise([Episode.from_json(episode.to_json()) for episode in episodes])
    assert everything.parts == {"ending": 0.5, "name": 0.0}
    assert parts_text(everything) == "ending 50.0 % · name 0.0 %"
    assert summarise([played("unseen", "look", True, 1, 0)])[0].parts == {}
