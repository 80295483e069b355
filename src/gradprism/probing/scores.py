"""Scores of a probe's norms, shard by shard on all cores, so that memory does not grow with the number of units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradprism.concentration import METRICS, GroupBy, Grouped, Groups, UndefinedError
from gradprism.probing.folder import Kind, ProbeFolder, ProbeTable, Shard
from gradprism.probing.manifest import ProbeManifest, UnitInfo
from gradprism.probing.pass_scores import PASS_SCORES, RANKING, ranked_by
from gradprism.runtime.errors import ConfigError, DataError

NORMALISATIONS = ("none", "per_parameter", "per_weight_norm", "per_corpus_median")
# Norms are measured so many at a time, which a processor's second-level cache holds with what is made of them.
BLOCK_ENTRIES = 1 << 14
# Norms that are in memory at once for their medians: 256 MiB.
_MEDIAN_ENTRIES = 1 << 26


@dataclass(frozen=True, slots=True)
class View:
    """One way to score rows: `metric` of the norms of the units at the positions `units` (None for all), times `scales` `[N]` (None for 1).

    A score of the pass is not one of norms, and knows no scales.
    """

    metric: str
    scales: NDArray[np.float64] | None = None
    units: NDArray[np.intp] | None = None


def score(
    probe: ProbeFolder, views: Sequence[View], kind: Kind = "whole", *, columns: Sequence[str] | None = None, strict: bool = False
) -> ProbeTable:
    """The frame of a complete probe (or its `columns`), with each view's scores, float64 `[n, views]`, in the place of the norms.

    NaN where a row's units have no concentration: all of their norms are zero, or for kurtosis equal. With `strict` that raises
    `DataError`, naming the trajectory. Raises `DataError` for a probe that is not complete.
    """

    for view in views:
        if view.metric in PASS_SCORES:
            check_stored(probe.manifest, view.metric)
    groups = unit_groups(probe.manifest.unit_infos)
    of_norms = [k for k, view in enumerate(views) if view.metric not in PASS_SCORES]

    def of_shard(shard: Shard) -> NDArray[np.float64]:
        scores = np.empty((len(shard.norms), len(views)))
        step = max(1, BLOCK_ENTRIES // shard.norms.shape[1])
        for k, view in enumerate(views):
            if view.metric in PASS_SCORES:
                scores[:, k] = _stored(shard, view, strict)
        for start in range(0, len(scores) if of_norms else 0, step):
            rows = slice(start, start + step)
            norms = shard.norms[rows].astype(np.float64)
            try:
                scores[rows, of_norms] = np.column_stack([_of_view(norms, views[k], groups, strict) for k in of_norms])
            except UndefinedError as error:
                raise DataError(f"trajectory {shard.columns['id'][start + error.row].as_py()!r}: {error.why}") from None
        return scores

    return probe.read(kind, of_shard, columns)


def check_metric(name: str) -> str:
    """The name of a metric of norms or of a ranking score of the pass; raises `ConfigError`, which lists both, for another."""
    if name in RANKING:
        return name
    if name in PASS_SCORES:
        raise ConfigError(f"metric {name!r}: is a direction, which ranks nothing by itself; give --policy target and --target")
    return METRICS.checked(name)


def check_scaled(metric: str, normalise: str) -> None:
    """Raises `ConfigError` where norms are to be scaled for a score that is not made of them."""
    if metric in PASS_SCORES and normalise != "none":
        raise ConfigError(f"normalise {normalise!r}: scales norms, and {metric} is not made of them; leave it out")


def check_stored(manifest: ProbeManifest, score: str) -> None:
    """Raises `ConfigError` where a probe has not stored a score of the pass."""
    if score not in manifest.scores:
        raise ConfigError(f"{score}: the probe has not measured it; probe into a new folder with --scores {score}")


def _stored(shard: Shard, view: View, strict: bool) -> NDArray[np.float64]:
    values = shard.stored(view.metric)
    found = ranked_by(view.metric, values if view.units is None or values.ndim == 1 else values[:, view.units])
    if strict and (undefined := np.flatnonzero(~np.isfinite(found))).size:
        id = shard.columns["id"][int(undefined[0])].as_py()
        raise DataError(
            f"trajectory {id!r}: its {view.metric} is not defined: no matrix has a gradient; leave it out of the corpus"
        )
    return found


def unit_scales(probe: ProbeFolder, normalise: str) -> NDArray[np.float64] | None:
    """The factor of each unit's norm, float64 `[N]`, or None for `none`, the paper's choice.

    `per_parameter`: 1/√(number of parameters); `per_weight_norm`: 1/‖W‖; `per_corpus_median`: 1/the median of the unit's norms over the
    corpus, by which no matrix counts for its size or place. Raises `ConfigError` for another choice, and for a unit that has nothing to
    divide by.
    """
    if normalise not in NORMALISATIONS:
        raise ConfigError(f"normalise {normalise!r}: choose one of {', '.join(NORMALISATIONS)}")
    if normalise == "none":
        return None
    units = probe.manifest.unit_infos
    if normalise == "per_corpus_median":
        medians = median_norms(probe)
        if not medians.all():
            unit = units[int(np.argmin(medians))]
            raise ConfigError(f"normalise {normalise}: half of the corpus has no gradient in {unit.name}; choose another")
        return 1 / medians
    by_count = normalise == "per_parameter"
    sizes = [unit.n_parameters if by_count else unit.weight_norm for unit in units]
    for unit, size in zip(units, sizes, strict=True):
        if not size:
            why = "its weights are zero" if size == 0 and not by_count else "its weights could not be read when it was probed"
            raise ConfigError(f"normalise {normalise}: {unit.name} has no size to divide by ({why}); probe again, or choose none")
    numbers = np.array(sizes, dtype=np.float64)
    return 1 / (np.sqrt(numbers) if by_count else numbers)


def median_norms(probe: ProbeFolder) -> NDArray[np.float64]:
    """The median over the corpus of each unit's norms, float64 `[N]`; in several passes where they would not fit into memory."""
    n, N = probe.manifest.n_trajectories, len(probe.manifest.unit_infos)
    step, medians = max(1, _MEDIAN_ENTRIES // n), np.empty(N)
    for start in range(0, N, step):
        part = slice(start, start + step)
        norms = np.concatenate([shard.norms for shard in probe.scan("whole", lambda shard, part=part: shard.norms[:, part].copy())])
        medians[part] = np.median(norms, axis=0, overwrite_input=True)
    return medians


def unit_groups(units: Sequence[UnitInfo]) -> dict[GroupBy, Groups]:
    """The number of each unit's layer, and of its kind, among those that there are: two arrays int `[N]`."""
    layers, kinds = [unit.layer for unit in units], [unit.kind for unit in units]
    return {"layer": np.unique(layers, return_inverse=True)[1], "kind": np.unique(kinds, return_inverse=True)[1]}


def measure(metric: str, norms: NDArray[np.float64], groups: Mapping[GroupBy, Groups]) -> NDArray[np.float64]:
    """Scores of norms `[n, N]` by a registered metric, float64 `[n]`; `groups` is `unit_groups` of their N units.

    Raises `UndefinedError` for a row that has none, and `DataError` for a metric that gives anything but a finite number per row.
    """
    thing = METRICS[metric]
    arguments = (norms, groups[thing.by]) if isinstance(thing, Grouped) else (norms,)
    return finite_scores(METRICS.call(metric, *arguments), len(norms), f"metric {metric!r}")


def finite_scores(given: object, n: int, who: str) -> NDArray[np.float64]:
    """What `who` gives for n rows as float64 `[n]`; raises `DataError` for anything but a finite number per row."""
    try:
        scores = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{who}: gives no numbers ({error})") from None
    if scores.shape != (n,) or not np.isfinite(scores).all():
        got = "numbers that are not finite" if scores.shape == (n,) else f"shape {list(scores.shape)}"
        raise DataError(f"{who}: gives {got} for {n} rows; it must give a finite number per row")
    return scores


def _of_view(norms: NDArray[np.float64], view: View, groups: Mapping[GroupBy, Groups], strict: bool) -> NDArray[np.float64]:
    if view.scales is not None:
        norms = norms * view.scales
    if view.units is not None:
        norms, groups = norms[:, view.units], {by: codes[view.units] for by, codes in groups.items()}
    try:
        return measure(view.metric, norms, groups)
    except DataError:
        if strict:
            raise
        if len(norms) == 1:
            return np.array([np.nan])
        whole = View(view.metric)
        return np.concatenate([_of_view(row, whole, groups, strict) for row in norms[:, None]])
