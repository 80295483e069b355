"""All scores of a probe compared: how alike they rank and split, what they share with length and loss, and what else they hang on."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import hypergeom, kendalltau

from gradprism.routing.agreement import Agreement, agreement, correlation_ratio
from gradprism.routing.scoreboard import ALIKE, FEWEST, GIVEN, Common, ScoreComparison, ScoreFacts, ScorePair
from gradprism.routing.split import Value

DRAWS = 200  # weightings of the bootstrap
_Z = 1.959964  # of a 95 % interval

Matrix = NDArray[np.float64]


def compare_scores(
    table: pl.DataFrame,
    groupings: Mapping[str, pl.Series],
    others: Mapping[str, pl.DataFrame] | None = None,
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> ScoreComparison:
    """Compares the scores of a table: `id`, and a column of numbers per score, NaN or null where a trajectory has none.

    `groupings` are names of groups `[n]`, used where no name is null. `others` are such tables of other probes, matched by id. A score
    that is no number anywhere is left out. The bootstrap weighs the trajectories anew in each of `draws` (Rubin 1981) and cuts each
    score at its weighted median; an interval is at least as wide as Wilson's, so that a few trajectories that agree are no certainty.
    """
    values = {
        name: column
        for name in table.columns
        if name != "id" and not np.isnan(column := table[name].cast(pl.Float64).fill_null(np.nan).to_numpy()).all()
    }
    known = {name: ~np.isnan(column) for name, column in values.items()}
    given = tuple(name for name in GIVEN if name in values)
    found = _pairs(values, known, given, seed, draws)
    groupings = {name: column for name, column in groupings.items() if len(column) and not column.null_count()}
    n = len(table)
    facts = {
        name: ScoreFacts(
            n=int(known[name].sum()),
            n_distinct=len(np.unique(column[known[name]])),
            own=found.own[name],
            eta_squared={
                by: correlation_ratio(column[known[name]], groups.filter(pl.Series(known[name])))
                for by, groups in groupings.items()
            },
            stability={
                label: stable for label, other in (others or {}).items() if (stable := _stability(table, other, name)) is not None
            },
        )
        for name, column in values.items()
    }
    groups = _alike(list(values), found.pairs) if n >= FEWEST else None
    position = {name: i for i, name in enumerate(values)}
    first = dict(zip(values, values, strict=True)) | {name: group[0] for group in groups or () for name in group}
    order = sorted(values, key=lambda name: (-_rounded(facts[first[name]].own), position[first[name]], position[name]))
    return ScoreComparison(
        n=n,
        given=given,
        by_chance=_by_chance(n),
        eta_by_chance={by: (groups.n_unique() - 1) / max(1, n - 1) for by, groups in groupings.items()},
        scores={name: facts[name] for name in order},
        pairs=found.pairs,
        groups=groups,
    )


def _rounded(own: float | None) -> float:
    return -1.0 if own is None else round(own, 12)


class _Pairs(Value):
    pairs: Mapping[str, ScorePair]
    own: Mapping[str, float | None]


def _pairs(
    values: Mapping[str, Matrix], known: Mapping[str, NDArray[np.bool_]], given: Sequence[str], seed: int, draws: int
) -> _Pairs:
    """Every pair over the rows that both have: scores that lack the same rows go through one computation."""
    patterns: dict[bytes, list[str]] = {}
    for name in values:
        patterns.setdefault(known[name].tobytes(), []).append(name)
    pairs, own = {}, {}
    for first, second in itertools.combinations_with_replacement(patterns.values(), 2):
        names = list(dict.fromkeys([*first, *second]))
        rows = np.all([known[name] for name in (first[0], second[0], *given)], axis=0)
        block = _Block([values[name][rows] for name in names], [values[name][rows] for name in given], seed, draws)
        if first is second:
            own |= {name: _number(block.own[i]) for i, name in enumerate(names)}
        for (i, a), (j, b) in itertools.combinations(enumerate(names), 2):
            if (a in first) == (b in first) and first is not second:
                continue
            pairs[a, b] = block.pair(i, j)
    order = list(values)
    return _Pairs(
        pairs={f"{a} – {b}": pairs[a, b] if (a, b) in pairs else pairs[b, a] for a, b in itertools.combinations(order, 2)},
        own=own,
    )


class _Block:
    """The figures of k complete scores over the same n rows, each `[k, k]`, NaN where one is not defined."""

    def __init__(self, columns: Sequence[Matrix], given: Sequence[Matrix], seed: int, draws: int) -> None:
        self.n, k = len(columns[0]), len(columns)
        codes = [np.unique(column, return_inverse=True)[1] for column in columns]
        ranks = np.column_stack([_ranks(column) for column in (*columns, *given)])
        rho = _correlations(ranks)
        self.spearman = rho[:k, :k]
        self.partial, self.own = partial_correlations(rho, k, self.n)
        self.kendall = np.full((k, k), np.nan)
        for i, j in itertools.combinations(range(k), 2):
            if np.isfinite(rho[i, j]):  # the method is that of a p value, which is not asked for; of two rows one fails
                method = "asymptotic" if self.n > 2 else "exact"
                self.kendall[i, j] = kendalltau(codes[i], codes[j], method=method)[0]
        self.common, self.low, self.high = _in_common(codes, seed, draws)

    def pair(self, i: int, j: int) -> ScorePair:
        """Those of two of them."""
        share = _number(self.common[i, j])
        return ScorePair(
            n=self.n,
            spearman=_number(self.spearman[i, j]),
            kendall=_number(self.kendall[i, j]),
            partial=_number(self.partial[i, j]),
            common=None if share is None else Common(share=share, low=float(self.low[i, j]), high=float(self.high[i, j])),
        )


def _ranks(column: Matrix) -> Matrix:
    return pl.Series(column).rank("average").to_numpy()


def _correlations(columns: Matrix) -> Matrix:
    """Pearson's correlations of columns `[n, k]`; NaN for one that is constant."""
    n = len(columns)
    centred = columns - columns.mean(0) if n else columns
    size = np.sqrt((centred**2).sum(0))
    scaled = np.divide(centred, size, out=np.full_like(centred, np.nan), where=size > 0)
    return np.clip(scaled.T @ scaled, -1, 1) if n > 1 else np.full((columns.shape[1],) * 2, np.nan)


def partial_correlations(rho: Matrix, k: int, n: int) -> tuple[Matrix, Matrix]:
    """Of correlations `[k + g, k + g]` over n rows those of the first k given the last g, `[k, k]`, and the share `[k]` of each one's
    variance that these leave.

    The Schur complement of the given, which is what correlating the residuals of least squares gives. NaN where nothing is left of a column
    but rounding, and everywhere for fewer than g + 3 rows, where residuals always agree. Given columns that are constant count for nothing.
    """
    use = [g for g in range(k, len(rho)) if np.isfinite(rho[g, g])]
    if n < len(use) + 3:
        return np.full((k, k), np.nan), np.full(k, np.nan)
    onto = rho[:k, use] @ np.linalg.pinv(rho[np.ix_(use, use)], rcond=1e-10, hermitian=True)
    left = rho[:k, :k] - onto @ rho[use, :k]
    own = np.clip(left.diagonal(), 0, 1)
    own = np.where(own < 1e-9, 0.0, own)
    size = np.sqrt(np.where(own > 0, own, np.nan))
    return np.clip(left / np.outer(size, size), -1, 1), own


def _in_common(codes: Sequence[NDArray[np.intp]], seed: int, draws: int) -> tuple[Matrix, Matrix, Matrix]:
    """Share of the RL half that each two scores have in common, by their dense ranks, and the ends of its interval: three `[k, k]`."""
    n, k = len(codes[0]), len(codes)
    if n < 2:
        return tuple(np.full((3, k, k), np.nan))  # pyright: ignore[reportReturnType] # of three
    share = _shared(codes, np.ones(n))
    rng, drawn = np.random.default_rng(seed), np.empty((draws, k, k), dtype=np.float32)
    for draw in drawn:
        draw[:] = _shared(codes, rng.standard_exponential(n))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0) if draws else (share, share)
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * np.sqrt(np.clip(share * (1 - share), 0, None) / n + _Z**2 / (4 * n * n))
    return (
        share,
        np.clip(np.minimum.reduce([low, centre - half, share]), 0, 1),
        np.clip(np.maximum.reduce([high, centre + half, share]), 0, 1),
    )


def _shared(codes: Sequence[NDArray[np.intp]], weights: Matrix) -> Matrix:
    """The weight that the RL halves of each two scores have in common over the weight of one, `[k, k]`.

    A half is ⌊n/2⌋ of n of the weight. Each trajectory belongs to it by the probability with which it is drawn: 1 above the cut, 0
    below, and among equals at the cut all the same.
    """
    n = len(weights)
    half = weights.sum() * (n // 2) / n
    members = np.empty((n, len(codes)), dtype=np.float32)
    for column, code in enumerate(codes):
        at = np.bincount(code, weights)[::-1]
        tail = np.cumsum(at)
        cut = min(int(np.searchsorted(tail, half * (1 - 1e-12))), len(at) - 1)
        part = (half - (tail[cut] - at[cut])) / at[cut]
        level = len(at) - 1 - cut
        members[:, column] = np.where(code > level, 1.0, np.where(code == level, part, 0.0))
    return ((members * weights[:, None].astype(np.float32)).T @ members).astype(np.float64) / half


def _by_chance(n: int) -> Common | None:
    half = n // 2
    if not half:
        return None
    low, high = (float(hypergeom.ppf(q, n, half, half)) / half for q in (0.025, 0.975))
    return Common(share=half / n, low=low, high=high)


def _stability(table: pl.DataFrame, other: pl.DataFrame, name: str) -> Agreement | None:
    """Agreement of a score with itself in another probe; None where that has it not, or both have it for fewer than two trajectories."""
    if name not in other.columns:
        return None
    joined = table.select("id", here=pl.col(name).cast(pl.Float64)).join(
        other.select("id", there=pl.col(name).cast(pl.Float64)), on="id", maintain_order="left"
    )
    both = joined.fill_nan(None).drop_nulls()
    return agreement(both["here"].to_numpy(), both["there"].to_numpy()) if len(both) > 1 else None


def _alike(names: Sequence[str], pairs: Mapping[str, ScorePair]) -> tuple[tuple[str, ...], ...]:
    """The scores that rank alike, each with every other of its group (complete linkage), in the order of `names`."""
    if len(names) < 2:
        return ()
    distance = [1 - abs(pairs[f"{a} – {b}"].spearman or 0.0) for a, b in itertools.combinations(names, 2)]
    labels = fcluster(linkage(squareform(squareform(np.array(distance))), "complete"), 1 - ALIKE + 1e-12, "distance")
    groups = (tuple(name for name, own in zip(names, labels, strict=True) if own == label) for label in dict.fromkeys(labels))
    return tuple(group for group in groups if len(group) > 1)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
