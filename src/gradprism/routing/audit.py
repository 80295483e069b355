"""What a person should know before trusting a split: what the score goes along with, and how firm the threshold is."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

CONFOUNDS = ("loss", "l2", "n_tokens", "n_response_tokens", "n_turns")
# |ρ| above which a score is said to follow a plain measure.
STRONG = 0.7
DRAWS = 10_000


def spearman(a: NDArray[Any], b: NDArray[Any]) -> float | None:
    """Spearman's rank correlation of two arrays `[n]`, ties ranked by their average; None where either is constant or n < 2."""
    return _correlation(*(pl.Series(x).rank("average").to_numpy() for x in (a, b)))


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Correlation of ranks."""
    return None if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0 else float(np.corrcoef(a, b)[0, 1])


def median_standard_error(scores: NDArray[np.float64], seed: int) -> float:
    """Bootstrap standard error of the median of scores `[n]`, from `DRAWS` seeded resamples.

    A resample of n is n uniform draws u, each taking the score at ⌊u·n⌋ of the sorted scores, so its k-th smallest value is the
    score at ⌊u₍ₖ₎·n⌋, and uniform order statistics are Beta variates: exact, and a resample costs two draws instead of n.
    """
    ascending, n = np.sort(scores), len(scores)
    rng = np.random.default_rng(seed)
    k = (n + 1) // 2
    lower = rng.beta(k, n + 1 - k, DRAWS)
    # For even n the median also takes u₍ₖ₊₁₎: given u₍ₖ₎, the smallest of the n − k draws left above it.
    upper = lower if n % 2 else lower + (1 - lower) * rng.beta(1, n - k, DRAWS)
    picks = (np.minimum((u * n).astype(np.intp), n - 1) for u in (lower, upper))
    return float(np.mean([ascending[pick] for pick in picks], axis=0).std(ddof=1))


def audit(table: pl.DataFrame, metrics: list[str], policy: str, seed: int) -> dict[str, Any]:
    """Correlations, firmness of the threshold and warnings of a table with `score`, `margin`, `route`, metrics and `CONFOUNDS`."""
    score = table["score"].to_numpy()
    # Each column is ranked once: with a million rows that is what an audit takes.
    ranks = table.select(pl.col("score", *CONFOUNDS, *metrics).rank("average")).to_dict()
    columns = {name: column.to_numpy() for name, column in ranks.items()}
    error = median_standard_error(score, seed)
    n_rl = int((table["route"] == "rl").sum())
    result = {
        "spearman": {name: _correlation(columns["score"], columns[name]) for name in (*CONFOUNDS, *metrics)},
        "between_metrics": {f"{a}–{b}": _correlation(columns[a], columns[b]) for a, b in itertools.combinations(metrics, 2)},
        "median_standard_error": error,
        "share_within_one_standard_error": float((np.abs(table["margin"].to_numpy()) <= error).mean()),
    }
    return {**result, "warnings": list(_warnings(result, score, n_rl, policy))}


def _warnings(result: dict[str, Any], score: NDArray[np.float64], n_rl: int, policy: str) -> Iterator[str]:
    n = len(score)
    if np.ptp(score) <= 1e-9 * np.abs(score).max():
        yield "the scores have no spread: the split says nothing about the trajectories"
    if n_rl in (0, n):
        yield f"all {n} trajectories go to {'RL' if n_rl else 'SFT'}: the other stage has nothing to train on"
    if policy in ("concentration", "inverse"):
        for name in CONFOUNDS:
            rho = result["spearman"][name]
            if rho is not None and abs(rho) > STRONG:
                yield f"the score follows {name} (Spearman {rho:.2f}): compare with a split by that measure"
