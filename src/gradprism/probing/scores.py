"""Scores of a probe's norms, shard by shard on all cores, so that memory does not grow with the number of units."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from gradprism.concentration import METRICS, Metric, UndefinedError
from gradprism.probing.folder import ProbeFolder, Shard, item_of, to_frame
from gradprism.probing.manifest import UnitInfo
from gradprism.runtime.errors import ConfigError, DataError

NORMALISATIONS = ("none", "per_parameter", "per_weight_norm")
# Norms are measured so many at a time, which a processor's second-level cache holds with what is made of them.
_ENTRIES = 1 << 14
_Compute = Callable[[NDArray[np.float64], Shard, slice], list[NDArray[np.float64]]]


@dataclass(frozen=True, slots=True)
class View:
    """One way to score norms: `metric` of the units at the positions `units` (None for all), times `scales` `[N]` (None for 1)."""

    metric: str
    scales: NDArray[np.float64] | None = None
    units: NDArray[np.intp] | None = None


def measure(probe: ProbeFolder, scales: NDArray[np.float64] | None, metrics: Sequence[str]) -> pl.DataFrame:
    """A complete probe's columns in the corpus's order, with a column per metric of the norms times `scales` `[N]`.

    Raises `DataError` for a probe that is not complete and for norms that have no concentration, naming the trajectory.
    """

    def of_block(norms: NDArray[np.float64], shard: Shard, rows: slice) -> list[NDArray[np.float64]]:
        if scales is not None:
            norms *= scales
        try:
            return [_checked(name, norms) for name in metrics]
        except UndefinedError as error:
            raise DataError(f"trajectory {shard.columns['id'][rows][error.row].as_py()!r}: {error.why}") from None

    table, values = _in_order(probe, of_block, len(metrics))
    return table.with_columns(**{name: pl.Series(values[:, k]) for k, name in enumerate(metrics)})


def measure_views(probe: ProbeFolder, views: Sequence[View]) -> NDArray[np.float64]:
    """Each view's scores, float64 `[n, views]`, rows in the corpus's order, from one pass over the norms.

    NaN where a row's units have no concentration: all of their norms are zero, or for kurtosis equal. Raises `DataError` for a probe
    that is not complete.
    """

    def of_block(norms: NDArray[np.float64], shard: Shard, rows: slice) -> list[NDArray[np.float64]]:
        return [_of_view(norms, view) for view in views]

    return _in_order(probe, of_block, len(views))[1]


def measure_turns(probe: ProbeFolder, view: View) -> pl.DataFrame:
    """`index`, `turn` and the view's `score` of each assistant turn, rows by trajectory and turn; null where a turn has none.

    Raises `DataError` where turns are pending. Of the shards only 16 bytes per turn are kept.
    """

    def of_block(norms: NDArray[np.float64], shard: Shard, rows: slice) -> list[NDArray[np.float64]]:
        return [_of_view(norms, view)]

    shards = [(shard.codes, shard.norms[:, 0]) for shard in probe.scan("turns", lambda shard: _blocks(shard, of_block, 1))]
    codes, scores = map(np.concatenate, zip((np.empty(0, np.int64), np.empty(0)), *shards, strict=True))
    order = np.argsort(codes)
    index, turn = item_of(codes[order])
    return pl.DataFrame({"index": index, "turn": turn, "score": pl.Series(scores[order], nan_to_null=True)})


def unit_scales(units: Sequence[UnitInfo], normalise: str) -> NDArray[np.float64] | None:
    """The factor of each unit's norm, float64 `[N]`, or None for `none`, the paper's choice.

    `per_parameter`: 1/√(number of parameters); `per_weight_norm`: 1/‖W‖. Raises `ConfigError` for another choice, and for a unit
    whose size the probe does not tell.
    """
    if normalise not in NORMALISATIONS:
        raise ConfigError(f"normalise {normalise!r}: choose one of {', '.join(NORMALISATIONS)}")
    if normalise == "none":
        return None
    by_count = normalise == "per_parameter"
    sizes = [unit.n_parameters if by_count else unit.weight_norm for unit in units]
    for unit, size in zip(units, sizes, strict=True):
        if not size:
            why = "its weights are zero" if size == 0 and not by_count else "its weights could not be read when it was probed"
            raise ConfigError(f"normalise {normalise}: {unit.name} has no size to divide by ({why}); probe again, or choose none")
    numbers = np.array(sizes, dtype=np.float64)
    return 1 / (np.sqrt(numbers) if by_count else numbers)


def _in_order(probe: ProbeFolder, compute: _Compute, width: int) -> tuple[pl.DataFrame, NDArray[np.float64]]:
    """The probe's columns and `compute`'s arrays `[n, width]`, rows in the corpus's order."""
    shards = list(probe.scan("whole", lambda shard: _blocks(shard, compute, width)))
    order = np.argsort(np.concatenate([shard.codes for shard in shards]))
    columns = pa.concat_tables([shard.columns for shard in shards]).take(pa.array(order))
    return to_frame(columns).drop("turn"), np.concatenate([shard.norms for shard in shards])[order]


def _blocks(shard: Shard, compute: _Compute, width: int) -> NDArray[np.float64]:
    """`compute`'s `width` arrays `[k]` of the shard's norms as float64, side by side, a block of rows at a time."""
    if not width:
        return np.empty((len(shard.norms), 0))
    step = max(1, _ENTRIES // shard.norms.shape[1])
    blocks = [np.empty((0, width))]
    for start in range(0, len(shard.norms), step):
        rows = slice(start, start + step)
        blocks.append(np.column_stack(compute(shard.norms[rows].astype(np.float64), shard, rows)))
    return np.concatenate(blocks)


def _checked(name: str, norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """A metric's scores `[k]`; raises `DataError` where a metric of the user's gives anything else."""
    given = METRICS[name](norms)
    try:
        scores = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"metric {name!r}: gives no numbers ({error})") from None
    if scores.shape != norms.shape[:1] or not np.isfinite(scores).all():
        got = f"shape {list(scores.shape)}" if scores.shape != norms.shape[:1] else "numbers that are not finite"
        raise DataError(
            f"metric {name!r}: gives {got} for norms of shape {list(norms.shape)}; it must give a finite number per row"
        )
    return scores


def _of_view(norms: NDArray[np.float64], view: View) -> NDArray[np.float64]:
    if view.scales is not None:
        norms = norms * view.scales
    if view.units is not None:
        norms = norms[:, view.units]
    metric = partial(_checked, view.metric)
    try:
        return metric(norms)
    except DataError:
        return np.concatenate([_or_nan(metric, row) for row in norms[:, None]])


def _or_nan(metric: Metric, row: NDArray[np.float64]) -> NDArray[np.float64]:
    try:
        return metric(row)
    except DataError:
        return np.array([np.nan])
