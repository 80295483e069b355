"""Does a probe's split hold when the norms are scaled otherwise, when half of the layers are read, or when the corpus is probed in
another way?"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradprism.concentration import METRICS, OWN_METRICS, Grouped
from gradprism.probing.pass_scores import PASS_SCORES, RANKING
from gradprism.probing.result import Probe
from gradprism.probing.scores import NORMALISATIONS, View, unit_groups
from gradprism.routing.agreement import Agreement, agreement
from gradprism.routing.audit import Agreements, Audit, Cost, ProbeAgreement
from gradprism.routing.comparison import compare_scores
from gradprism.routing.directions import diversity
from gradprism.routing.policies import FROM_PASS_RATES, PolicyContext, policy_scores
from gradprism.routing.routes import Routes, route
from gradprism.routing.scoreboard import ScoreComparison
from gradprism.routing.split import metrics_with, to_side
from gradprism.runtime.errors import ConfigError, DataError

# What a probe of the same corpus may have been taken with otherwise.
CONDITIONS = ("model", "weights_sha256", "dtype", "context_length", "template_sha256", "corpus_sha256")
# What a probe measures beside the norms, which is compared as the scores are.
_PLAIN = ("loss", "l2", "n_tokens", "n_response_tokens", "n_turns")
# Concentration needs some norms: of two, kurtosis is always −2.
_FEWEST_UNITS = 3
_LAYER_PAIRS = (
    ("first half", "second half"),
    ("first half", "all layers"),
    ("second half", "all layers"),
    ("even layers", "odd layers"),
)


def audit(
    probe: Probe | str | Path,
    metric: str = "gini",
    *,
    policy: str = "concentration",
    normalise: str = "none",
    seed: int = 0,
    pass_rates: str | Path | Mapping[str, float] | None = None,
    target: Probe | str | Path | None = None,
    compare: Probe | str | Path | Sequence[Probe | str | Path] = (),
    hours: tuple[float, float] | None = None,
    all_scores: bool = True,
) -> Audit:
    """Audits the median split of a complete probe: `Routes.audit`, and how stable the split is.

    Agreements are also those of the metric under each normalisation, of the metric read from halves of the layers, and of the policy's
    score with that of the probes to compare (one or more), matched by trajectory id. `hours` of RL on everything and of SFT and RL as
    routed are set against what the probe took. With `all_scores` every metric of this package, every plain measure and what pass rates give
    are compared with each other: 100,000 trajectories take some 15 seconds for 25 scores.

    Where the probe has the score `sketch`, `diversity` says over how many directions the gradients of all and of each side are spread.

    Raises what `route` does, `DataError` for a probe to compare that shares fewer than two trajectories, and where the probe does not
    tell its time.
    """
    if isinstance(compare, Probe | str | Path):
        compare = (compare,)
    probe, *others = (one if isinstance(one, Probe) else Probe.load(one) for one in (probe, *compare))
    if policy == "target" and others:
        raise ConfigError(
            "compare: a target's direction is of one model, and none is known of the others; compare by another policy"
        )
    cost = None if hours is None else _cost(probe, *hours)
    routes = route(probe, metric, policy=policy, normalise=normalise, seed=seed, pass_rates=pass_rates, target=target)
    found, notes = routes.audit(), []
    views = {**_normalisations(probe, metric, notes), **_layers(probe, metric, normalise, notes)}
    scores = dict(zip(views, probe.views(list(views.values())).T, strict=True)) | {"all layers": routes.frame[metric].to_numpy()}
    labels = _labels(others)
    context = PolicyContext(metric, seed)
    return found.model_copy(
        update={
            "agreement": Agreements(
                metrics=found.agreement.metrics,
                normalisations=_between(itertools.combinations(NORMALISATIONS, 2), scores, notes),
                layers=_between(_LAYER_PAIRS, scores, notes),
                probes={
                    label: _with_probe(routes.frame, probe, other, other.measures(normalise, metrics_with(metric)), policy, context)
                    for label, other in zip(labels, others, strict=True)
                },
            ),
            "cost": cost,
            "diversity": _diversity(probe, routes) if "sketch" in probe.manifest.scores else {},
            "scores": _compared(probe, routes, dict(zip(labels, others, strict=True)), notes) if all_scores else None,
            "notes": tuple(notes),
            "warnings": (*found.warnings, *([cost.warning] if cost and cost.warning else [])),
        }
    )


def _compared(probe: Probe, routes: Routes, others: Mapping[str, Probe], notes: list[str]) -> ScoreComparison:
    """The comparison of all scores that the probe has, with themselves in the other probes, whatever of them those have."""
    made, tasks = routes.routing, routes.tasks
    table = score_table(probe, made.metric, made.normalise)
    if "pass_rate" in routes.frame.columns:
        rates = routes.frame["pass_rate"].to_numpy().astype(np.float64)
        table = table.with_columns(**{policy: pl.Series(of(rates)) for policy, of in FROM_PASS_RATES.items()})
    if "target_cosine" in routes.frame.columns:
        table = table.with_columns(routes.frame["target_cosine"])
    empty = [name for name in table.columns if name != "id" and table[name].fill_nan(None).null_count() == len(table)]
    notes += [f"{name}: is not defined for any trajectory" for name in empty]
    groupings = {} if tasks is None else {name: tasks[name] for name in ("task_type", "source")}
    theirs = {label: score_table(other, made.metric, made.normalise) for label, other in others.items()}
    return compare_scores(table, groupings, theirs, seed=made.seed)


def score_table(probe: Probe, metric: str = "gini", normalise: str = "none") -> pl.DataFrame:
    """`id`, the metrics, scores of the pass and plain measures that a probe has; metrics between layers or kinds where it has several."""
    groups = {by: codes.max(initial=0) for by, codes in unit_groups(probe.units).items()}
    names = [name for name in OWN_METRICS if not isinstance(thing := METRICS[name], Grouped) or groups[thing.by]]
    names = metrics_with(metric, *names, *(name for name in RANKING if name in probe.manifest.scores))
    return probe.measures(normalise, names, strict=False).select("id", *names, *_PLAIN)


def _diversity(probe: Probe, routes: Routes) -> dict[str, float | None]:
    """The diversity of the gradients of all trajectories, and of those that go to each side."""
    sketches = probe.pass_scores("sketch")
    return {
        "all": diversity(sketches),
        **{side: diversity(sketches[to_side(routes.frame["route"], side)]) for side in ("sft", "rl")},
    }


def _labels(probes: Sequence[Probe]) -> list[str]:
    """The names of the probes' folders, their paths where names are equal, and numbers for those that have none."""
    names = [f"in memory {number}" if one.folder is None else one.folder.resolve().name for number, one in enumerate(probes, 1)]
    return [name if names.count(name) == 1 else str(one.folder) for name, one in zip(names, probes, strict=True)]


def _place(probe: Probe) -> str:
    return "the probe in memory" if probe.folder is None else str(probe.folder)


def _cost(probe: Probe, full_rl_hours: float, routed_hours: float) -> Cost:
    seconds = probe.usage.wall_seconds
    if not seconds:
        raise DataError(f"{_place(probe)}: tells no time that the probe took; leave the costs out")
    return Cost(probe_seconds=seconds, saved_seconds=3600 * (full_rl_hours - routed_hours))


def _normalisations(probe: Probe, metric: str, notes: list[str]) -> dict[str, View]:
    if metric in PASS_SCORES:
        notes.append(f"no comparison of normalisations: {metric} is not made of norms")
        return {}
    views = {}
    for name in NORMALISATIONS:
        try:
            views[name] = View(metric, probe.unit_scales(name))
        except ConfigError as error:  # there is nothing to divide by
            notes.append(f"no comparison of normalisations with {name}: {error}")
    return views


def _layers(probe: Probe, metric: str, normalise: str, notes: list[str]) -> dict[str, View]:
    """Views of the units of half of the layers; of an odd number of layers, the second half has one more."""
    if metric in PASS_SCORES and PASS_SCORES[metric].stores != "units":
        notes.append(f"no comparison of layers: {metric} is not made of matrices")
        return {}
    layer = np.array([unit.layer for unit in probe.units])
    layers = np.unique(layer)
    place = np.searchsorted(layers, layer)
    first, even = place < len(layers) // 2, place % 2 == 0
    parts = {"first half": first, "second half": ~first, "even layers": even, "odd layers": ~even}
    if min(part.sum() for part in parts.values()) < _FEWEST_UNITS:
        notes.append(f"no comparison of layers: half of the {len(layers)} has fewer than {_FEWEST_UNITS} matrices")
        return {}
    scales = probe.unit_scales(normalise)
    return {name: View(metric, scales, np.flatnonzero(part)) for name, part in parts.items()}


def _between(pairs: Iterable[tuple[str, str]], scores: Mapping[str, NDArray[np.float64]], notes: list[str]) -> dict[str, Agreement]:
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
    ours: pl.DataFrame, probe: Probe, other: Probe, theirs: pl.DataFrame, policy: str, context: PolicyContext
) -> ProbeAgreement:
    """Agreement of the policy's scores with those of another probe, both over the trajectories that they share."""
    if "pass_rate" in ours.columns:
        theirs = theirs.join(ours.select("id", "pass_rate"), on="id")
    ours = ours.join(theirs.select("id"), on="id", how="semi", maintain_order="left")
    if len(ours) < 2:
        raise DataError(f"{_place(other)}: shares {len(ours)} trajectories with {_place(probe)}; compare probes of the same corpus")
    theirs = ours.select("id").join(theirs, on="id", maintain_order="left")
    agreed = agreement(*(policy_scores(policy, table, context) for table in (ours, theirs)))
    here, there = ([getattr(one.manifest, key) for key in CONDITIONS] for one in (probe, other))
    differs = {key: (a, b) for key, a, b in zip(CONDITIONS, here, there, strict=True) if a != b}
    return ProbeAgreement(**agreed.model_dump(), shared=len(ours), differs=differs)
