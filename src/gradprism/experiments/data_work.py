"""The work of stages that need no model: collecting, routing, auditing."""

from pathlib import Path

import numpy as np
import polars as pl
from pydantic import BaseModel

from gradprism.environments.demonstrations import collect
from gradprism.experiments import stages
from gradprism.experiments.results import Agreement, MetricAudit, Part, Routing
from gradprism.experiments.stage import Outcome, Store
from gradprism.experiments.stages import PROBE, ROUTE, Audit, Audited, Collect, Corpus, PassRates, Refresh, Route, Routed
from gradprism.probing.result import Probe
from gradprism.routing.audit import drawn_by_chance
from gradprism.routing.routes import Routes, route
from gradprism.routing.split import Routing as Made
from gradprism.routing.stability import audit
from gradprism.trajectories.corpus import Corpus as Trajectories
from gradprism.trajectories.corpus import load_corpus, write_messages_jsonl

CORPUS, PASS_RATES = "corpus.jsonl", "pass-rates.jsonl"


def corpus_of(corpus: Corpus, store: Store) -> Trajectories:
    """The whole corpus."""
    return load_corpus(store.path(corpus) / CORPUS) if isinstance(corpus, Collect) else corpus.read()


def probe_folder(probe: stages.Probe, store: Store) -> Path:
    """The probe folder of a stage."""
    return store.path(probe) / PROBE


def routes_of(stage: Route | Refresh, store: Store) -> Routes:
    """The routes of a stage."""
    return Routes.load(store.path(stage) / ROUTE)


def pass_rates_file(stage: PassRates | None, store: Store) -> Path | None:
    """The episodes of a stage, a line each."""
    return store.path(stage) / PASS_RATES if stage else None


def collect_corpus(stage: Collect, folder: Path, store: Store) -> Outcome[Part]:
    """Writes the expert's trajectories."""
    environment, wanted = stage.world.make(), stage.config
    tasks = environment.tasks(wanted.split or environment.splits[0], wanted.skip + wanted.count)[wanted.skip :]
    trajectories = collect(environment, tasks, max_steps=wanted.max_steps, workers=stage.world.workers)
    write_messages_jsonl(folder / CORPUS, trajectories)
    return Outcome(Part(), f"{len(trajectories)} of {len(tasks)} tasks solved by the expert")


def route_corpus(stage: Route, folder: Path, store: Store) -> Outcome[Routed]:
    """Writes the route folder."""
    config, rates = stage.config, pass_rates_file(stage.pass_rates, store)
    routes = route(
        probe_folder(stage.probe, store),
        config.metric,
        policy=config.policy,
        normalise=config.normalise,
        rl_share=config.rl_share,
        threshold=config.threshold,
        cuts=config.cuts,
        shares=config.shares,
        sides=config.sides,
        within=config.within,
        order=config.order,
        weights=config.weights,
        temperature=config.temperature,
        seed=stage.seed,
        pass_rates=rates,
    )
    made = routes.routing
    routes.save(folder / ROUTE, "replace")
    types = [trajectory.task.get("task_type") for trajectory in Probe.load(probe_folder(stage.probe, store)).trajectories]
    scores = _scores(routes.frame, made, types)
    found = Routed(
        n_sft=made.n_sft,
        n_rl=made.n_rl,
        n_rl_by_chance=drawn_by_chance(routes.frame, made.policy),
        n_none=made.n_none,
        n_both=made.n_both,
        scores=scores,
    )
    empty = "" if made.n_sft else "; warning: with nothing to imitate SFT leaves its model as it is"
    empty += "" if made.n_rl else "; warning: with nothing to play RL leaves its model as it is"
    return Outcome(found, f"{made}{empty}")


def _scores(table: pl.DataFrame, made: Made, types: list[str | None]) -> Routing:
    """Histograms of the sides, what goes to both apart; bins are closed on the right and end at the (first) threshold, so that none mixes
    the sides of that.

    Their width is Freedman and Diaconis's (1981), held between 10 and 60 bins over the range.
    """
    scores, route, threshold = table["score"].to_numpy(), table["route"].to_numpy(), made.threshold
    sides = ("sft", "rl", *(["none"] if made.n_none or made.n_both else []), *(["both"] if made.n_both else []))
    full = float(np.ptp(scores))
    low, high = np.percentile(scores, [25, 75])
    width = float(np.clip(2 * (high - low) / len(scores) ** (1 / 3), full / 60, full / 10)) or max(abs(threshold), 1.0) / 100
    index = np.ceil((scores - threshold) / width).astype(int) - 1
    # A threshold of the user's own may lie far from all scores.
    bins, first = int(np.ptp(index)) + 1, int(index.min())
    counts = {side: np.bincount(index[route == side] - first, minlength=bins).tolist() for side in sides}
    by_type = {
        str(name): [sum(t == name and side == s for t, s in zip(types, route, strict=True)) for side in sides]
        for name in dict.fromkeys(types)
        if name is not None
    }
    return Routing(
        metric=made.metric,
        policy=made.policy,
        threshold=threshold,
        start=threshold + first * width,
        width=width,
        **counts,
        cuts=list(made.cuts),
        task_types=by_type,
    )


def audit_probes(stage: Audit, folder: Path, store: Store) -> Outcome[Audited]:
    """Audits the probe for each metric."""
    audits = {}
    for metric in stage.metrics:
        found = audit(
            probe_folder(stage.probe, store),
            metric,
            seed=stage.seed,
            compare=[probe_folder(other, store) for other in stage.others],
            pass_rates=pass_rates_file(stage.pass_rates, store),
            all_scores=False,
        )
        pairs = found.agreement
        kinds = {"metrics": pairs.metrics, "normalisations": pairs.normalisations, "layers": pairs.layers}
        kinds["probes"] = dict(zip(stage.labels, pairs.probes.values(), strict=True))
        audits[metric] = MetricAudit(
            spearman=dict(found.spearman),
            eta_squared=found.task_type_eta_squared,
            agreement={name: _agreement(pair) for name, pair in found.split_by.items()},
            threshold_standard_error=found.threshold_standard_error,
            share_within_one_standard_error=found.share_within_one_standard_error,
            stability={f"{kind}: {label}": _agreement(pair) for kind, of in kinds.items() for label, pair in of.items()},
            warnings=list(found.warnings),
        )
    n = sum(len(audit.warnings) for audit in audits.values())
    return Outcome(Audited(audits=audits), f"{n} warnings" if n else "")


def _agreement(pair: BaseModel) -> Agreement:
    return Agreement(**pair.model_dump(include=set(Agreement.model_fields)))
