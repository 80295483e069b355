"""What the stages of runs and experiments do: each reads the folders of the stages before it and writes its own.

A step is `step(config, folder, inputs)`; `inputs` are the folders that it needs, by role: `corpus` (collected trajectories), `probe`,
`pass_rates`, `route`, `tasks` (a folder with a route whose RL tasks are played), `model` (a checkpoint). Without `model` a step
works on the base model, and without a route on the whole corpus. Nothing heavy is imported until a step runs.
"""

import json
from pathlib import Path
from typing import Any

from gradprism.environments.protocol import Environment, Task
from gradprism.environments.registry import make_environment
from gradprism.experiments.config import RunConfig
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.files import atomic_write, read_json
from gradprism.trajectories.record import Trajectory

Inputs = dict[str, Path]
CORPUS, PASS_RATES = "corpus.jsonl", "pass-rates.jsonl"


def playable(config: RunConfig) -> Environment:
    """The environment."""
    return make_environment(config.environment.name, **config.environment.options)


def load(config: RunConfig, inputs: Inputs, device: str | None = None) -> tuple[Any, Any]:
    """Model and renderer of the checkpoint in role `model`, or of the base; the template is the base model's throughout."""
    from gradprism.models import load_model
    from gradprism.trajectories.rendering import Renderer, load_tokenizer

    path = str(inputs.get("model", config.model.path))
    template = Path(config.model.chat_template) if config.model.chat_template else None
    tokenizer = load_tokenizer(path, template)
    model = load_model(path, config.model.dtype, device or config.model.device)
    return model, Renderer(tokenizer, config.model.context_length)


def corpus_files(config: RunConfig, inputs: Inputs) -> list[Path]:
    """The files of the whole corpus."""
    return [inputs["corpus"] / CORPUS] if "corpus" in inputs else [Path(file) for file in config.corpus.files]


def read_corpus(config: RunConfig, inputs: Inputs) -> list[Trajectory]:
    """The whole corpus."""
    from gradprism.trajectories.readers import read_trajectories

    return read_trajectories(corpus_files(config, inputs), config.corpus.format)


def collect(config: RunConfig, folder: Path, inputs: Inputs) -> dict[str, Any]:
    """Writes the expert's trajectories of `corpus.collect`."""
    from gradprism.environments.demonstrations import collect
    from gradprism.trajectories.readers import write_messages_jsonl

    wanted, environment = config.corpus.collect, playable(config)
    if wanted is None:
        raise ConfigError("corpus.collect: is not set")
    tasks = environment.tasks(wanted.split or environment.splits[0], wanted.count)
    trajectories = collect(environment, tasks, max_steps=wanted.max_steps, workers=config.environment.workers)
    write_messages_jsonl(folder / CORPUS, trajectories)
    return {"trajectories": len(trajectories), "headline": f"{len(trajectories)} of {len(tasks)} tasks solved by the expert"}


def probe(config: RunConfig, folder: Path, inputs: Inputs) -> dict[str, Any]:
    """Probes the corpus into `probe/`."""
    from gradprism.probing.api import probe as probe_corpus
    from gradprism.trajectories.corpus import load_corpus

    model, renderer = load(config, inputs)
    run = probe_corpus(
        model,
        renderer.tokenizer,
        load_corpus(corpus_files(config, inputs), format=config.corpus.format),
        out=folder / "probe",
        context_length=config.model.context_length,
        batch_tokens=config.probe.batch_tokens,
        launcher="here",
    ).run
    assert run is not None
    # A stage that was cut short costs what all its attempts did.
    summary = run.to_json()
    for name in ("tokens_forward", "tokens_backward"):
        summary[name] += getattr(run.earlier, name)
    cost = {name: getattr(run.earlier, name) for name in ("wall_seconds", "cpu_seconds")}
    return {**summary, "earlier_cost": cost, "headline": f"{run.trajectories_per_second:.1f} trajectories per second"}


def pass_rates(config: RunConfig, folder: Path, inputs: Inputs) -> dict[str, Any]:
    """Plays every task of the corpus as RL's rollouts would, and writes who succeeded, one line an episode."""
    from gradprism.environments.pool import SessionPool
    from gradprism.rollouts.player import Player
    from gradprism.runtime.progress import Progress

    environment, rollouts, rl = playable(config), config.pass_rate.rollouts, config.rl
    rl = rl.model_copy(update={"context_length": rl.context_length or config.model.context_length})
    tasks = rl_tasks(config, environment, inputs)
    model, renderer = load(config, inputs)
    repeated = [task for task in tasks for _ in range(rollouts)]
    with SessionPool(environment, config.environment.workers) as pool, Progress("pass rates", len(repeated)) as progress:
        player = Player(model, renderer, pool, rl)
        episodes, statistics = player.play(repeated, config.seed, lambda _: progress.advance(1)), player.costs
    with atomic_write(folder / PASS_RATES) as file:
        file.writelines(json.dumps({"id": e.task.id, "success": e.success}) + "\n" for e in episodes)
    won = sum(e.success for e in episodes)
    return {
        "episodes": len(episodes),
        "successes": won,
        "tokens_forward": statistics.tokens_read,
        "tokens_generated": statistics.tokens_generated,
        "environment_steps": statistics.environment_steps,
        "headline": f"{100 * won / len(episodes):.1f} % of {len(episodes)} episodes succeed",
    }


def route(config: RunConfig, folder: Path, inputs: Inputs) -> dict[str, Any]:
    """Routes the probe into `route/`."""
    from gradprism.routing.routes import route as route_probe

    route = config.route
    routes = route_probe(
        inputs["probe"] / "probe",
        route.metric,
        policy=route.policy,
        normalise=route.normalise,
        rl_share=route.rl_share,
        threshold=route.threshold,
        seed=config.seed,
        pass_rates=inputs["pass_rates"] / PASS_RATES if "pass_rates" in inputs else None,
    )
    routes.save(folder / "route", "replace")
    routing = routes.routing
    if not routing.n_rl:
        raise ConfigError(
            f"route: nothing scores above {routing.threshold:.4g}, so RL would have no task; choose another threshold"
        )
    what = route.metric if route.policy in ("concentration", "inverse", "soft") else route.policy
    line = f"{routing.n_sft} to SFT, {routing.n_rl} to RL at {what} {routing.threshold:.4f}"
    return {"routing": routing.model_dump(), "audit": routes.audit().to_json(), "headline": line}


def sft(config: RunConfig, folder: Path, inputs: Inputs) -> dict[str, Any]:
    """Trains on the SFT set of the route, or on the whole corpus. Where nothing is routed to SFT, the model is passed on as it is."""
    from gradprism.training.folder import save_model
    from gradprism.training.sft import train_sft
    from gradprism.trajectories.readers import read_trajectories

    if "route" not in inputs:
        trajectories = read_corpus(config, inputs)
    else:
        file = inputs["route"] / "route" / "sft.jsonl"
        trajectories = read_trajectories([file]) if file.stat().st_size else []  # a refresh may move nothing
    model, renderer = load(config, inputs, "cpu")  # the trainer places it
    if not trajectories:
        save_model(model, renderer.tokenizer, folder)
        return {"trajectories": 0, "history": [], "headline": "nothing to learn, the model is the same"}
    summary = train_sft(
        model,
        renderer.tokenizer,
        trajectories,
        config.sft,
        out=folder,
        context_length=config.model.context_length,
        device=config.model.device,
    )
    first, last = (sum(row["loss"] for row in part) / len(part) for part in _ends([dict(row) for row in summary.history]))
    return {
        "trajectories": summary.examples,
        "steps": summary.steps,
        "parameters_trained": summary.parameters_trained,
        "resumed_at": summary.resumed_at,
        "tokens_forward": summary.usage.tokens_forward,
        "tokens_backward": summary.usage.tokens_backward,
        "earlier_cost": {"wall_seconds": summary.earlier.wall_seconds, "cpu_seconds": summary.earlier.cpu_seconds},
        **summary.counts,
        "history": [dict(row) for row in summary.history],
        "reused": summary.reused,
        "headline": f"loss {first:.3f} → {last:.3f} on {len(trajectories)} trajectories",
    }


def refresh(config: RunConfig, folder: Path, inputs: Inputs) -> dict[str, Any]:
    """Probes what the route left for RL on the checkpoint, and routes it again."""
    from gradprism.experiments.refresh import remaining, reroute

    model, renderer = load(config, inputs)
    first = inputs["route"] / "route"
    changes = reroute(
        model,
        renderer.tokenizer,
        remaining(inputs["probe"] / "probe", first),
        first,
        folder,
        context_length=config.model.context_length,
        batch_tokens=config.probe.batch_tokens,
    )
    return {**changes, "headline": f"{changes['moved_to_sft']} of {changes['trajectories']} moved to SFT"}


def rl_tasks(config: RunConfig, environment: Environment, inputs: Inputs) -> list[Task]:
    """The RL tasks of the route in role `tasks`, else of the one in role `route`, else every task of the corpus once.

    Where a refresh has left nothing in `tasks`, RL plays what the first route sent.
    """
    from gradprism.training.rl import read_tasks

    for role in ("tasks", "route"):
        if role in inputs and (tasks := read_tasks(inputs[role] / "route" / "rl.jsonl", environment)):
            return tasks
    return list({t.id: t for t in (environment.task(t.task) for t in read_corpus(config, inputs))}.values())


def rl_in_proportion(config: RunConfig, folder: Path, inputs: Inputs) -> dict[str, Any]:
    """`rl` with a share of `rl.rounds`, for an arm whose number of tasks was not known when those were set.

    They were set for the route's tasks, of which a refresh may leave fewer, or for the whole corpus, of which a threshold takes what is
    above it.
    """
    environment = playable(config)
    unknown = ("tasks", "route") if config.route.threshold is not None else ("tasks",)
    planned = rl_tasks(config, environment, {role: path for role, path in inputs.items() if role not in unknown})
    rounds = max(1, round(config.rl.rounds * len(rl_tasks(config, environment, inputs)) / len(planned)))
    return rl(config.model_copy(update={"rl": config.rl.model_copy(update={"rounds": rounds})}), folder, inputs)


def rl(config: RunConfig, folder: Path, inputs: Inputs) -> dict[str, Any]:
    """Trains on `rl_tasks`."""
    from gradprism.experiments.refresh import CHANGES, RefreshEvery, remaining
    from gradprism.training.rl import train_rl

    environment = playable(config)
    tasks = rl_tasks(config, environment, inputs)
    model, renderer = load(config, inputs, "cpu")
    refresh = None
    if config.refresh.every_k_steps and "route" in inputs:
        first, ids = inputs["route"] / "route", {task.id for task in tasks}
        left = [t for t in remaining(inputs["probe"] / "probe", first) if environment.task(t.task).id in ids]
        refresh = RefreshEvery(
            config.refresh.every_k_steps,
            left,
            environment,
            renderer.tokenizer,
            first,
            folder / "refreshes",
            config.model.context_length,
            config.probe.batch_tokens,
        )
    trained = train_rl(
        model,
        renderer.tokenizer,
        environment,
        tasks,
        config.rl.model_copy(update={"context_length": config.rl.context_length or config.model.context_length}),
        out=folder,
        workers=config.environment.workers,
        device=config.model.device,
        refresh=refresh,
    )
    summary: dict[str, Any] = {
        **trained.counts,
        **{name: value for name, value in trained.usage.to_json().items() if not name.endswith("_seconds")},
        "optimizer_steps": trained.steps,
        "tasks": trained.examples,
        "evaluation": list(trained.evaluations),
        "evaluation_seconds": trained.evaluation_seconds,
        "history": list(trained.history),
        "earlier_cost": {name: getattr(trained.earlier, name) for name in ("wall_seconds", "cpu_seconds")},
        "reused": trained.reused,
    }
    for path in sorted((folder / "refreshes").glob(f"*/{CHANGES}")):  # what was probed on the way
        changes = read_json(path)
        for name in ("tokens_forward", "tokens_backward"):
            summary[name] += changes[name]
    played = [row for row in summary["history"] if "success" in row]
    first_success, last_success = (sum(row["success"] for row in part) / len(part) for part in _ends(played))
    line = f"success while sampling {100 * first_success:.1f} % → {100 * last_success:.1f} % on {len(tasks)} tasks"
    return {**summary, "headline": line}


def _ends(history: list[dict[str, float]]) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """First and last fifth, at least one step each."""
    size = max(1, len(history) // 5)
    return history[:size], history[-size:]


def evaluate(config: RunConfig, folder: Path, inputs: Inputs) -> dict[str, Any]:
    """Plays the evaluation's tasks with the checkpoint, or the base, into `evaluation/`."""
    from gradprism.evaluation.agents import ModelAgent
    from gradprism.evaluation.run import evaluate

    model, renderer = load(config, inputs)
    length = config.evaluation.context_length or config.model.context_length
    evaluation = evaluate(
        ModelAgent(model, renderer.tokenizer),
        playable(config),
        config.evaluation.model_copy(update={"context_length": length}),
        out=folder / "evaluation",
        workers=config.environment.workers,
    )
    return {**evaluation.to_json(), **evaluation.usage.to_json(), "headline": evaluation.headline}
