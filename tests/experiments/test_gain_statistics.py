"""What predicts gain: against slow references and scipy's, and on synthetic data where the truth is known."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats as scipy_stats

from gradprism.experiments import gain_statistics
from gradprism.experiments.gain_statistics import similar_groups

# Their figures may be None, and here are not.
detectable: Any = gain_statistics.detectable
predict: Any = gain_statistics.predict
reliability: Any = gain_statistics.reliability
stats: Any = scipy_stats


def made_from(score, seeds=2, noise=1.0, signal=1.0, seed=0):
    """Gains `[S, G]` that are a group's score times `signal`, and noise of each training; seeds differ by a constant."""
    rng = np.random.default_rng(seed)
    return signal * score + noise * rng.normal(size=(seeds, len(score))) + rng.normal(size=(seeds, 1))


def test_correlation_and_p_are_those_of_scipy():
    rng = np.random.default_rng(0)
    score = np.round(rng.normal(size=40), 1)  # with ties
    gains = made_from(score, noise=2.0)
    expected = stats.spearmanr(score, gains.mean(0))
    found = predict(score, gains)
    assert found.rho == pytest.approx(expected.statistic) and found.p == pytest.approx(expected.pvalue)
    assert found.low <= found.rho <= found.high


def test_partial_correlation_is_that_of_residuals_of_ranks():
    rng = np.random.default_rng(1)
    score, length, loss = rng.normal(size=(3, 30))
    gains = made_from(score + length)
    ranks = [stats.rankdata(values) for values in (score, gains.mean(0), length, loss)]
    design = np.column_stack([np.ones(30), ranks[2], ranks[3]])
    left = [y - design @ np.linalg.lstsq(design, y, rcond=None)[0] for y in ranks[:2]]
    rho = np.corrcoef(*left)[0, 1]
    found = predict(score, gains, [length, loss])
    assert found.partial == pytest.approx(rho)
    t = rho * np.sqrt(26 / (1 - rho**2))
    assert found.partial_p == pytest.approx(2 * stats.t.sf(abs(t), 26))


def test_a_score_that_only_follows_length_has_nothing_left_given_length():
    rng = np.random.default_rng(2)
    length = rng.normal(size=200)
    score, gains = length + 0.3 * rng.normal(size=200), made_from(length)
    found = predict(score, gains, [length])
    assert found.p < 1e-6 and found.partial_p > 0.05


def test_reliability_is_the_share_of_variance_that_is_the_groups_own():
    rng = np.random.default_rng(3)
    table = made_from(rng.normal(size=4000), noise=1.0)
    assert reliability(table) == pytest.approx(1 / (1 + 1 / 2), abs=0.04), "a variance of 1 against one of 1 over two seeds"
    items = table.T  # Cronbach's α by its textbook form
    alpha = 2 * (1 - items.var(0, ddof=1).sum() / items.sum(1).var(ddof=1))
    assert reliability(table) == pytest.approx(alpha)
    assert reliability(table[:1]) is None and reliability(np.ones((2, 9))) is None


def test_correction_for_noise_finds_the_correlation_with_noiseless_gain():
    rng = np.random.default_rng(4)
    score = rng.normal(size=3000)
    true = 0.6 * score + 0.8 * rng.normal(size=3000)
    found = predict(score, made_from(true, seeds=2, noise=1.5))
    assert found.rho < 0.45, "as measured it is attenuated"
    assert found.corrected == pytest.approx(stats.spearmanr(score, true).statistic, abs=0.05)
    assert found.corrected_low < found.corrected < found.corrected_high


def test_intervals_cover_the_truth_and_noise_is_seldom_called_a_finding():
    """Over 200 experiments of 40 groups: coverage of the true ρ, and the share of false findings at 5 %."""
    for true in (0.0, 0.5):
        rho = 6 / np.pi * np.arcsin(true / 2)  # Spearman's of a normal pair
        covered = false = 0
        for seed in range(200):
            rng = np.random.default_rng([seed, 9])
            score = rng.normal(size=40)
            gains = true * score + np.sqrt(1 - true**2) * rng.normal(size=(1, 40))
            found = predict(score, gains, seed=seed)
            covered += found.low <= rho <= found.high
            false += found.p < 0.05
        assert 0.91 <= covered / 200 <= 0.985
        assert (false / 200 <= 0.085) if true == 0 else (false / 200 >= 0.8)


def test_detectable_correlation_is_what_simulated_experiments_find():
    rho = detectable(40)
    assert rho == pytest.approx(0.44, abs=0.01) and detectable(40, power=0.5) == pytest.approx(0.32, abs=0.01)
    pearson, found, rng = 2 * np.sin(np.pi * rho / 6), 0, np.random.default_rng(5)
    for _ in range(1000):
        a, b = rng.normal(size=(2, 40))
        found += stats.spearmanr(a, pearson * a + np.sqrt(1 - pearson**2) * b).pvalue < 0.05
    assert found / 1000 == pytest.approx(0.8, abs=0.05)
    assert detectable(4) is None and detectable(40, 0.05 / 20) > rho


_UP, _FLAT = np.arange(9.0), np.ones(9)


@pytest.mark.parametrize(("score", "gains"), [(_FLAT, _UP), (_UP, _FLAT), (_UP[:3], _UP[:3]), (_FLAT * np.nan, _UP)])
def test_what_is_constant_or_too_few_has_no_correlation(score, gains):
    assert predict(score, gains[None]).rho is None


def test_groups_without_a_score_are_left_out():
    score = np.array([1.0, np.nan, 2, 3, 4, 5])
    assert predict(score, np.array([[1.0, 99, 2, 3, 4, 5]])).rho == 1


@given(
    arrays(np.float64, st.tuples(st.integers(1, 40), st.integers(1, 4)), elements=st.sampled_from([0.0, 1.0, 2.5, np.nan, -3.0])),
    st.integers(1, 12),
)
def test_every_row_is_in_one_group_and_sizes_differ_by_little(values, groups):
    groups = min(groups, len(values))
    found = similar_groups(values, groups)
    assert sorted(row for group in found for row in group) == list(range(len(values)))
    assert len(found) == groups and min(map(len, found)) >= 1
    assert max(map(len, found)) - min(map(len, found)) <= 2 + len(values) // groups // 2
    assert found == similar_groups(values, groups)


def test_groups_of_similar_rows_differ_in_every_score_where_random_ones_do_not():
    rng = np.random.default_rng(6)
    first, second = rng.normal(size=(2, 240))
    scores = np.column_stack([first, first + 0.1 * rng.normal(size=240), -first, second])
    between = [group_share(scores, similar_groups(scores, 48), k) for k in range(4)]
    by_chance = group_share(scores, [list(rows) for rows in np.array_split(rng.permutation(240), 48)], 0)
    assert min(between) > 0.75 > 0.4 > by_chance


def group_share(scores, groups, k):
    means = np.array([scores[rows, k].mean() for rows in groups])
    return (np.repeat(means, list(map(len, groups))) - scores[:, k].mean()).var() / scores[:, k].var()


def test_more_groups_than_rows_are_refused():
    with pytest.raises(ValueError, match="give 1 to 3"):
        similar_groups(np.zeros((3, 1)), 4)
