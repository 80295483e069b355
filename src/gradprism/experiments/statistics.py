"""How sure a comparison of arms is: intervals over training seeds and tasks, paired tests, and what could have been seen at all.

Shape suffixes: S training seeds of an arm, T evaluation tasks, D bootstrap draws, F sign flips. Values are successes (0 or 1) or scores.
All draws are seeded: equal inputs give equal numbers.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 10_000
FLIPS = 20_000
EXACT_TASKS = 14  # up to so many tasks that differ, all 2^n sign flips are counted instead of drawn
_BLOCK = 1_000  # draws or flips at a time, which bounds memory at a few MB for hundreds of tasks
# Normal quantiles of a two-sided test at 5 % and of a power of 80 %.
_Z_TEST, _Z_POWER = 1.96, 0.84


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval and standard error, in the unit of the values."""

    mean: float
    low: float
    high: float
    standard_error: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies wholly above or below zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def bootstrap(values: ArrayLike, seed: int = 0) -> Interval:
    """Mean of values `[S, T]` with its 95 % percentile interval, from `DRAWS` crossed resamples of seeds and of tasks.

    Each draw takes S seeds and T tasks with replacement, independently, and averages the block: the pigeonhole bootstrap (Owen 2007,
    "The pigeonhole bootstrap", Annals of Applied Statistics 1). What varies by seed and task together counts up to three times in
    its variance, so the interval errs to the wide side where trainings differ task by task, and is about right where whole seeds
    differ: simulated with 3 seeds and 134 tasks it covers 94–99 %. With a single seed it knows nothing of training, only of tasks.
    """
    values_ST = np.asarray(values, dtype=np.float64)
    return _interval(values_ST.mean(), _means(values_ST, seed, stream=1))


def difference(first: ArrayLike, second: ArrayLike, *, same_seeds: bool, seed: int = 0) -> Interval:
    """Mean of `first` `[S1, T]` less that of `second` `[S2, T]` on the same tasks, with the interval of `bootstrap`.

    Tasks are always resampled together. Seeds are, where both arms have the same ones in the same order (`same_seeds`): arms may share
    stages, and the pairs then vary less than their parts. Otherwise each arm's seeds are resampled on their own, which keeps every run.
    """
    first_ST, second_ST = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    mean = first_ST.mean() - second_ST.mean()
    if same_seeds:
        return _interval(mean, _means(first_ST - second_ST, seed, stream=1))
    return _interval(mean, _means(first_ST, seed, stream=1) - _means(second_ST, seed, stream=2))


def _interval(mean: float, draws_D: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(draws_D, [0.025, 0.975])
    return Interval(float(mean), float(low), float(high), float(draws_D.std(ddof=1)))


def _means(values_ST: NDArray[np.float64], seed: int, stream: int) -> NDArray[np.float64]:
    """The mean of each resample. Tasks are drawn from stream 0 whatever `stream` seeds are drawn from, so that arms share them."""
    S, T = values_ST.shape
    seeds_DS, tasks_DT = _counts(S, seed, stream), _counts(T, seed, 0)
    # How often each seed and task was drawn says as much as the resample itself, and a product of matrices averages it.
    return np.concatenate(
        [
            ((seeds_DS[at : at + _BLOCK] @ values_ST) * tasks_DT[at : at + _BLOCK]).sum(axis=1) / (S * T)
            for at in range(0, DRAWS, _BLOCK)
        ]
    )


@lru_cache(maxsize=8)
def _counts(n: int, seed: int, stream: int) -> NDArray[np.uint16]:
    """How often each of n things is in each resample of n: `[D, n]`, rows sum to n."""
    return np.random.default_rng([seed, stream, n]).multinomial(n, np.full(n, 1 / n), DRAWS).astype(np.uint16)


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


def detectable_difference(standard_errors: Sequence[float]) -> float:
    """The smallest true difference that a two-sided test at 5 % finds in 80 % of experiments, at the median standard error given.

    `(1.96 + 0.84)` standard errors, in their unit; NaN for none.
    """
    return (_Z_TEST + _Z_POWER) * float(np.median(standard_errors)) if len(standard_errors) else math.nan
