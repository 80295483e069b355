"""What trajectories can be ranked by: each metric of concentration, beside what the probe stored."""

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from gradprism.concentration import METRICS
from gradprism.errors import ConfigError, DataError
from gradprism.probing.store import ProbeStore, Shard

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


def _metrics(shard: Shard, scales: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Each metric of each row, float64 `[k, metrics]`."""
    step = max(1, _ENTRIES // shard.norms.shape[1])
    blocks = []
    for start in range(0, len(shard.norms), step):
        norms = shard.norms[start : start + step].astype(np.float64)
        if scales is not None:
            norms *= scales
        try:
            blocks.append(np.column_stack([metric(norms, None) for metric in METRICS.values()]))
        except DataError:  # once more, with names that only an error needs
            names = [f"trajectory {id!r}" for id in shard.columns["id"][start : start + step].to_pylist()]
            for metric in METRICS.values():
                metric(norms, names)
            raise
    return np.concatenate([np.empty((0, len(METRICS))), *blocks])
