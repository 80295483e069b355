"""Intervals and tests against slow, plain references, and their calibration on simulated experiments."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from gradprism.experiments import statistics
from gradprism.experiments.statistics import Interval, bootstrap, detectable_difference, difference, holm, permutation_p


def successes(rng: np.random.Generator, S: int, T: int, task: NDArray[np.float64], seed_spread: float = 0.0) -> NDArray[np.float64]:
    """Successes of an arm `[S, T]`: logits of tasks, of seeds, and of what a training makes of each task."""
    logit_ST = -0.5 + task + seed_spread * rng.normal(size=(S, 1)) + 0.7 * rng.normal(size=(S, T))
    return (rng.random((S, T)) < 1 / (1 + np.exp(-logit_ST))).astype(float)


def resampled(values: NDArray[np.float64], seeds: NDArray[np.uint16], tasks: NDArray[np.uint16]) -> float:
    """Mean of one resample, written out: each seed and task as often as it was drawn."""
    rows = [s for s, n in enumerate(seeds) for _ in range(n)]
    columns = [t for t, n in enumerate(tasks) for _ in range(n)]
    return sum(float(values[s, t]) for s in rows for t in columns) / (len(rows) * len(columns))


def slow_interval(mean: float, draws: list[float]) -> Interval:
    ordered, n = sorted(draws), len(draws)

    def quantile(q: float) -> float:
        at = q * (n - 1)
        low = math.floor(at)
        return ordered[low] + (at - low) * (ordered[min(low + 1, n - 1)] - ordered[low])

    centre = sum(draws) / n
    error = math.sqrt(sum((d - centre) ** 2 for d in draws) / (n - 1))
    return Interval(mean, quantile(0.025), quantile(0.975), error)


def close(a: Interval, b: Interval) -> bool:
    return np.allclose([a.mean, a.low, a.high, a.standard_error], [b.mean, b.low, b.high, b.standard_error], atol=1e-12)


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Few enough for slow references, and no multiple of the block."""
    monkeypatch.setattr(statistics, "DRAWS", 150)
    monkeypatch.setattr(statistics, "_BLOCK", 64)
    statistics._counts.cache_clear()
    yield 150
    statistics._counts.cache_clear()


def test_bootstrap_is_the_mean_of_crossed_resamples(few_draws: int) -> None:
    rng = np.random.default_rng(1)
    values = rng.random((3, 7))
    seeds, tasks = statistics._counts(3, 0, 1), statistics._counts(7, 0, 0)
    draws = [resampled(values, seeds[d], tasks[d]) for d in range(few_draws)]
    assert close(bootstrap(values), slow_interval(float(values.mean()), draws))
    assert (seeds.sum(axis=1) == 3).all() and (tasks.sum(axis=1) == 7).all()


@pytest.mark.parametrize("same_seeds", [True, False])
def test_differences_share_tasks_and_where_they_are_the_same_seeds(few_draws: int, same_seeds: bool) -> None:
    rng = np.random.default_rng(2)
    first, second = rng.random((3, 7)), rng.random((3 if same_seeds else 2, 7))
    tasks = statistics._counts(7, 0, 0)
    of_first = statistics._counts(3, 0, 1)
    of_second = of_first if same_seeds else statistics._counts(2, 0, 2)
    draws = [resampled(first, of_first[d], tasks[d]) - resampled(second, of_second[d], tasks[d]) for d in range(few_draws)]
    found = difference(first, second, same_seeds=same_seeds)
    assert close(found, slow_interval(float(first.mean() - second.mean()), draws))


def test_a_single_seed_leaves_the_spread_of_tasks() -> None:
    won = np.array([[1.0] * 30 + [0.0] * 70])
    found = bootstrap(won)
    assert found.standard_error == pytest.approx(math.sqrt(0.3 * 0.7 / 100), rel=0.03)
    assert (found.low, found.high) == (pytest.approx(0.21, abs=0.015), pytest.approx(0.39, abs=0.015))


def test_equal_inputs_give_equal_numbers_and_other_seeds_others() -> None:
    values = np.random.default_rng(3).random((3, 20))
    assert bootstrap(values) == bootstrap(values.copy())
    assert bootstrap(values) != bootstrap(values, seed=1)
    assert permutation_p(values, values[::-1] * 0.9) == permutation_p(values, values[::-1] * 0.9)


def test_signs_of_intervals() -> None:
    assert [Interval(0, low, high, 0).sign for low, high in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (0.0, 0.1))] == [1, -1, 0, 0]


@pytest.mark.parametrize("seed_spread", [0.0, 0.3])
def test_intervals_of_differences_cover_the_truth(monkeypatch: pytest.MonkeyPatch, seed_spread: float) -> None:
    monkeypatch.setattr(statistics, "DRAWS", 1000)
    statistics._counts.cache_clear()
    rng, T = np.random.default_rng(4), 80
    covered = 0
    for _ in range(300):
        task = rng.normal(0, 1.5, (1, T))
        found = difference(successes(rng, 3, T, task, seed_spread), successes(rng, 3, T, task, seed_spread), same_seeds=True)
        covered += found.low <= 0 <= found.high
    statistics._counts.cache_clear()
    # Never far below 95 %, and above it where trainings differ task by task: the docstring says so.
    assert 0.92 <= covered / 300 <= 1.0


def test_intervals_of_one_model_cover_95_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "DRAWS", 1000)
    statistics._counts.cache_clear()
    rng = np.random.default_rng(5)
    found = [bootstrap((rng.random((1, 150)) < 0.4).astype(float)) for _ in range(600)]
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


def test_holm_by_hand() -> None:
    # Sorted: 0.01·4, 0.02·3 = 0.06, 0.03·2 = 0.06, 0.04·1 → at least the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_detectable_difference_by_hand() -> None:
    assert detectable_difference([0.01, 0.02, 0.09]) == pytest.approx(0.056)
    assert math.isnan(detectable_difference([]))


def test_a_detectable_difference_is_found_in_80_percent() -> None:
    rng = np.random.default_rng(9)
    error = 0.03
    found = rng.normal(detectable_difference([error]), error, 20_000)
    assert np.mean(np.abs(found) > 1.96 * error) == pytest.approx(0.8, abs=0.01)
