"""Concentration of a trajectory's gradient on some of the model's matrices: φ(g) for g in R^N (PRISM, arXiv 2601.07224).

Each metric maps norms `[n, N]` (one row per trajectory, one column per weight matrix) to scores `[n]`, in float64; high is concentrated.
All are invariant to the scale and to the order of a row's entries. The paper defines its three in words; the formulas here are the
population forms. The others are measures of sparsity and inequality from elsewhere, some of them between and within groups of matrices:
its layers, or its kinds of projection.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradprism.runtime.errors import DataError
from gradprism.runtime.registry import Registry

Groups = NDArray[np.intp]
GroupBy = Literal["layer", "kind"]


@dataclass(frozen=True, slots=True)
class Grouped:
    """A metric that also takes a number of each matrix's group, int `[N]`, which is equal for those of one layer, or of one kind."""

    by: GroupBy
    of: Callable[[NDArray[Any], Groups], NDArray[np.float64]]

    def __call__(self, norms: NDArray[Any], groups: Groups) -> NDArray[np.float64]:
        """The scores, `[n]`."""
        return self.of(norms, groups)


Metric = Callable[[NDArray[Any]], NDArray[np.float64]] | Grouped
METRICS: Registry[Metric] = Registry("metric")
BUILTIN = ("gini", "cv", "kurtosis")  # the paper's, which every route is told of
register_metric = METRICS.register
# The share of the matrices whose norms `top_tenth` sums, rounded up.
TOP = 10
# What a person is told of each: its formula of the norms x of N matrices with mean μ and population standard deviation σ.
FORMULAS = {
    "gini": "Σ(2i − N − 1)·x₍ᵢ₎ / (N·Σx), x in ascending order",
    "cv": "σ/μ",
    "kurtosis": "m₄/m₂² − 3; undefined for equal norms",
    "hoyer": "(√N − ‖x‖₁/‖x‖₂)/(√N − 1)",
    "participation": "1 − PR/N, PR = (Σx²)²/Σx⁴",
    "entropy": "1 − H/ln N, H = −Σp·ln p, p = x²/Σx²",
    "theil": "Σ(x/μ)·ln(x/μ)/N",
    "theil_layers": "Σ s·ln(s·N/n) over layers, of n matrices and the share s of Σx each",
    "theil_in_layers": "Σ s·T, T the Theil index within a layer; with `theil_layers` it sums to `theil`",
    "theil_kinds": "as `theil_layers`, over kinds (q, k, v, o, gate, up, down)",
    "theil_in_kinds": "as `theil_in_layers`, within kinds",
    "gini_layers": "Gini of √Σx² of each layer",
    "gini_kinds": "Gini of √Σx² of each kind",
    "top_tenth": "share of Σx that the ⌈N/10⌉ largest norms have",
}


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


@METRICS.register("hoyer")
def hoyer(norms: ArrayLike) -> NDArray[np.float64]:
    """Hoyer's sparsity `(√N − ‖x‖₁/‖x‖₂)/(√N − 1)` of each row (JMLR 5, 2004), in [0, 1]; takes and raises what `gini` does.

    As ‖x‖₁/‖x‖₂ = √N/√(1 + cv²), it orders trajectories exactly as `cv` does, and only spaces them otherwise.
    """
    root, cv = np.sqrt(np.shape(norms)[-1]), coefficient_of_variation(norms)
    length = np.sqrt(1 + cv**2)
    # 1 − 1/length without its cancellation in rows that are nearly constant.
    return root / (root - 1) * cv**2 / (length * (length + 1))


@METRICS.register("participation")
def participation(norms: ArrayLike) -> NDArray[np.float64]:
    """`1 − PR/N` with the participation ratio `PR = (Σx²)²/Σx⁴` of each row, in [0, 1 − 1/N]; takes and raises what `gini` does.

    PR is the number of matrices that equal squares would be spread over (Bell and Dean, Discuss. Faraday Soc. 50, 1970).
    """
    square = _scaled(norms) ** 2
    return square.var(axis=1) / (square**2).mean(axis=1)


@METRICS.register("entropy")
def entropy(norms: ArrayLike) -> NDArray[np.float64]:
    """`1 − H/ln N` with the entropy `H = −Σ p·ln p` of `p = x²/Σx²` of each row, in [0, 1]; takes and raises what `gini` does.

    One less Pielou's evenness (J. Theor. Biol. 13, 1966). It is the Theil index of the squares over ln N.
    """
    square = _scaled(norms) ** 2
    return _theil(square) / np.log(square.shape[1])


@METRICS.register("theil")
def theil(norms: ArrayLike) -> NDArray[np.float64]:
    """Theil index `Σ(x/μ)·ln(x/μ)/N` of each row (Theil 1967), in nats, in [0, ln N]; takes and raises what `gini` does."""
    return _theil(_scaled(norms))


def theil_parts(norms: ArrayLike, groups: Groups) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The Theil index of each row as its parts between and within `groups`, two arrays `[n]` in nats, which sum to it exactly.

    With s the share of a group's n matrices in Σx, `Σ s·ln(s·N/n)` and `Σ s·T` of the groups' own indices T (Shorrocks, Econometrica 48,
    1980). Takes norms as `gini` does, and the number of each matrix's group, int `[N]`.
    """
    x = _scaled(norms)
    code, size = np.unique(groups, return_inverse=True, return_counts=True)[1:]
    mean = _sums(x, groups) / size  # of each group, [n, groups]
    ratio = mean / x.mean(axis=1, keepdims=True)
    own = mean[:, code]
    inside = np.divide(x, own, out=np.ones_like(x), where=own > 0)  # a group of zeros has no share
    return (_surplus(ratio) * size).sum(axis=1) / x.shape[1], (ratio[:, code] * _surplus(inside)).mean(axis=1)


def gini_of_totals(norms: ArrayLike, groups: Groups) -> NDArray[np.float64]:
    """Gini coefficient of the gradient norms of whole groups, `√Σx²` over a group's matrices; takes what `theil_parts` does.

    Raises what `gini` does, and `DataError` for fewer than two groups.
    """
    squares = _sums(_scaled(norms) ** 2, groups)
    if squares.shape[1] < 2:
        raise DataError("all matrices are of one layer or kind: there is nothing to compare; choose a metric of single matrices")
    return gini(np.sqrt(squares))


METRICS.register("theil_layers")(Grouped("layer", lambda norms, groups: theil_parts(norms, groups)[0]))
METRICS.register("theil_in_layers")(Grouped("layer", lambda norms, groups: theil_parts(norms, groups)[1]))
METRICS.register("theil_kinds")(Grouped("kind", lambda norms, groups: theil_parts(norms, groups)[0]))
METRICS.register("theil_in_kinds")(Grouped("kind", lambda norms, groups: theil_parts(norms, groups)[1]))
METRICS.register("gini_layers")(Grouped("layer", gini_of_totals))
METRICS.register("gini_kinds")(Grouped("kind", gini_of_totals))


@METRICS.register("top_tenth")
def top_tenth(norms: ArrayLike) -> NDArray[np.float64]:
    """Share of Σx of each row that its ⌈N/10⌉ largest entries have, in [⌈N/10⌉/N, 1]; takes and raises what `gini` does.

    One less the Lorenz curve (Lorenz 1905) at nine tenths, as of incomes.
    """
    x = _scaled(norms)
    k = -(-x.shape[1] // TOP)
    return np.partition(x, -k, axis=1)[:, -k:].sum(axis=1) / x.sum(axis=1)


# Those of this package, in the order in which they are shown.
OWN_METRICS = (
    *(*BUILTIN, "hoyer", "participation", "entropy", "theil", "top_tenth"),
    *("theil_layers", "theil_in_layers", "theil_kinds", "theil_in_kinds", "gini_layers", "gini_kinds"),
)


def _sums(x: NDArray[np.float64], groups: Groups) -> NDArray[np.float64]:
    """Sums over each group, `[n, groups]`; not by a matrix product, whose last digit depends on where the memory lies."""
    order = np.argsort(groups, kind="stable")
    return np.add.reduceat(x[:, order], np.unique(groups[order], return_index=True)[1], axis=1)


def _theil(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return _surplus(x / x.mean(axis=1, keepdims=True)).mean(axis=1)


def _surplus(ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """`r·ln r − r + 1` of ratios to a mean. Their mean of 1 makes the last two cancel in a sum; with them no term is negative, so that
    nothing cancels in rows that are nearly constant."""
    less = ratio - 1
    return ratio * np.log1p(less, out=np.zeros_like(less), where=less > -1) - less


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
