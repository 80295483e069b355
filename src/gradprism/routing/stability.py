"""`gradprism audit`: does a probe's split hold when the norms are scaled otherwise, when half of the layers are read, or when the corpus
is probed in another way?
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradprism.concentration import METRICS
from gradprism.probing.result import Probe
from gradprism.probing.scores import NORMALISATIONS, View, unit_scales
from gradprism.routing.audit import agreement, audit, probe_pays
from gradprism.routing.measures import split_table
from gradprism.routing.policies import Policy, get_policy
from gradprism.routing.tasks import measure_tasks
from gradprism.routing.thresholds import median_threshold
from gradprism.runtime.errors import ConfigError, DataError
from gradprism.runtime.files import sha256_file

# What a probe of the same corpus may have been taken with otherwise.
CONDITIONS = ("model", "weights_sha256", "dtype", "context_length", "corpus_sha256")
# Concentration needs some norms: of two, kurtosis is always −2.
_FEWEST_UNITS = 3


def audit_probe(
    probe: Path,
    *,
    metric: str = "gini",
    policy: str = "concentration",
    normalise: str = "none",
    seed: int = 0,
    compare: Sequence[Path] = (),
    pass_rates: Path | None = None,
    full_rl_hours: float | None = None,
    routed_hours: float | None = None,
) -> dict[str, Any]:
    """Audits the median split of a complete probe folder: what `audit.audit` tells, and how stable the split is.

    Agreements, as `audit.agreement` gives them, are of the metric under each normalisation (`normalisations`), of the metric read from
    halves of the layers (`layers`), and of the policy's score with that of each probe folder in `compare`, matched by trajectory id
    (`probes`, by the folder's name, with `shared` trajectories and what `differs`: `[here, there]`). `notes` say what could not be
    computed. Hours of RL on everything and of SFT and RL as routed, both or neither, are set against what the probe took (`cost`, in
    seconds).

    Raises what `route_probe` does for probe and pass rates, `DataError` for a folder to compare that shares fewer than two
    trajectories, and `ConfigError` for hours that are no such.
    """
    if metric not in METRICS:
        raise ConfigError(f"metric {metric!r}: choose one of {', '.join(METRICS)}")
    score_of = get_policy(policy)
    store, others = Probe.load(probe), [Probe.load(folder) for folder in compare]
    cost = _cost(store, full_rl_hours, routed_hours)
    measures, task_types = measure_tasks(store, normalise, pass_rates)
    score = score_of(measures, metric, seed)
    result = audit(split_table(measures, score, median_threshold(score)), metric, policy, seed, task_types=task_types)
    notes: list[str] = []
    views = {**_normalisations(store, metric, notes), **_layers(store, metric, unit_scales(store.units, normalise), notes)}
    scores = dict(zip(views, store.views(list(views.values())).T, strict=True)) | {"all layers": measures[metric].to_numpy()}
    labels = [folder.resolve().name for folder in compare]
    result["agreement"] |= {
        "normalisations": _between(itertools.combinations(NORMALISATIONS, 2), scores, notes),
        "layers": _between(_LAYER_PAIRS, scores, notes),
        "probes": {
            label if labels.count(label) == 1 else str(other.folder): _with_probe(
                measures, store, other, score_of, metric, normalise, seed
            )
            for label, other in zip(labels, others, strict=True)
        },
    }
    warnings = result.pop("warnings")
    if cost and (warning := probe_pays(cost["probe_seconds"], cost["saved_seconds"])):
        warnings.append(warning)
    return {
        "probe": str(probe),
        "policy": policy,
        "metric": metric,
        "normalise": normalise,
        "seed": seed,
        "pass_rates_sha256": None if pass_rates is None else sha256_file(pass_rates),
        "n_trajectories": len(score),
        **result,
        "cost": cost,
        "notes": notes,
        "warnings": warnings,
    }


def _cost(store: Probe, full_rl_hours: float | None, routed_hours: float | None) -> dict[str, float] | None:
    if full_rl_hours is None and routed_hours is None:
        return None
    if full_rl_hours is None or routed_hours is None:
        raise ConfigError("--full-rl-hours and --routed-hours: give both, or neither")
    for option, hours in (("--full-rl-hours", full_rl_hours), ("--routed-hours", routed_hours)):
        if not (math.isfinite(hours) and hours >= 0):
            raise ConfigError(f"{option} {hours}: must be a number of hours, 0 or more")
    seconds = store.usage.wall_seconds
    if not seconds:
        raise DataError(f"{store.folder}: tells no time that the probe took; leave the costs out")
    return {"probe_seconds": seconds, "saved_seconds": 3600 * (full_rl_hours - routed_hours)}


def _normalisations(store: Probe, metric: str, notes: list[str]) -> dict[str, View]:
    views = {}
    for name in NORMALISATIONS:
        try:
            views[name] = View(metric, unit_scales(store.units, name))
        except ConfigError as error:  # the manifest does not tell the sizes
            notes.append(f"no comparison of normalisations with {name}: {error}")
    return views


_LAYER_PAIRS = (
    ("first half", "second half"),
    ("first half", "all layers"),
    ("second half", "all layers"),
    ("even layers", "odd layers"),
)


def _layers(store: Probe, metric: str, scales: NDArray[np.float64] | None, notes: list[str]) -> dict[str, View]:
    """Views of the units of half of the layers; of an odd number of layers, the second half has one more."""
    layer = np.array([unit.layer for unit in store.units])
    layers = np.unique(layer)
    place = np.searchsorted(layers, layer)
    first, even = place < len(layers) // 2, place % 2 == 0
    parts = {"first half": first, "second half": ~first, "even layers": even, "odd layers": ~even}
    if min(part.sum() for part in parts.values()) < _FEWEST_UNITS:
        notes.append(f"no comparison of layers: half of the {len(layers)} has fewer than {_FEWEST_UNITS} matrices")
        return {}
    return {name: View(metric, scales, np.flatnonzero(part)) for name, part in parts.items()}


def _between(pairs: Iterable[tuple[str, str]], scores: dict[str, NDArray[np.float64]], notes: list[str]) -> dict[str, Any]:
    """The agreement of each pair of scores that there are."""
    result = {}
    for a, b in pairs:
        if a not in scores or b not in scores:
            continue
        if undefined := int((np.isnan(scores[a]) | np.isnan(scores[b])).sum()):
            notes.append(
                f"no comparison of {a} and {b}: the metric is undefined there for {undefined} of {len(scores[a])} trajectories"
            )
            continue
        result[f"{a} – {b}"] = agreement(scores[a], scores[b])
    return result


def _with_probe(
    ours: pl.DataFrame, store: Probe, other: Probe, score_of: Policy, metric: str, normalise: str, seed: int
) -> dict[str, Any]:
    """How the policy's scores agree with those of another probe, both over the trajectories that they share."""
    theirs = other.measures(normalise).drop("index")
    if "pass_rate" in ours.columns:
        theirs = theirs.join(ours.select("id", "pass_rate"), on="id")
    ours = ours.join(theirs.select("id"), on="id", how="semi", maintain_order="left")
    if len(ours) < 2:
        raise DataError(f"{other.folder}: shares {len(ours)} trajectories with {store.folder}; compare probes of the same corpus")
    theirs = ours.select("id").join(theirs, on="id", maintain_order="left")
    here, there = store.manifest, other.manifest
    return {
        **agreement(score_of(ours, metric, seed), score_of(theirs, metric, seed)),
        "shared": len(ours),
        "differs": {
            key: [getattr(here, key), getattr(there, key)] for key in CONDITIONS if getattr(here, key) != getattr(there, key)
        },
    }
