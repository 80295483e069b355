"""Agreement of two scores, or of a score and a plain measure, on the order and the split of the same trajectories."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradprism.routing.split import Value

DRAWS = 10_000  # resamples of the bootstrap


class Agreement(Value):
    """Of two scores, each cut at its own median: Spearman's rank correlation, the share of trajectories that both send the same way, and
    |both to RL| / |either to RL|; None where a score is constant, or neither sends any."""

    spearman: float | None
    same_side: float
    jaccard: float | None


class SplitBy(Value):
    """Agreement of a split with one by plain values, and which values that one sends to RL: `high` or `low` ones."""

    rl: Literal["high", "low"]
    same_side: float
    jaccard: float | None


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Pearson's correlation of two arrays `[n]`, of ranks Spearman's; None where either is constant or n < 2."""
    return None if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0 else float(np.corrcoef(a, b)[0, 1])


def agreement(a: NDArray[np.float64], b: NDArray[np.float64]) -> Agreement:
    """Agreement of two scores `[n]` on the routes of the same trajectories."""
    return rank_agreement(*(pl.Series(scores).rank("average").to_numpy() for scores in (a, b)))


def rank_agreement(a: NDArray[np.float64], b: NDArray[np.float64]) -> Agreement:
    """`agreement` of scores by their average ranks `[n]`, which keep order and ties, so they are split as the scores are."""
    first, second = a > np.median(a), b > np.median(b)
    either = int((first | second).sum())
    jaccard = int((first & second).sum()) / either if either else None
    return Agreement(spearman=correlation(a, b), same_side=float((first == second).mean()), jaccard=jaccard)


def split_by(to_rl: NDArray[np.bool_], values: NDArray[np.float64]) -> SplitBy:
    """Agreement of a split `[n]` with one by values `[n]` that sends as many to RL, in the direction in which they are more alike.

    Where equal values stand at its cut, the overlap is what drawing among them would give on average.
    """
    n, n_rl = len(to_rl), int(to_rl.sum())

    def of(rl: Literal["high", "low"], ranking: NDArray[np.float64]) -> SplitBy:
        both = float(_chances_of_rl(ranking, n_rl)[to_rl].sum())
        return SplitBy(rl=rl, same_side=(n - 2 * n_rl + 2 * both) / n, jaccard=both / (2 * n_rl - both) if n_rl else None)

    return max(of("high", values), of("low", -values), key=lambda split: split.same_side)


def _chances_of_rl(values: NDArray[np.float64], n_rl: int) -> NDArray[np.float64]:
    """The probability `[n]` that each is among the `n_rl` highest, where equals are drawn by chance."""
    if n_rl == 0:
        return np.zeros(len(values))
    cut = np.partition(values, -n_rl)[-n_rl]
    above, tied = values > cut, values == cut
    return np.where(above, 1.0, np.where(tied, (n_rl - above.sum()) / tied.sum(), 0.0))


def correlation_ratio(values: NDArray[np.float64], groups: Sequence[str] | pl.Series) -> float | None:
    """η² of values `[n]` by their groups: the sum of squares between groups over the total one, in [0, 1]; None for equal values.

    Groups that have nothing to do with the values are expected to give (groups − 1)/(n − 1), not 0.
    """
    if np.ptp(values) == 0:
        return None
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    codes = np.fromiter(map(number.__getitem__, groups), np.intp, len(groups))
    deviation = values - values.mean()
    between = np.bincount(codes, weights=deviation) ** 2 / np.bincount(codes)
    return float(min(1.0, between.sum() / (deviation**2).sum()))


def threshold_standard_error(scores: NDArray[np.float64], rl_share: float, seed: int) -> float | None:
    """Bootstrap standard error of the threshold above which a share of scores `[n]` lies, from `DRAWS` seeded resamples.

    None where that is none or all of them, which no score bounds on both sides. A resample of n is n uniform draws u, each taking the
    score at ⌊u·n⌋ of the sorted scores, so its k-th smallest value is the score at ⌊u₍ₖ₎·n⌋, and uniform order statistics are Beta
    variates: exact, and a resample costs two draws instead of n.
    """
    ascending, n = np.sort(scores), len(scores)
    k = n - math.floor(rl_share * n + 1e-9)  # the threshold separates the k-th smallest from the next
    if not 0 < k < n:
        return None
    rng = np.random.default_rng(seed)
    lower = rng.beta(k, n + 1 - k, DRAWS)
    # u₍ₖ₊₁₎, given u₍ₖ₎, is the smallest of the n − k draws left above it. The median of an odd number is its middle score.
    upper = lower if n % 2 and rl_share == 0.5 else lower + (1 - lower) * rng.beta(1, n - k, DRAWS)
    picks = (np.minimum((u * n).astype(np.intp), n - 1) for u in (lower, upper))
    return float(np.mean([ascending[pick] for pick in picks], axis=0).std(ddof=1))
