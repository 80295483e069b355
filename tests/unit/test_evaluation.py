import math

import pytest
from scipy.stats import binomtest

from gradprism.evaluation.summary import headline, summarise, wilson_interval


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


def transcript(split, task_type, success, steps, invalid):
    return {"split": split, "task_type": task_type, "success": success, "score": float(success), "steps": steps, "invalid": invalid}


def test_summary_counts_by_split_and_type():
    rows = summarise(
        [
            transcript("unseen", "look", True, 4, 0),
            transcript("unseen", "pick", False, 20, 10),
            transcript("unseen", "pick", True, 6, 2),
            transcript("seen", "pick", False, 20, 0),
        ]
    )
    assert [(r["split"], r["task_type"], r["successes"], r["episodes"]) for r in rows] == [
        ("unseen", "all", 2, 3),
        ("unseen", "look", 1, 1),
        ("unseen", "pick", 1, 2),
        ("seen", "all", 0, 1),
        ("seen", "pick", 0, 1),
    ]
    everything = rows[0]
    assert everything["success"] == everything["score"] == pytest.approx(2 / 3)
    assert everything["mean_steps"] == 10
    assert everything["invalid_share"] == pytest.approx(12 / 30)
    assert (everything["low"], everything["high"]) == wilson_interval(2, 3)
    assert all(math.isfinite(v) for r in rows for v in r.values() if isinstance(v, float))
    assert headline(rows).startswith("unseen 66.7 % [20.8, 93.9] · seen 0.0 % [0.0, 79.3]")
