import re
from fractions import Fraction
from typing import get_args

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradprism.cli.options import Metric, Normalise, Policy
from gradprism.concentration import METRICS
from gradprism.probing.pass_scores import RANKING
from gradprism.probing.scores import NORMALISATIONS
from gradprism.routing.audit import drawn_by_chance
from gradprism.routing.policies import FROM_PASS_RATES, POLICIES, PolicyContext, policy_scores, register_policy
from gradprism.routing.split import choose_threshold, median_threshold, quantile_threshold
from gradprism.runtime.errors import ConfigError, DataError
from helpers.probes import measures_table as table


def route_by_median(scores):
    return scores > median_threshold(scores)


def scored(policy, table, metric="gini", seed=0, fixed_threshold=False):
    return policy_scores(policy, table, PolicyContext(metric, seed, fixed_threshold))


# Few distinct values make ties common.
tied = hnp.arrays(np.float64, st.integers(1, 40), elements=st.sampled_from([0.1, 0.2, 0.25, 0.5, 0.7]))
distinct = hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e6, 1e6), unique=True)


@given(tied | distinct)
def test_the_median_split_is_the_paper_s(scores):
    to_rl = route_by_median(scores)
    ordered = [Fraction(float(s)) for s in sorted(scores)]
    n = len(ordered)
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    assert to_rl.tolist() == [Fraction(float(s)) > median for s in scores]
    np.testing.assert_array_equal(to_rl, scores > choose_threshold(scores))
    assert (~to_rl).sum() >= n / 2
    # Equal scores take the same way, and no SFT score is above an RL score.
    assert max(scores[~to_rl]) <= min(scores[to_rl], default=np.inf)
    assert not set(scores[~to_rl]) & set(scores[to_rl])


@given(distinct)
def test_distinct_scores_split_into_halves(scores):
    assert route_by_median(scores).sum() == len(scores) // 2


@given(st.integers(1, 30), st.floats(-1e9, 1e9))
def test_equal_scores_all_go_to_sft(n, value):
    assert not route_by_median(np.full(n, value)).any()


@given(distinct, st.integers(0, 100))
def test_a_quantile_sends_its_share_to_rl(scores, percent):
    to_rl = scores > quantile_threshold(scores, percent / 100)
    assert to_rl.sum() == percent * len(scores) // 100


@given(tied, st.floats(0, 1))
def test_ties_at_a_quantile_go_to_sft(scores, share):
    to_rl = scores > quantile_threshold(scores, share)
    assert to_rl.sum() <= share * len(scores) + 1e-6
    assert not set(scores[~to_rl]) & set(scores[to_rl])


@given(tied | distinct)
def test_half_to_rl_is_the_median_split(scores):
    np.testing.assert_array_equal(scores > quantile_threshold(scores, 0.5), route_by_median(scores))


def test_neighbouring_floats_are_still_separated():
    for scores in (np.array([1.0, np.nextafter(1.0, 2.0)]), np.array([np.nextafter(1.0, 0.0), 1.0]), np.array([0.0, 5e-324])):
        assert (scores > quantile_threshold(scores, 0.5)).tolist() == [False, True]
        assert route_by_median(scores).tolist() == [False, True]


def test_threshold_choices():
    scores = np.array([1.0, 2.0, 3.0, 10.0])
    assert choose_threshold(scores) == choose_threshold(scores, 0.5) == 2.5
    assert choose_threshold(scores, 0.25) == 6.5
    assert choose_threshold(scores, threshold=2.75) == 2.75
    assert choose_threshold(scores, threshold=-1) == -1.0


@pytest.mark.parametrize(
    ("share", "threshold", "words"),
    [
        (0.5, float("nan"), "must be a number on the score's scale"),
        (0.25, 0.3, "exclude each other"),
        (1.5, None, "must be between 0 and 1"),
        (float("nan"), None, "must be between 0 and 1"),
    ],
)
def test_bad_thresholds(share, threshold, words):
    with pytest.raises(ConfigError, match=words):
        choose_threshold(np.array([1.0, 2.0]), share, threshold)


def test_policies_rank_by_what_they_say():
    t = table()
    for name, column, sign in (
        ("concentration", "cv", 1),
        ("inverse", "cv", -1),
        ("magnitude", "l2", 1),
        ("loss", "loss", 1),
        ("length", "n_response_tokens", 1),
    ):
        np.testing.assert_array_equal(scored(name, t, "cv", 0), sign * t[column].to_numpy())
    assert set(POLICIES) == {
        *(
            "concentration",
            "inverse",
            "soft",
            "random",
            "magnitude",
            "loss",
            "length",
            "uncertainty",
            "pass_rate",
            "learnability",
            "target",
        )
    }
    with pytest.raises(ConfigError, match="policy 'best': choose one of concentration, inverse"):
        scored("best", t)


def test_inverse_swaps_the_halves():
    t = table(n=40)
    forward, backward = (route_by_median(scored(name, t, "gini", 0)) for name in ("concentration", "inverse"))
    np.testing.assert_array_equal(forward, ~backward)


def test_random_is_seeded_and_splits_in_half():
    t = table(n=41)
    np.testing.assert_array_equal(scored("random", t, "gini", 3), scored("random", t, "gini", 3))
    assert (scored("random", t, "gini", 3) != scored("random", t, "gini", 4)).any()
    assert route_by_median(scored("random", t, "gini", 3)).sum() == 20


def test_soft_routing_goes_by_rank():
    """Over many seeds the share of runs in which the trajectory at rank fraction r goes to RL is r; each run sends half there."""
    n, seeds = 40, 2000
    t = table(n)
    shares = np.zeros(n)
    for seed in range(seeds):
        to_rl = route_by_median(scored("soft", t, "gini", seed))
        assert to_rl.sum() == n // 2
        shares += to_rl / seeds
    ordered = shares[np.argsort(t["gini"].to_numpy())]
    expected = (np.arange(n) + 0.5) / n
    np.testing.assert_allclose(
        ordered, expected, atol=0.05
    )  # four standard errors of a share of 2000, and a little for the median's own
    slope, intercept = np.polyfit(expected, ordered, 1)
    assert (slope, intercept) == pytest.approx((1, 0), abs=0.04)


def test_soft_scores_are_the_average_rank_minus_a_draw():
    t = table(4, gini=[0.2, 0.1, 0.2, 0.9])
    draws = np.random.default_rng(7).random(4)
    np.testing.assert_allclose(scored("soft", t, "gini", 7), np.array([2.5, 1, 2.5, 4]) / 4 - 1 / 8 - draws)


def test_uncertainty_is_highest_at_the_mean_probability():
    # p = 0.1, 0.4, 0.7: their mean is 0.4.
    t = table(3, loss=-np.log([0.1, 0.4, 0.7]))
    np.testing.assert_allclose(scored("uncertainty", t, "gini", 0), [1 - 0.09, 1, 1 - 0.09])
    assert route_by_median(scored("uncertainty", table(3, loss=-np.log([0.1, 0.35, 0.7])), "gini", 0)).tolist() == [
        False,
        True,
        False,
    ]


@given(hnp.arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 4)), st.integers(0, 100), st.floats(0, 1))
def test_pass_rates_rank_first_and_chance_among_equals(wins, seed, share):
    t = table(len(wins), pass_rate=wins / 4)
    score = scored("pass_rate", t, "gini", seed)
    np.testing.assert_array_equal(score, scored("pass_rate", t, "gini", seed))
    assert len(set(score)) == len(score)  # so every share can be cut exactly
    to_rl = score > quantile_threshold(score, share)
    assert to_rl.sum() == int(share * len(wins) + 1e-9)
    assert max(wins[~to_rl], default=0) <= min(wins[to_rl], default=4)
    assert ((score > 0) == (wins > 0)).all()  # a threshold of 0: what was ever won


@given(hnp.arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 6)), st.integers(0, 100), st.floats(0, 1))
def test_learnability_ranks_by_wins_times_losses(wins, seed, share):
    t = table(len(wins), pass_rate=wins / 6)
    score, exact = scored("learnability", t, "gini", seed), wins * (6 - wins)
    assert len(set(score)) == len(score)
    to_rl = score > quantile_threshold(score, share)
    assert to_rl.sum() == int(share * len(wins) + 1e-9)
    assert max(exact[~to_rl], default=0) <= min(exact[to_rl], default=9)
    np.testing.assert_allclose(scored("learnability", t, fixed_threshold=True), exact / 36, atol=1e-12)


def test_a_third_and_two_thirds_are_equally_learnable_and_drawn_by_chance():
    t = table(40, pass_rate=[1 / 3, 2 / 3] * 20)
    assert len(set(scored("learnability", t, fixed_threshold=True))) == 1
    split = route_by_median(scored("learnability", t, "gini", 0))
    assert split.sum() == 20 and 0 < split[::2].sum() < 20
    routed = t.with_columns(route=pl.Series(np.where(split, "rl", "sft")))
    assert drawn_by_chance(routed, "learnability") == 20


@pytest.mark.parametrize("policy", FROM_PASS_RATES)
def test_without_pass_rates_it_is_said_which_file_to_give(policy):
    with pytest.raises(ConfigError, match=f"^policy {policy}: needs pass rates; give --pass-rates, the episodes.jsonl"):
        scored(policy, table(4))


def test_equal_pass_rates_are_split_by_the_seed():
    t = table(40, pass_rate=np.zeros(40))
    splits = [route_by_median(scored("pass_rate", t, "gini", seed)) for seed in (0, 1)]
    assert [split.sum() for split in splits] == [20, 20]
    assert (splits[0] != splits[1]).any()


def test_equal_pass_rates_are_split_apart_from_the_random_policy():
    t = table(400, pass_rate=np.zeros(400))
    same = [
        (route_by_median(scored("pass_rate", t, "gini", seed)) == route_by_median(scored("random", t, "gini", seed))).mean()
        for seed in range(20)
    ]
    assert 0.45 < np.mean(same) < 0.55 and np.std(same) < 0.1


def test_a_threshold_that_is_a_number_draws_no_equals_apart():
    t = table(40, pass_rate=[0.0, 0.25, 0.5, 1.0] * 10)
    score = scored("pass_rate", t, fixed_threshold=True)
    np.testing.assert_array_equal(score, t["pass_rate"].to_numpy())
    np.testing.assert_array_equal(scored("loss", t, fixed_threshold=True), t["loss"].to_numpy())
    with pytest.raises(ConfigError, match="needs pass rates"):
        scored("pass_rate", table(4), fixed_threshold=True)


def test_a_policy_of_a_user_s_own(monkeypatch):
    monkeypatch.setattr(POLICIES, "_known", dict(POLICIES._known))

    @register_policy("long and sure")
    def _(table, context):
        assert (context.metric, context.seed) == ("cv", 3)
        return table["n_response_tokens"].to_numpy() * np.exp(-table["loss"].to_numpy())

    @register_policy("broken")
    def _(table, context):
        return table["loss"].to_numpy()[:-1]

    register_policy("undefined")(lambda table, context: np.log(-table["loss"].to_numpy()))
    t = table()
    assert scored("long and sure", t, "cv", 3) == pytest.approx(t["n_response_tokens"].to_numpy() / np.exp(t["loss"].to_numpy()))
    for name in ("broken", "undefined"):
        with np.errstate(invalid="ignore"), pytest.raises(DataError, match=f"policy '{name}': gives .* a finite number per row"):
            scored(name, t)
    register_policy("texts")(lambda table, context: table["id"])
    with pytest.raises(DataError, match="policy 'texts': gives no numbers"):
        scored("texts", t)


def test_the_help_names_every_choice():
    assert set(POLICIES) <= set(re.findall(r"[a-z_]+", get_args(Policy)[1].help))
    assert {*METRICS, *RANKING} <= set(re.findall(r"[a-z_]+", get_args(Metric)[1].help))
    assert set(NORMALISATIONS) <= set(re.findall(r"[a-z_]+", get_args(Normalise)[1].help))
