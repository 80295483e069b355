"""Concentration of a trajectory's gradient on some of the model's matrices: φ(g) for g in R^N (PRISM, arXiv 2601.07224).

Each metric maps norms `[n, N]` (one row per trajectory, one column per weight matrix) to scores `[n]`, in float64. All are invariant to
the scale and to the order of a row's entries. The paper defines them in words; the formulas here are the population forms.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradprism.runtime.errors import DataError
from gradprism.runtime.registry import Registry

Metric = Callable[[NDArray[Any]], NDArray[np.float64]]
METRICS: Registry[Metric] = Registry("metric")
BUILTIN = ("gini", "cv", "kurtosis")  # those of this module, which every route is told of
register_metric = METRICS.register


class UndefinedError(DataError):
    """A row of norms that has no concentration: `row` is its number, `why` the reason and what to do."""

    def __init__(self, row: int, why: str) -> None:
        super().__init__(f"row {row}: {why}")
        self.row, self.why = row, why


@METRICS.register("gini")
def gini(norms: ArrayLike) -> NDArray[np.float64]:
    """Gini coefficient `Σ(2i − N − 1)·x₍ᵢ₎ / (N·Σx)` of each row, in [0, 1 − 1/N]; 0 for a row whose entries are all equal.

    `norms`: any real dtype, `[n, N]` with N ≥ 2, entries finite and ≥ 0, no row all zero; anything else raises `DataError`, for a
    row's entries `UndefinedError`.
    """
    x = np.sort(_scaled(norms), axis=1)
    N = x.shape[1]
    i = np.arange(1, N)
    # Σ(2i − N − 1)·x₍ᵢ₎ = Σ i(N − i)·(x₍ᵢ₊₁₎ − x₍ᵢ₎): no term is negative, so nothing cancels in rows that are nearly constant.
    return np.diff(x, axis=1) @ (i * (N - i)).astype(np.float64) / (N * x.sum(axis=1))


@METRICS.register("cv")
def coefficient_of_variation(norms: ArrayLike) -> NDArray[np.float64]:
    """Coefficient of variation σ/μ (population) of each row, in [0, √(N − 1)]; takes and raises what `gini` does."""
    x = _scaled(norms)
    return x.std(axis=1) / x.mean(axis=1)


@METRICS.register("kurtosis")
def kurtosis(norms: ArrayLike) -> NDArray[np.float64]:
    """Excess kurtosis `m₄/m₂² − 3` (population) of each row; takes and raises what `gini` does.

    A row whose entries are all equal has no variance to divide by: `UndefinedError`.
    """
    x = _scaled(norms)
    constant = np.flatnonzero(x.min(axis=1) == x.max(axis=1))
    if constant.size:
        raise UndefinedError(int(constant[0]), "all norms are equal, so its kurtosis is undefined; use gini or cv")
    deviation = x - x.mean(axis=1, keepdims=True)
    # Powers of deviations near 1e-16 are far from float64's best range; the ratio does not mind the scale.
    deviation /= np.abs(deviation).max(axis=1, keepdims=True)
    square = deviation**2
    return (square**2).mean(axis=1) / square.mean(axis=1) ** 2 - 3.0


def _scaled(norms: ArrayLike) -> NDArray[np.float64]:
    """The checked norms as float64, each row divided by its largest entry, so that no sum or power over- or underflows."""
    x = np.asarray(norms, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] < 2:
        raise DataError(f"norms have shape {list(x.shape)}; expected [trajectories, matrices] with at least 2 matrices")
    for bad, what in ((~np.isfinite(x), "is not finite"), (x < 0, "is negative")):
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise UndefinedError(int(row), f"norm {x[row, column]} of matrix {column} {what}; probe this trajectory again")
    largest = x.max(axis=1, keepdims=True, initial=0.0)
    zero = np.flatnonzero(largest == 0)
    if zero.size:
        raise UndefinedError(int(zero[0]), "all norms are zero, so it has no concentration; leave it out of the corpus")
    return x / largest
