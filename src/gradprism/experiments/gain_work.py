"""The work of measuring gain: scoring and grouping the corpus, training on one group, and the outcomes of a model."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradprism.evaluation.agents import ModelAgent
from gradprism.evaluation.run import evaluate
from gradprism.experiments.data_work import corpus_of, pass_rates_file, probe_folder
from gradprism.experiments.gain_stages import Grouped, Groups, Measure, MeasureRl, MeasureSft, Outcomes, PassScores, Scored
from gradprism.experiments.gain_statistics import similar_groups
from gradprism.experiments.model_work import load
from gradprism.experiments.stage import Outcome, Store
from gradprism.probing.pass_scores import RANKING
from gradprism.probing.result import Probe
from gradprism.routing.directions import target_cosines
from gradprism.routing.policies import FROM_PASS_RATES, PolicyContext, policy_scores
from gradprism.routing.routes import route
from gradprism.routing.stability import score_table
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.folders import remove
from gradprism.runtime.usage import Usage
from gradprism.training.held_out import held_out_loss
from gradprism.training.rl import train_rl
from gradprism.training.sft import train_sft
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import Renderer


def group_corpus(stage: Groups, folder: Path, store: Store) -> Outcome[Grouped]:
    """Scores all trajectories, and puts those with similar scores together."""
    probe = Probe.load(probe_folder(stage.probe, store))
    if stage.count > len(probe):
        raise ConfigError(f"gain.groups {stage.count}: the corpus has {len(probe)} trajectories; give fewer groups")
    frame = route(probe, pass_rates=pass_rates_file(stage.pass_rates, store)).frame
    table = score_table(probe).drop("id")
    rates = frame["pass_rate"].to_numpy().astype(np.float64)
    added = {policy: of(rates) for policy, of in FROM_PASS_RATES.items()}
    added["uncertainty"] = policy_scores("uncertainty", frame, PolicyContext())
    table = table.with_columns(**{name: pl.Series(values) for name, values in added.items()})
    values = {name: table[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in table.columns}
    varied = np.column_stack([column for column in values.values() if np.isfinite(column).any()])
    found = Grouped(
        ids=probe.ids,
        groups=similar_groups(varied, stage.count),
        scores={name: _known(column) for name, column in values.items()},
        parameters=probe.manifest.parameters,
    )
    return Outcome(found, f"{len(probe)} trajectories, {len(values)} scores")


def score_pass(stage: PassScores, folder: Path, store: Store) -> Outcome[Scored]:
    """Reads the scores of the pass, and compares directions with the target's."""
    probe = Probe.load(probe_folder(stage.probe, store))
    names = [name for name in RANKING if name in probe.manifest.scores]
    table = probe.measures(metrics=names, strict=False)
    scores = {name: _known(table[name].cast(pl.Float64).fill_null(np.nan).to_numpy()) for name in names}
    if stage.target is not None:
        scores["target_cosine"] = _known(target_cosines(probe, Probe.load(probe_folder(stage.target, store))))
    return Outcome(Scored(ids=probe.ids, scores=scores), f"{', '.join(scores)} of {len(probe)} trajectories")


def _known(values: NDArray[np.float64]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def measure_base(stage: Measure, folder: Path, store: Store) -> Outcome[Outcomes]:
    """Measures the base as it is."""
    model, renderer = load(stage.base, None, store)
    return _measured(stage, model, renderer, store, Usage())


def measure_sft(stage: MeasureSft, folder: Path, store: Store) -> Outcome[Outcomes]:
    """Trains the base by SFT on the group, and measures it."""
    model, renderer = load(stage.base, None, store, "cpu")
    length, device = stage.base.context_length, stage.base.device
    summary = train_sft(
        model, renderer.tokenizer, _group(stage, store), stage.config, out=folder / "model", context_length=length, device=device
    )
    found = _measured(stage, model, renderer, store, summary.usage)
    remove(folder / "model")
    return found


def measure_rl(stage: MeasureRl, folder: Path, store: Store) -> Outcome[Outcomes]:
    """Trains the base by RL on the group's tasks, and measures it."""
    environment = stage.world.make()
    tasks = [environment.task(trajectory.task) for trajectory in _group(stage, store)]
    model, renderer = load(stage.base, None, store, "cpu")
    workers, device = stage.world.workers, stage.base.device
    summary = train_rl(
        model, renderer.tokenizer, environment, tasks, stage.config, out=folder / "model", workers=workers, device=device
    )
    found = _measured(stage, model, renderer, store, summary.usage)
    remove(folder / "model")
    return found


def _group(stage: MeasureSft | MeasureRl, store: Store) -> list[Trajectory]:
    corpus = list(corpus_of(stage.groups.probe.corpus, store))
    grouped = store.found(stage.groups)
    by_id = {trajectory.id: trajectory for trajectory in corpus}
    return [by_id[grouped.ids[row]] for row in grouped.groups[stage.group]]


def _measured(stage: Measure, model: Any, renderer: Renderer, store: Store, used: Usage) -> Outcome[Outcomes]:
    played = evaluate(ModelAgent(model, renderer.tokenizer), stage.world.make(), stage.evaluation, workers=stage.world.workers)
    found = Outcomes(
        loss=held_out_loss(model, renderer, corpus_of(stage.demonstrations, store)).loss,
        success=float(np.mean([episode.success for episode in played.episodes])),
        score=float(np.mean([episode.score for episode in played.episodes])),
    )
    line = f"loss {found.loss:.3f}, success {100 * found.success:.1f} %, score {100 * found.score:.1f}"
    return Outcome(found, line, used + played.usage)
