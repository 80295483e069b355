"""The work of stages that load the model: probing, pass rates, both trainings, refreshes, evaluation and the loss on demonstrations."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Environment, Task
from gradprism.evaluation.agents import ModelAgent
from gradprism.evaluation.run import evaluate
from gradprism.experiments.data_work import PASS_RATES, corpus_of, probe_folder, routes_of
from gradprism.experiments.refresh import RefreshEvery, remaining, reroute
from gradprism.experiments.results import Ends, HeatMap, Part, Point, TrainingStep
from gradprism.experiments.results import Task as EvaluatedTask
from gradprism.experiments.stage import Outcome, Store
from gradprism.experiments.stages import (
    PROBE,
    Base,
    Corpus,
    Evaluate,
    Evaluated,
    HeldOutLoss,
    Imitated,
    Moved,
    PassRates,
    PassRatesOf,
    Probe,
    Probed,
    Refresh,
    Rl,
    Route,
    Sft,
    Trained,
)
from gradprism.models import load_model
from gradprism.probing import api, result
from gradprism.rollouts.player import Player
from gradprism.runtime.errors import ModelError
from gradprism.runtime.files import write_jsonl
from gradprism.runtime.progress import Progress
from gradprism.runtime.usage import Usage
from gradprism.training.folder import save_model
from gradprism.training.held_out import held_out_loss
from gradprism.training.rl import train_rl
from gradprism.training.sft import train_sft
from gradprism.trajectories.rendering import Renderer, load_tokenizer


def load(base: Base, model: Sft | Rl | None, store: Store, device: str | None = None) -> tuple[Any, Renderer]:
    """The checkpoint of a stage, or the base; the template and its options are the base model's throughout."""
    path = str(store.path(model)) if model else base.path
    renderer = Renderer(load_tokenizer(path, base.chat), base.context_length)
    return load_model(path, base.dtype, device or base.device), renderer


def probe_corpus(stage: Probe, folder: Path, store: Store) -> Outcome[Probed]:
    """Probes the corpus."""
    model, renderer = load(stage.base, stage.model, store)
    probe = api.probe(
        model,
        renderer.tokenizer,
        corpus_of(stage.corpus, store),
        out=folder / PROBE,
        context_length=stage.base.context_length,
        batch_tokens=stage.batch_tokens,
        scores=stage.scores,
        launcher="here",
    )
    output = model.get_output_embeddings().weight
    found = Probed(
        trajectories=len(probe),
        parameters=probe.manifest.parameters,
        matmul=sum(unit.n_parameters or 0 for unit in probe.units) + output.numel(),
        heat_map=_heat_map(probe),
    )
    speed = f"{probe.run.trajectories_per_second:.1f} trajectories per second" if probe.run else ""
    return Outcome(found, speed, probe.usage, _earlier(probe))


def _earlier(probe: result.Probe) -> Usage:
    return probe.run.earlier if probe.run else Usage()


def _heat_map(probe: result.Probe) -> HeatMap:
    means = dict(zip(((unit.layer, unit.kind) for unit in probe.units), probe.mean_norms.tolist(), strict=True))
    layers, kinds = sorted({layer for layer, _ in means}), list(dict.fromkeys(kind for _, kind in means))
    return HeatMap(layers=layers, kinds=kinds, mean_norms=[[means.get((layer, kind)) for kind in kinds] for layer in layers])


def play_pass_rates(stage: PassRates, folder: Path, store: Store) -> Outcome[Part]:
    """Plays every task of the corpus, and writes who succeeded, one line per episode."""
    environment = stage.world.make()
    tasks = [task for task in tasks_of(stage.corpus, store, environment) for _ in range(stage.rollouts)]
    model, renderer = load(stage.base, stage.model if isinstance(stage, PassRatesOf) else None, store)
    with SessionPool(environment, stage.world.workers) as pool, Progress("pass rates", len(tasks)) as progress:
        player = Player(model, renderer, pool, stage.play)
        episodes = player.play(tasks, stage.seed, lambda _: progress.advance(1))
    write_jsonl(folder / PASS_RATES, ({"id": e.task.id, "success": e.success} for e in episodes))
    won = sum(e.success for e in episodes)
    return Outcome(Part(), f"{100 * won / len(episodes):.1f} % succeed", player.used)


def tasks_of(source: Corpus | Route | Refresh, store: Store, environment: Environment) -> list[Task]:
    """The tasks of a corpus, or those that a route sends to RL, each once."""
    trajectories = routes_of(source, store).rl if isinstance(source, Route | Refresh) else corpus_of(source, store)
    return list({task.id: task for task in (environment.task(t.task) for t in trajectories)}.values())


def train_by_imitation(stage: Sft, folder: Path, store: Store) -> Outcome[Trained]:
    """Trains by SFT; where a route or a refresh sends nothing to SFT, the model is passed on as it is."""
    data = stage.data
    model, renderer = load(stage.base, stage.model, store, "cpu")  # the trainer places it
    trajectories = routes_of(data, store).sft if isinstance(data, Route | Refresh) else corpus_of(data, store)
    if not trajectories:
        return _passed_on(model, renderer, folder, "nothing to train on, the model is the same")
    summary = train_sft(
        model,
        renderer.tokenizer,
        trajectories,
        stage.config,
        out=folder,
        context_length=stage.base.context_length,
        device=stage.base.device,
    )
    history = _history(summary.history, "loss")
    first, last = _ends([row.loss or 0.0 for row in history])
    line = f"loss {first:.3f} → {last:.3f} on {summary.examples} trajectories"
    found = Trained(examples=summary.examples, history=history, curve=[], warnings=list(summary.warnings))
    return Outcome(found, line, summary.usage, summary.earlier)


def _passed_on(model: Any, renderer: Renderer, folder: Path, why: str) -> Outcome[Trained]:
    save_model(model, renderer.tokenizer, folder)
    return Outcome(Trained(examples=0, history=[], curve=[], warnings=[why]), why)


def _history(rows: Sequence[Mapping[str, float]], name: str) -> list[TrainingStep]:
    return [TrainingStep(step=n, **{name: row[name]}) for n, row in enumerate(rows, 1) if row.get(name) is not None]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Means of the first and the last fifth, at least one value each."""
    size = max(1, len(values) // 5)
    return sum(values[:size]) / size, sum(values[-size:]) / size


def refresh_route(stage: Refresh, folder: Path, store: Store) -> Outcome[Moved]:
    """Probes what the route left for RL on the checkpoint, and routes it again."""
    model, renderer = load(stage.base, stage.model, store)
    first, probed = routes_of(stage.first, store), stage.first.probe
    trajectories = remaining(probe_folder(probed, store), first)
    probe, moved = reroute(model, renderer, trajectories, first, folder, probed.batch_tokens)
    found = Moved(trajectories=len(probe), moved_to_sft=len(moved))
    return Outcome(found, f"{len(moved)} of {len(probe)} moved to SFT", probe.usage, _earlier(probe))


def rl_tasks(stage: Rl, store: Store, environment: Environment) -> list[Task]:
    """The tasks to play; where a refresh has left nothing, those of the first route."""
    left = tasks_of(stage.tasks, store, environment)
    return tasks_of(stage.tasks.first, store, environment) if isinstance(stage.tasks, Refresh) and not left else left


def rl_rounds(stage: Rl, played: int, store: Store, environment: Environment) -> int:
    """The rounds of RL on so many tasks: those of its settings, or the share of them that the tasks are of `share_of`."""
    if stage.share_of is None:
        return stage.config.rounds
    return max(1, round(stage.config.rounds * played / len(tasks_of(stage.share_of, store, environment))))


def train_by_rl(stage: Rl, folder: Path, store: Store) -> Outcome[Trained]:
    """Trains by RL; where a route sends nothing to RL, the model is passed on as it is."""
    environment = stage.world.make()
    tasks = rl_tasks(stage, store, environment)
    model, renderer = load(stage.base, stage.model, store, "cpu")
    if not tasks:
        return _passed_on(model, renderer, folder, "nothing to play, the model is the same")
    refresh = None
    first = stage.tasks.first if isinstance(stage.tasks, Refresh) else stage.tasks
    if stage.refresh_every and isinstance(first, Route):
        routes, ids = routes_of(first, store), {task.id for task in tasks}
        left = [t for t in remaining(probe_folder(first.probe, store), routes) if environment.task(t.task).id in ids]
        out, batch_tokens = folder / "refreshes", first.probe.batch_tokens
        refresh = RefreshEvery(stage.refresh_every, left, environment, renderer, routes, out, batch_tokens)
    summary = train_rl(
        model,
        renderer.tokenizer,
        environment,
        routes_of(stage.tasks, store).rl if isinstance(stage.tasks, Route) else tasks,  # those of a route have weights
        stage.config.shortened(rl_rounds(stage, len(tasks), store, environment)),
        out=folder,
        workers=stage.world.workers,
        device=stage.base.device,
        refresh=refresh,
    )
    history = _history(summary.history, "success")
    at_first, at_last = _ends([row.success or 0.0 for row in history])
    n = stage.config.evaluate_tasks
    curve = [
        Point(stage="rl", fraction=row["step"] / summary.steps, success=row["evaluation/success"], tasks=n)
        for row in summary.evaluations
    ]
    return Outcome(
        Trained(examples=len(tasks), history=history, curve=curve, warnings=list(summary.warnings)),
        f"success while sampling {100 * at_first:.1f} % → {100 * at_last:.1f} % on {len(tasks)} tasks",
        refresh.usage(summary.usage) if refresh else summary.usage,
        summary.earlier,
        summary.evaluation_seconds,
    )


def evaluate_model(stage: Evaluate, folder: Path, store: Store) -> Outcome[Evaluated]:
    """Plays the evaluation's tasks."""
    model, renderer = load(stage.base, stage.model, store)
    agent, environment = ModelAgent(model, renderer.tokenizer), stage.world.make()
    evaluation = evaluate(agent, environment, stage.config, out=folder / "evaluation", workers=stage.world.workers)
    of = {split: [e for e in evaluation.episodes if e.task.split == split] for split in stage.config.splits}
    found = Evaluated(
        success={split: "".join("01"[e.success] for e in chosen) for split, chosen in of.items()},
        score={split: [round(e.score, 4) for e in chosen] for split, chosen in of.items()},
        tasks={split: [EvaluatedTask(id=e.task.id, task_type=e.task.task_type) for e in chosen] for split, chosen in of.items()},
        ends={
            row.split: Ends(out_of_steps=row.out_of_steps, cut_by_context=row.cut_by_context, failures=row.failures)
            for row in evaluation.rows
            if row.task_type == "all"
        },
        parts={row.split: row.parts for row in evaluation.rows if row.task_type == "all" and row.parts},
        remarks=list(evaluation.remarks),
    )
    return Outcome(found, evaluation.headline, evaluation.usage)


def measure_held_out_loss(stage: HeldOutLoss, folder: Path, store: Store) -> Outcome[Imitated]:
    """Measures the loss on the demonstrations."""
    model, renderer = load(stage.base, stage.model, store)
    measured = held_out_loss(model, renderer, corpus_of(stage.demonstrations, store))
    if not math.isfinite(measured.loss):
        raise ModelError(f"the loss on the held-out demonstrations is {measured.loss}: the model's numbers have diverged")
    found = Imitated(loss=measured.loss, tokens=measured.tokens, trajectories=measured.trajectories)
    cut = f"; {measured.cut:,} tokens lie past the context and are not read" if measured.cut else ""
    line = f"loss {found.loss:.3f} over {found.tokens:,} response tokens of {found.trajectories} demonstrations{cut}"
    return Outcome(found, line, measured.usage)
