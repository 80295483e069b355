"""Statistics of comparisons: intervals over training seeds and tasks, paired tests, and the difference that could have been detected.

Shape suffixes: S training seeds of an arm, T evaluation tasks, D bootstrap draws of tasks. Values are successes (0 or 1) or scores.
All draws are seeded: equal inputs give equal numbers.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

DRAWS = 10_000
FLIPS = 20_000
EXACT_TASKS = 14  # up to so many tasks that differ, all 2^n sign flips are counted instead of drawn
_BLOCK = 1_000  # draws or flips at a time, which bounds memory at a few MB for hundreds of tasks


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval and standard error, in the unit of the values; the error's degrees of freedom."""

    mean: float
    low: float
    high: float
    standard_error: float
    degrees: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies wholly above or below zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def interval(values: ArrayLike, seed: int = 0) -> Interval:
    """Mean of values `[S, T]` with a 95 % interval that counts both other seeds and other tasks.

    With several seeds: analysis of variance of the crossed table, both factors random (Searle, Casella and McCulloch 1992, ch. 4).
    Seeds' means vary by `MS_seeds`, tasks' beyond what seeds make of each task by `MS_tasks − MS_rest`; the variance of the mean is
    their sum over S·T, its degrees of freedom are Satterthwaite's, the interval is Student's. `MS_seeds` counts as at least `MS_rest`,
    its expectation were all seeds alike: three seeds may agree by chance. A bootstrap of seeds and tasks would be no substitute:
    resamples of three seeds never leave their range, and simulated it covers 76–92 % where whole trainings differ by 8 points and
    more; this interval covers 92–98 % throughout (`tests/experiments/test_statistics.py`).

    With one seed: the percentile bootstrap over tasks, `DRAWS` resamples, which knows nothing of training. With one task: Student's
    over seeds.

    Several tasks whose values are all equal show no spread, which is not to say that there is none: of five tasks won throughout a sixth
    may be lost. Their standard error is the one that a task gone the other way with every seed would have left, 1 / T, of T − 1 degrees.
    """
    values_ST = np.asarray(values, dtype=np.float64)
    S, T = values_ST.shape
    mean = float(values_ST.mean())
    if T > 1 and np.ptp(values_ST) < 1e-12:  # equal but for rounding
        return _student(mean, 1 / T, T - 1.0)
    if S == 1:
        draws_D = _task_means(values_ST[0], seed)
        low, high = np.quantile(draws_D, [0.025, 0.975])
        return Interval(mean, float(low), float(high), float(draws_D.std(ddof=1)), max(1.0, T - 1.0))
    if T == 1:
        return _student(mean, float(values_ST.std(ddof=1)) / math.sqrt(S), S - 1.0)
    seeds_S, tasks_T = values_ST.mean(1) - mean, values_ST.mean(0) - mean
    rest_ST = values_ST - mean - seeds_S[:, None] - tasks_T
    ms_seeds, ms_tasks = T * (seeds_S**2).sum() / (S - 1), S * (tasks_T**2).sum() / (T - 1)
    df_rest = (S - 1) * (T - 1)
    ms_rest = (rest_ST**2).sum() / df_rest
    # (mean square, its sign in the variance, its degrees of freedom)
    parts = [(ms_seeds, 1, S - 1) if ms_seeds >= ms_rest else (ms_rest, 1, df_rest)]
    if ms_tasks > ms_rest:
        parts += [(ms_tasks, 1, T - 1), (ms_rest, -1, df_rest)]
    total = sum(sign * square for square, sign, _ in parts)
    degrees = total**2 / sum(square**2 / df for square, _, df in parts)
    return _student(mean, math.sqrt(total / (S * T)), float(degrees))


def _student(mean: float, error: float, degrees: float) -> Interval:
    half = float(stdtrit(degrees, 0.975)) * error
    return Interval(mean, mean - half, mean + half, error, degrees)


def difference(first: ArrayLike, second: ArrayLike, seed: int = 0) -> Interval:
    """Mean of `first` `[S, T]` less that of `second` `[S, T]` with the interval of their differences, which pairs seeds and tasks.

    An arm with a single run, as the base is, is taken from each of the other's.
    """
    first_ST, second_ST = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    return interval(first_ST - second_ST, seed)


def training_p(first: ArrayLike, second: ArrayLike) -> float | None:
    """Two-sided p of no difference between two arms' values `[S, T]`, for other training seeds and other tasks; None with one
    seed, and with one task, which says nothing of others.

    Student's t of `difference`, with at most S − 1 degrees of freedom. Satterthwaite's, which suit an interval, are too many for the
    small p that a correction over many comparisons asks for: where three seeds lie close by chance, they say that all seeds would.
    Simulated with thirteen claims of no effect and three seeds that differ by 7 points, Holm's correction of those finds a false one in
    more than 10 % of experiments, of these in at most 5 %. The price is power: as one of fourteen claims three seeds find next to
    nothing, five a difference of 20 points, and one of 10 seldom (`tests/experiments/test_statistics.py`).
    """
    found, (S, T) = difference(first, second), np.shape(first)
    if S < 2 or T < 2:
        return None
    t = abs(found.mean) / found.standard_error
    return float(2 * stdtr(min(found.degrees, S - 1.0), -t))


def _task_means(values_T: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """The mean of each resample of tasks."""
    tasks_DT = _counts(len(values_T), seed)
    return np.concatenate([tasks_DT[at : at + _BLOCK] @ values_T / len(values_T) for at in range(0, DRAWS, _BLOCK)])


@lru_cache(maxsize=8)
def _counts(n: int, seed: int) -> NDArray[np.uint16]:
    """Counts of each of n tasks in each resample of n: `[D, n]`, rows sum to n."""
    return np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1 / n), DRAWS).astype(np.uint16)


def permutation_p(first: ArrayLike, second: ArrayLike, seed: int = 0) -> float:
    """Two-sided p of no difference between two arms' values `[S1, T]` and `[S2, T]`, by flipping the signs of tasks' differences.

    Each task gives one difference of means over seeds; were the arms alike, its sign would be a coin's. The p is the share of flips whose
    sum is at least as far from zero: of all flips where at most `EXACT_TASKS` tasks differ, else of `FLIPS` drawn ones and the
    observed one, (1 + k) / (1 + N) (Phipson and Smyth 2010).

    It is conditional on the trained models: it asks whether these models differ on tasks like these, not whether another training
    would differ again. (Flipping three seeds instead could give no p below 1/4.) The intervals are what carries training seeds.
    """
    d = np.asarray(first, dtype=np.float64).mean(axis=0) - np.asarray(second, dtype=np.float64).mean(axis=0)
    d = d[np.abs(d) > 1e-12]
    observed = abs(d.sum()) - 1e-9  # sums that are equal but for rounding count as equal
    if len(d) <= EXACT_TASKS:
        flips = np.array(list(itertools.product((-1.0, 1.0), repeat=len(d))))
        return float((np.abs(flips @ d) >= observed).mean())
    extreme = sum(int((np.abs(flips @ d) >= observed).sum()) for flips in _flips(len(d), seed))
    return (1 + extreme) / (1 + FLIPS)


def _flips(n: int, seed: int) -> Iterator[NDArray[np.float64]]:
    rng = np.random.default_rng([seed, n])
    for _ in range(0, FLIPS, _BLOCK):
        yield rng.choice(np.array([-1.0, 1.0]), (_BLOCK, n))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of one family, corrected for their number by Holm's step-down method (1979), in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def at_most(found: Interval, degrees: float) -> Interval:
    """The same mean and error with no more degrees of freedom, and the interval that goes with them."""
    return _student(found.mean, found.standard_error, min(found.degrees, degrees))


def detectable_difference(intervals: Sequence[Interval], level: float = 0.05) -> float:
    """The smallest true difference that a two-sided test at `level` finds in 80 % of experiments; the median over intervals, NaN for none.

    Of an interval with standard error e and d degrees of freedom: (t₁₋ₗ/₂ + t₀.₈) · e, Student's quantiles at d.
    """
    each = [float(stdtrit(i.degrees, 1 - level / 2) + stdtrit(i.degrees, 0.8)) * i.standard_error for i in intervals]
    return float(np.median(each)) if each else math.nan
