"""What trajectories can be ranked by: each metric of concentration, beside what the probe stored."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from gradprism.concentration import METRICS, Metric
from gradprism.probing.store import ProbeStore, Shard
from gradprism.runtime.errors import ConfigError, DataError

NORMALISATIONS = ("none", "per_parameter", "per_weight_norm")
# Norms are measured so many at a time, which a processor's second-level cache holds with what is made of them.
_ENTRIES = 1 << 14


def measure(store: ProbeStore, normalise: str = "none") -> pl.DataFrame:
    """A complete probe's columns in the corpus's order, with every metric; `l2` is the raw gradient's norm, however `normalise`.

    Rows are measured shard by shard, on all cores, so memory does not grow with the number of units. Raises `ConfigError` as
    `unit_scales` does, and `DataError` for a probe that is not complete and for norms that have no concentration, naming the
    trajectory.
    """
    scales = unit_scales(store.manifest, normalise)
    codes, columns, values = [], [], []
    for shard in store.scan("whole", lambda shard: _metrics(shard, scales)):
        codes.append(shard.codes)
        columns.append(shard.columns)
        values.append(shard.norms)
    order = np.argsort(np.concatenate(codes))
    table = pl.DataFrame(pl.from_arrow(pa.concat_tables(columns).take(pa.array(order)))).drop("index", "turn")
    metrics = np.concatenate(values)[order]
    return table.with_columns(**{name: pl.Series(metrics[:, k]) for k, name in enumerate(METRICS)})


class View(NamedTuple):
    """One way to score norms: `metric` of the units at the positions `units` (None for all), times `scales` `[N]` (None for 1)."""

    metric: str
    scales: NDArray[np.float64] | None = None
    units: NDArray[np.intp] | None = None


def measure_views(store: ProbeStore, views: Sequence[View]) -> NDArray[np.float64]:
    """Each view's scores, float64 `[n, views]`, rows in the corpus's order, from one pass over the norms.

    NaN where a row's units have no concentration: all of their norms are zero, or for kurtosis equal. Raises `DataError` for a probe
    that is not complete.
    """
    codes, values = [], []
    for shard in store.scan(
        "whole", lambda shard: _blocks(shard, lambda norms, _: [_view(norms, view) for view in views], len(views))
    ):
        codes.append(shard.codes)
        values.append(shard.norms)
    return np.concatenate(values)[np.argsort(np.concatenate(codes))]


def unit_scales(manifest: dict[str, Any], normalise: str) -> NDArray[np.float64] | None:
    """What each unit's norm is multiplied by, float64 `[N]`, or None for `none`, the paper's choice.

    `per_parameter`: 1/√(number of parameters); `per_weight_norm`: 1/‖W‖. Raises `ConfigError` for another choice, and where the
    probe's manifest does not say what it needs.
    """
    if normalise not in NORMALISATIONS:
        raise ConfigError(f"normalise {normalise!r}: choose one of {', '.join(NORMALISATIONS)}")
    if normalise == "none":
        return None
    key = "n_parameters" if normalise == "per_parameter" else "weight_norms"
    sizes = manifest.get(key)
    if sizes is None:
        raise ConfigError(f"normalise {normalise}: the probe's manifest.json has no {key!r}; probe again, or choose none")
    for unit, size in zip(manifest["units"], sizes, strict=True):
        if not size:
            why = "its weights could not be read when it was probed" if size is None else "its weights are zero"
            raise ConfigError(f"normalise {normalise}: {unit} has no size to divide by ({why}); choose none or per_parameter")
    numbers = np.array(sizes, dtype=np.float64)
    return 1 / (np.sqrt(numbers) if normalise == "per_parameter" else numbers)


def split_table(measures: pl.DataFrame, score: NDArray[np.float64], cut: float) -> pl.DataFrame:
    """The table of a split: `id`, `score`, `rank` (from 1), `margin` (score − cut), `route` (rl above the cut), and the measures."""
    rank = np.empty(len(score), dtype=np.int64)
    rank[np.argsort(score, kind="stable")] = np.arange(1, len(score) + 1)
    return measures.select("id").with_columns(
        *(pl.Series(name, values) for name, values in (("score", score), ("rank", rank), ("margin", score - cut))),
        pl.Series("route", np.where(score > cut, "rl", "sft").tolist()),
        *(measures[name] for name in measures.columns if name != "id"),
    )


def _metrics(shard: Shard, scales: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Each metric of each row, float64 `[k, metrics]`."""

    def of_block(norms: NDArray[np.float64], rows: slice) -> list[NDArray[np.float64]]:
        if scales is not None:
            norms *= scales
        try:
            return [metric(norms, None) for metric in METRICS.values()]
        except DataError:  # once more, with names that only an error needs
            names = [f"trajectory {id!r}" for id in shard.columns["id"][rows].to_pylist()]
            for metric in METRICS.values():
                metric(norms, names)
            raise

    return _blocks(shard, of_block, len(METRICS))


def _blocks(
    shard: Shard, compute: Callable[[NDArray[np.float64], slice], list[NDArray[np.float64]]], width: int
) -> NDArray[np.float64]:
    """What `compute` makes of the shard's norms as float64, `width` arrays `[k]` side by side, a block of rows at a time."""
    step = max(1, _ENTRIES // shard.norms.shape[1])
    blocks = [np.empty((0, width))]
    for start in range(0, len(shard.norms), step):
        rows = slice(start, start + step)
        blocks.append(np.column_stack(compute(shard.norms[rows].astype(np.float64), rows)))
    return np.concatenate(blocks)


def _view(norms: NDArray[np.float64], view: View) -> NDArray[np.float64]:
    """A view's scores of a block, `[k]`."""
    if view.scales is not None:
        norms = norms * view.scales
    if view.units is not None:
        norms = norms[:, view.units]
    metric = METRICS[view.metric]
    try:
        return metric(norms, None)
    except DataError:
        return np.concatenate([_or_nan(metric, row) for row in norms[:, None]])


def _or_nan(metric: Metric, row: NDArray[np.float64]) -> NDArray[np.float64]:
    try:
        return metric(row, None)
    except DataError:
        return np.array([np.nan])
