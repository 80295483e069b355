from fractions import Fraction

import numpy as np
import polars as pl
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradprism.errors import ConfigError
from gradprism.routing.audit import audit, median_standard_error, spearman
from gradprism.routing.policies import POLICIES, get_policy
from gradprism.routing.thresholds import choose_threshold, quantile_threshold, route_by_median

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
    assert choose_threshold(scores) == 2.5
    assert choose_threshold(scores, "quantile", 0.25) == 6.5
    assert choose_threshold(scores, "median", 0.25) == 6.5
    assert choose_threshold(scores, "2.75") == 2.75
    assert choose_threshold(scores, -1) == -1.0


@pytest.mark.parametrize(
    ("threshold", "share", "words"),
    [
        ("quantile", None, "needs --rl-share"),
        ("mean", None, "choose median, quantile or a number"),
        ("nan", None, "choose median, quantile or a number"),
        ("0.3", 0.5, "exclude each other"),
        ("median", 1.5, "must be between 0 and 1"),
        ("median", float("nan"), "must be between 0 and 1"),
    ],
)
def test_bad_thresholds(threshold, share, words):
    with pytest.raises(ConfigError, match=words):
        choose_threshold(np.array([1.0, 2.0]), threshold, share)


def table(n=50, seed=0, **columns):
    rng = np.random.default_rng(seed)
    names = ("gini", "cv", "kurtosis", "l2", "loss", "n_tokens", "n_response_tokens", "n_turns")
    return pl.DataFrame({name: rng.random(n) for name in names}).with_columns(**{k: pl.Series(v) for k, v in columns.items()})


def test_policies_rank_by_what_they_say():
    t = table()
    for name, column, sign in (
        ("concentration", "cv", 1),
        ("inverse", "cv", -1),
        ("magnitude", "l2", 1),
        ("loss", "loss", 1),
        ("length", "n_response_tokens", 1),
    ):
        np.testing.assert_array_equal(get_policy(name)(t, "cv", 0), sign * t[column].to_numpy())
    assert set(POLICIES) == {"concentration", "inverse", "random", "magnitude", "loss", "length"}
    with pytest.raises(ConfigError, match="policy 'best': choose one of concentration, inverse"):
        get_policy("best")


def test_inverse_swaps_the_halves():
    t = table(n=40)
    forward, backward = (route_by_median(get_policy(name)(t, "gini", 0)) for name in ("concentration", "inverse"))
    np.testing.assert_array_equal(forward, ~backward)


def test_random_is_seeded_and_splits_in_half():
    t = table(n=41)
    policy = get_policy("random")
    np.testing.assert_array_equal(policy(t, "gini", 3), policy(t, "gini", 3))
    assert (policy(t, "gini", 3) != policy(t, "gini", 4)).any()
    assert route_by_median(policy(t, "gini", 3)).sum() == 20


@given(tied, st.integers(0, 1000))
def test_spearman_agrees_with_scipy(a, seed):
    b = np.random.default_rng(seed).integers(0, 5, len(a)).astype(float)
    ours = spearman(a, b)
    if ours is None:
        assert len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0
    else:
        assert ours == pytest.approx(scipy.stats.spearmanr(a, b)[0], abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 51])
def test_standard_error_of_the_median_equals_a_plain_bootstrap(n):
    scores = np.random.default_rng(n).gamma(2.0, size=n)
    picks = np.random.default_rng(0).integers(0, n, (40_000, n))
    plain = np.median(scores[picks], axis=1).std(ddof=1)
    assert median_standard_error(scores, seed=1) == pytest.approx(plain, rel=0.04, abs=1e-12)


def audited(score, policy="concentration", **columns):
    t = table(len(score), **columns)
    cut = float(np.median(score))
    route = np.where(score > cut, "rl", "sft").tolist()
    t = t.with_columns(score=pl.Series(score), margin=pl.Series(score - cut), route=pl.Series(route))
    return audit(t, ["gini", "cv", "kurtosis"], policy, seed=0)


def test_audit_of_a_sound_split_warns_of_nothing():
    score = np.random.default_rng(9).random(200)
    result = audited(score)
    assert result["warnings"] == []
    assert set(result["spearman"]) == {"loss", "l2", "n_tokens", "n_response_tokens", "n_turns", "gini", "cv", "kurtosis"}
    assert set(result["between_metrics"]) == {"gini–cv", "gini–kurtosis", "cv–kurtosis"}
    expected = (np.abs(score - np.median(score)) <= result["median_standard_error"]).mean()
    assert result["share_within_one_standard_error"] == pytest.approx(expected)
    assert 0 < expected < 0.2


def test_audit_warns_of_no_spread_and_one_way():
    warnings = audited(np.full(20, 0.3))["warnings"]
    assert [w.split(":")[0] for w in warnings] == ["the scores have no spread", "all 20 trajectories go to SFT"]


def test_audit_warns_of_a_confound_unless_it_was_asked_for():
    score = np.random.default_rng(0).random(100)
    assert audited(score, n_tokens=score**2)["warnings"] == [
        "the score follows n_tokens (Spearman 1.00): compare with a split by that measure"
    ]
    assert audited(score, policy="length", n_tokens=score**2)["warnings"] == []
