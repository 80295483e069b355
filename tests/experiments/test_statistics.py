"""Intervals and tests against slow, plain references, and their calibration on simulated experiments."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from gradprism.experiments import statistics
from gradprism.experiments.statistics import (
    Interval,
    at_most,
    detectable_difference,
    difference,
    holm,
    interval,
    permutation_p,
    training_p,
)


def successes(rng: np.random.Generator, S: int, T: int, task: NDArray[np.float64], seed_spread: float = 0.0) -> NDArray[np.float64]:
    """Successes of an arm `[S, T]`: logits of tasks, of seeds, and of what a training makes of each task."""
    logit_ST = -0.5 + task + seed_spread * rng.normal(size=(S, 1)) + 0.7 * rng.normal(size=(S, T))
    return (rng.random((S, T)) < 1 / (1 + np.exp(-logit_ST))).astype(float)


def slow_interval(values: NDArray[np.float64]) -> Interval:
    """The analysis of variance, written out cell by cell."""
    S, T = values.shape
    mean = sum(values[s, t] for s in range(S) for t in range(T)) / (S * T)
    if all(value == values[0, 0] for row in values for value in row):
        return slow_interval_of_equals(mean, T)
    of_seed = [sum(values[s, t] for t in range(T)) / T for s in range(S)]
    of_task = [sum(values[s, t] for s in range(S)) / S for t in range(T)]
    ms_seeds = T * sum((m - mean) ** 2 for m in of_seed) / (S - 1)
    ms_tasks = S * sum((m - mean) ** 2 for m in of_task) / (T - 1)
    ms_rest = sum((values[s, t] - of_seed[s] - of_task[t] + mean) ** 2 for s in range(S) for t in range(T)) / ((S - 1) * (T - 1))
    if ms_seeds >= ms_rest:
        variance, spread = ms_seeds, ms_seeds**2 / (S - 1)
    else:
        variance, spread = ms_rest, ms_rest**2 / ((S - 1) * (T - 1))
    if ms_tasks > ms_rest:
        variance += ms_tasks - ms_rest
        spread += ms_tasks**2 / (T - 1) + ms_rest**2 / ((S - 1) * (T - 1))
    degrees = variance**2 / spread
    error = math.sqrt(variance / (S * T))
    half = float(stats.t.ppf(0.975, degrees)) * error
    return Interval(mean, mean - half, mean + half, error, degrees)


def slow_interval_of_equals(mean: float, T: int) -> Interval:
    """Student's of means of tasks of which all but one are alike, around `mean`."""
    of_tasks = [1.0] + [0.0] * (T - 1)
    one_less = stats.ttest_1samp(of_tasks, 0).confidence_interval(0.95)
    half = float(one_less.high - one_less.low) / 2
    return Interval(mean, mean - half, mean + half, float(stats.sem(of_tasks)), T - 1)


def close(a: Interval, b: Interval) -> bool:
    of_a, of_b = ([i.mean, i.low, i.high, i.standard_error, i.degrees] for i in (a, b))
    return np.allclose(of_a, of_b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_the_interval_is_the_analysis_of_variance_written_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    S, T = rng.integers(2, 5), rng.integers(5, 30)
    # Seeds that differ, tasks that differ, and neither.
    values = rng.normal(size=(S, T)) + (seed % 3 == 0) * 3 * rng.normal(size=(S, 1)) + (seed % 3 == 1) * 3 * rng.normal(size=(1, T))
    assert close(interval(values), slow_interval(values))


def test_a_table_worked_by_hand() -> None:
    # Means of seeds 1 and 3, of tasks 1, 2 and 3, no rest: MS of seeds 3·(1 + 1)/1 = 6, of tasks 2·(1 + 0 + 1)/2 = 2, V = 8/6.
    found = interval([[0, 1, 2], [2, 3, 4]])
    assert (found.mean, found.standard_error) == (2, pytest.approx(math.sqrt(8 / 6)))
    assert found.degrees == pytest.approx(64 / (36 / 1 + 4 / 2))
    assert found.high == pytest.approx(2 + stats.t.ppf(0.975, 64 / 38) * math.sqrt(8 / 6))


@pytest.mark.parametrize("T", [2, 9, 300])
@pytest.mark.parametrize("S", [1, 2, 3])
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_values_that_are_all_equal_are_as_sure_as_one_task_more_or_less(S: int, T: int, value: float) -> None:
    assert close(interval(np.full((S, T), value)), slow_interval(np.full((S, T), value)))


def test_one_seed_and_one_task_have_no_spread() -> None:
    assert interval([[0.5]]).standard_error == 0 and interval([[0.5], [0.5]]).standard_error == 0


def test_a_difference_is_that_of_pairs_and_a_single_run_is_taken_from_each() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.random((3, 7)), rng.random((3, 7))
    assert difference(first, second) == interval(first - second)
    assert difference(first, second[:1]) == interval(first - np.repeat(second[:1], 3, 0))


def test_a_single_seed_leaves_the_spread_of_tasks() -> None:
    won = np.array([[1.0] * 30 + [0.0] * 70])
    found = interval(won)
    assert found.standard_error == pytest.approx(math.sqrt(0.3 * 0.7 / 100), rel=0.03)
    assert (found.low, found.high) == (pytest.approx(0.21, abs=0.015), pytest.approx(0.39, abs=0.015))
    counts = statistics._counts(100, 0)
    draws = np.sort([sum(n * v for n, v in zip(row, won[0], strict=True)) / 100 for row in counts[:500]])
    few = statistics._task_means(won[0], 0)[:500]
    np.testing.assert_allclose(np.sort(few), draws)


def test_equal_inputs_give_equal_numbers() -> None:
    values = np.random.default_rng(3).random((1, 20))
    assert interval(values) == interval(values.copy())
    assert interval(values) != interval(values, seed=1)
    assert permutation_p(values, values[::-1] * 0.9) == permutation_p(values, values[::-1] * 0.9)


def test_signs_of_intervals() -> None:
    ends = ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (0.0, 0.1))
    assert [Interval(0, low, high, 0, 1).sign for low, high in ends] == [1, -1, 0, 0]


@pytest.mark.parametrize("T", [80, 300])
@pytest.mark.parametrize("seed_spread", [0.0, 0.1, 0.3, 0.5, 0.8])
def test_intervals_of_differences_cover_the_truth(seed_spread: float, T: int) -> None:
    rng, covered, n = np.random.default_rng(4), 0, 500
    for _ in range(n):
        task = rng.normal(0, 1.5, (1, T))
        found = difference(successes(rng, 3, T, task, seed_spread), successes(rng, 3, T, task, seed_spread))
        covered += found.low <= 0 <= found.high
    assert 0.91 <= covered / n <= 0.99  # three standard errors below 0.94


def test_intervals_of_one_model_cover_95_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "DRAWS", 1000)
    statistics._counts.cache_clear()
    rng = np.random.default_rng(5)
    found = [interval((rng.random((1, 150)) < 0.4).astype(float)) for _ in range(600)]
    statistics._counts.cache_clear()
    assert sum(i.low <= 0.4 <= i.high for i in found) / 600 == pytest.approx(0.95, abs=0.025)


# --- tests


def slow_p(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """The share of all ways to give each task's difference a sign whose sum is at least as far from zero."""
    d = [sum(first[:, t]) / len(first) - sum(second[:, t]) / len(second) for t in range(first.shape[1])]
    sums = [abs(sum(sign * x for sign, x in zip(signs, d, strict=True))) for signs in itertools.product((-1, 1), repeat=len(d))]
    return sum(s >= abs(sum(d)) - 1e-9 for s in sums) / len(sums)


@pytest.mark.parametrize("seed", range(5))
def test_p_of_few_tasks_counts_all_flips(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (rng.integers(0, 2, (S, 9)).astype(float) for S in (3, 2))
    assert permutation_p(first, second) == pytest.approx(slow_p(first, second), abs=1e-12)


def test_tasks_that_do_not_differ_change_no_exact_p() -> None:
    first, second = np.array([[1.0] * 5 + [0.0] * 300]), np.zeros((1, 305))
    assert permutation_p(first, second) == 2 / 2**5
    assert permutation_p(second, second) == 1.0


def test_drawn_flips_agree_with_all_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    first, second = (rng.random((2, 12)) for _ in range(2))
    exact = permutation_p(first, second)
    monkeypatch.setattr(statistics, "EXACT_TASKS", 0)
    assert permutation_p(first, second) == pytest.approx(exact, abs=0.012)


def test_the_smallest_drawn_p_counts_the_observed_flip() -> None:
    assert permutation_p(np.ones((1, 60)), np.zeros((1, 60))) == 1 / 20_001


def test_p_is_uniform_where_arms_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "FLIPS", 1000)
    rng, n = np.random.default_rng(7), 400
    ordered = np.sort([permutation_p(rng.normal(size=(3, 60)), rng.normal(size=(2, 60))) for _ in range(n)])
    # Kolmogorov and Smirnov's distance, below its critical value at 1 %.
    assert np.abs(ordered - (np.arange(n) + 0.5) / n).max() < 1.63 / math.sqrt(n)


def test_successes_alike_are_called_different_no_oftener_than_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "FLIPS", 1000)
    rng, p = np.random.default_rng(10), []
    for _ in range(600):
        task = rng.normal(0, 1.5, (1, 60))
        p.append(permutation_p(successes(rng, 3, 60, task), successes(rng, 3, 60, task)))
    for level in (0.05, 0.1, 0.2):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=2.6 * math.sqrt(level / 600))


def test_a_clear_difference_is_found() -> None:
    rng = np.random.default_rng(8)
    task = rng.normal(0, 1, (1, 134))
    assert permutation_p(successes(rng, 3, 134, task + 1), successes(rng, 3, 134, task)) < 0.001


@pytest.mark.parametrize("S", [2, 3, 6])
def test_p_of_any_trainings_is_student_s_with_one_degree_less_than_seeds(S: int) -> None:
    rng = np.random.default_rng(S)
    task = rng.normal(0, 1, (1, 50))
    first, second = successes(rng, S, 50, task + 1, 0.3), successes(rng, S, 50, task, 0.3)
    found = difference(first, second)
    slow = 2 * stats.t.sf(abs(found.mean) / found.standard_error, min(found.degrees, S - 1))
    assert training_p(first, second) == pytest.approx(slow)
    assert training_p(second, first) == training_p(first, second)


def test_p_of_any_trainings_at_its_edges() -> None:
    ones, zeros = np.ones((3, 5)), np.zeros((3, 5))
    slow = slow_interval(ones)
    assert training_p(ones, zeros) == pytest.approx(2 * stats.t.sf(1 / slow.standard_error, 2))
    assert training_p(ones, ones) == training_p(ones[:2, :2], ones[:2, :2]) == 1.0
    assert training_p(ones[:1], zeros[:1]) is None, "one seed"
    assert training_p(ones[:, :1], zeros[:, :1]) is None, "one task"


def test_few_seeds_and_tasks_that_all_differ_alike_are_no_proof() -> None:
    few, many = (training_p(np.ones(shape), np.zeros(shape)) for shape in ((2, 5), (3, 300)))
    assert few is not None and few > 0.05
    assert many is not None and many < 0.001


def test_claims_of_no_effect_are_seldom_borne_out_however_many_they_are() -> None:
    rng, n, wrong = np.random.default_rng(11), 120, {"at most one less than seeds": 0, "Satterthwaite": 0, "interval": 0}
    for _ in range(n):
        task = rng.normal(0, 1.5, (1, 100))
        arms = [successes(rng, 3, 100, task, 0.45) for _ in range(8)]
        pairs = list(itertools.combinations(arms[:3], 2)) + [(a, b) for a in arms[:2] for b in arms[3:]]
        wrong["at most one less than seeds"] += min(holm([training_p(a, b) or 0.0 for a, b in pairs])) < 0.05
        found = [difference(a, b) for a, b in pairs]
        wrong["interval"] += any(i.sign for i in found)
        p = [float(2 * stats.t.sf(abs(i.mean) / i.standard_error, i.degrees)) for i in found]
        wrong["Satterthwaite"] += min(holm(p)) < 0.05
    assert wrong["at most one less than seeds"] / n <= 0.05
    assert wrong["Satterthwaite"] / n > 0.1, "what would go wrong"
    assert 0.35 < wrong["interval"] / n < 0.7, "uncorrected, about every second experiment suggests one"


@pytest.mark.parametrize(("S", "shift", "least", "most"), [(3, 1.3, 0.0, 0.1), (5, 1.3, 0.8, 1.0), (5, 0.65, 0.0, 0.4)])
def test_what_seeds_can_decide_as_one_of_fourteen_claims(S: int, shift: float, least: float, most: float) -> None:
    rng, n, found, effect = np.random.default_rng(12), 60, 0, 0.0
    for _ in range(n):
        task = rng.normal(0, 1.5, (1, 300))
        better, worse = successes(rng, S, 300, task + shift, 0.15), successes(rng, S, 300, task, 0.15)
        found += 14 * (training_p(better, worse) or 0.0) < 0.05
        effect += float(better.mean() - worse.mean()) / n
    assert effect == pytest.approx(0.2 if shift > 1 else 0.1, abs=0.03), "points"
    assert least <= found / n <= most


def test_one_task_has_student_s_interval_over_seeds() -> None:
    found = interval([[1.0], [1.0], [0.0]])
    low, high = stats.t.interval(0.95, 2, 2 / 3, stats.sem([1, 1, 0]))
    assert (found.mean, found.low, found.high) == (pytest.approx(2 / 3), pytest.approx(low), pytest.approx(high))


def test_holm_by_hand() -> None:
    # Sorted: 0.01·4, 0.02·3 = 0.06, 0.03·2 = 0.06, 0.04·1 → at least the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_detectable_difference_by_hand() -> None:
    # Of very many degrees of freedom Student's quantiles are the normal's: 1.96 + 0.84.
    assert detectable_difference([Interval(0, 0, 0, e, 1e9) for e in (0.01, 0.02, 0.09)]) == pytest.approx(0.02 * 2.8016, rel=1e-3)
    # Of 2: 4.303 + 1.061.
    assert detectable_difference([Interval(0, 0, 0, 0.01, 2.0)]) == pytest.approx(0.0536, abs=1e-4)
    assert math.isnan(detectable_difference([]))


def test_a_corrected_difference_is_larger_by_the_quantile() -> None:
    found = at_most(Interval(0.1, 0.0, 0.2, 0.01, 50.0), 4)
    half = 0.01 * float(stats.t.ppf(0.975, 4))
    assert (found.mean, found.standard_error, found.degrees) == (0.1, 0.01, 4.0)
    assert (found.low, found.high) == (pytest.approx(0.1 - half), pytest.approx(0.1 + half))
    assert at_most(found, 9).degrees == 4
    expected = 0.01 * (stats.t.ppf(1 - 0.05 / 28, 4) + stats.t.ppf(0.8, 4))
    assert detectable_difference([found], 0.05 / 14) == pytest.approx(expected)


def test_a_detectable_difference_is_found_in_80_percent() -> None:
    rng, error, df = np.random.default_rng(9), 0.03, 20
    effect = detectable_difference([Interval(0, 0, 0, error, df)])
    found = rng.normal(effect, error, 20_000)
    estimated = error * np.sqrt(rng.chisquare(df, 20_000) / df)
    assert np.mean(np.abs(found) > stats.t.ppf(0.975, df) * estimated) == pytest.approx(0.8, abs=0.02)
