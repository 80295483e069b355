"""Groups that vary, against every group that could be drawn."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from gradprism.advice.pass_rates import mean_share, same_reward, start
from gradprism.routing.tasks import PassRates
from gradprism.runtime.errors import DataError
from gradprism.runtime.files import write_jsonl


@given(st.lists(st.integers(0, 2), min_size=1, max_size=8), st.integers(2, 10))
def test_a_group_s_chance_of_one_reward_is_the_share_of_all_groups(rewards, group_size):
    counts = [rewards.count(value) for value in set(rewards)]
    groups = list(itertools.combinations(rewards, min(group_size, len(rewards))))
    expected = sum(len(set(group)) == 1 for group in groups) / len(groups)
    assert same_reward(counts, group_size) == pytest.approx(expected)


@given(st.integers(0, 5), st.integers(2, 5))
def test_the_estimate_is_unbiased_from_enough_episodes_and_at_least_as_large_from_fewer(wins_of_five, group_size):
    p = wins_of_five / 5
    for k in (2, group_size, group_size + 3):
        expected = sum(math.comb(k, w) * p**w * (1 - p) ** (k - w) * same_reward([w, k - w], group_size) for w in range(k + 1))
        true = p**group_size + (1 - p) ** group_size
        assert expected == pytest.approx(true) if k >= group_size else expected >= true - 1e-12


@given(st.lists(st.integers(0, 1), min_size=1, max_size=60), st.integers(1, 8))
def test_the_interval_holds_the_mean_and_narrows_with_draws(values, draws):
    one, more = mean_share(values), mean_share(values, draws)
    assert 0 <= one.low <= more.low + 1e-12 and more.low <= more.mean + 1e-12
    assert more.mean <= more.high + 1e-12 and more.high <= one.high + 1e-12 <= 1 + 1e-9
    n, won = len(values), sum(values)
    if n > 20 and 0 < won < n:  # about where the exact interval is
        assert one.low == pytest.approx(beta.ppf(0.025, won, n - won + 1), abs=0.05)


def played(tmp_path, episodes, score=None):
    path = tmp_path / "episodes.jsonl"
    rows = [{"id": task, "success": bool(won)} for task, ends in episodes.items() for won in ends]
    write_jsonl(path, [row if score is None else {**row, "score": score(i)} for i, row in enumerate(rows)])
    return PassRates.of(path)


def test_some_tasks_stand_for_the_others_and_all_for_themselves(tmp_path):
    rates = played(tmp_path, {"a": [1, 0, 0, 0], "b": [0, 0, 0, 0], "elsewhere": [1]})
    some, every = start(rates, ["a", "b", "c"], 2), start(rates, ["a", "b"], 2)
    assert (some.tasks, some.of_tasks, some.fewest_episodes, some.most_episodes) == (2, 3, 4, 4)
    assert some.success.mean == every.success.mean == 1 / 8
    assert some.success == mean_share([1 / 4, 0]) and every.success == mean_share([1 / 4, 0], 4)
    assert some.varying and some.varying.mean == pytest.approx((1 - 3 / 6) / 2)  # 3 of the 6 pairs of a have lost both
    assert every.varying == mean_share([1 / 2, 0], 2)  # two disjoint pairs of each task
    assert not some.at_least and start(rates, ["a", "b"], 8).at_least and some.varying_scores is None


def test_scores_vary_where_success_does_not(tmp_path):
    found = start(played(tmp_path, {"a": [0] * 4, "b": [0] * 4}, score=lambda i: i / 8), ["a", "b"], 4)
    assert found.varying and found.varying_scores
    assert (found.varying.mean, found.varying_scores.mean) == (0, 1)


def test_rates_alone_tell_of_no_groups():
    found = start(PassRates.of({"a": 0.25, "b": 1.0}), ["a", "b"], 8)
    assert (found.success, found.varying, found.fewest_episodes, found.at_least) == (mean_share([0.25, 1]), None, None, False)


def test_episodes_of_other_tasks_are_refused():
    with pytest.raises(DataError, match="none of the corpus's 2 tasks"):
        start(PassRates.of({"x": 1.0}), ["a", "b"], 8)
