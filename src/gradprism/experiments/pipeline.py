"""The PRISM pipeline as a graph of stages: probe, route, SFT, RL, and an evaluation of each model."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gradprism.environments.registry import make_environment
from gradprism.errors import ConfigError
from gradprism.experiments.config import RunConfig
from gradprism.experiments.stages import Record, Stage, StageGraph, machine
from gradprism.files import read_json, sha256_file, sha256_folder, write_json
from gradprism.models import check_model_name, check_trainable

# (stage, the stage whose checkpoint it evaluates, how the report calls the model)
EVALUATIONS = (("evaluate-base", None, "base"), ("evaluate-sft", "sft", "sft"), ("evaluate-rl", "rl", "rl"))


def build_graph(config: RunConfig) -> StageGraph:
    """The stages of a run. Nothing heavy is imported until a stage runs."""
    check_model_name(config.model.path)
    check_trainable(config.model.path)
    # What is in the files counts, not what they are called.
    model = {
        **config.model.model_dump(exclude={"path", "chat_template"}),
        "weights": _fingerprint(config.model.path),
        "chat_template": sha256_file(_existing("model.chat_template", config.model.chat_template))
        if config.model.chat_template
        else None,
        "threads": config.threads,
    }
    corpus = {
        "files": [sha256_file(_existing("corpus.files", file)) for file in config.corpus.files],
        "format": config.corpus.format,
    }
    environment = config.environment.model_dump(exclude={"workers"})  # the number of workers changes no result
    playable = _environment(config)
    for split in config.evaluation.splits:
        playable.tasks(split, 1)  # an unknown split is said before anything is paid for

    def bind(function: Callable[..., dict[str, Any]], *arguments: Any) -> Callable[[Path, dict[str, Path]], dict[str, Any]]:
        return lambda folder, inputs: function(config, folder, inputs, *arguments)

    stages = [
        Stage("probe", bind(_probe), {"model": model, "corpus": corpus, "probe": config.probe.model_dump()}, resumes=True),
        Stage("route", bind(_route), {"route": config.route.model_dump(), "seed": config.seed}, ("probe",)),
        Stage("sft", bind(_sft), {"model": model, "sft": config.sft.model_dump()}, ("route",), resumes=True),
    ]
    start, tasks = "sft", "route"  # where RL's model and tasks come from
    if config.refresh.after_sft:
        stages += [
            Stage("refresh", bind(_refresh), {"model": model}, ("probe", "route", "sft"), resumes=True),
            Stage(
                "sft-refreshed",
                bind(_sft_refreshed),
                {"model": model, "sft": config.sft.model_dump()},
                ("refresh", "sft"),
                resumes=True,
            ),
        ]
        start, tasks = "sft-refreshed", "refresh"
    reads = {"model": model, "rl": config.rl.model_dump(), "environment": environment, "refresh": config.refresh.every_k_steps}
    stages.append(Stage("rl", bind(_rl, start, tasks), reads, tuple(dict.fromkeys(("probe", "route", tasks, start))), resumes=True))
    for name, source, _ in EVALUATIONS:
        reads = {"model": model, "environment": environment, "evaluation": config.evaluation.model_dump()}
        stages.append(Stage(name, bind(_evaluate, source), reads, (source,) if source else ()))
    return StageGraph(config.folder, stages)


def run_pipeline(config: RunConfig) -> dict[str, Any]:
    """Runs what is not done, writes `config.json`, `results.json` and `report.html` into the run folder and returns the results."""
    graph = build_graph(config)
    write_json(config.folder / "config.json", config.model_dump())
    if config.threads is not None:
        import torch

        torch.set_num_threads(config.threads)
    records = graph.run()
    results = gather_results(config, records)
    write_json(config.folder / "results.json", results)

    from gradprism.reporting.html import write_report

    write_report(results, config.folder / "report.html")
    return results


def describe(config: RunConfig) -> dict[str, Any]:
    """The resolved configuration, and for each stage whether it would be reused; what `--dry-run` prints."""
    graph = build_graph(config)
    evaluated = sum(config.evaluation.splits.values())
    return {
        "folder": str(config.folder),
        "config": config.model_dump(),
        "stages": [{"name": s.name, "key": graph.keys[s.name], "done": graph.is_done(s.name)} for s in graph.stages],
        "episodes": {"rl": config.rl.steps * config.rl.groups * config.rl.rollouts, "evaluation": evaluated * len(EVALUATIONS)},
    }


def gather_results(config: RunConfig, records: dict[str, Record]) -> dict[str, Any]:
    """Everything that the report shows, read from the stages' own artefacts."""
    import torch
    import transformers
    import trl

    from gradprism import __version__

    probe, route = records["probe"].summary, records["route"].summary
    route_folder = records["route"].folder / "route"
    evaluation = [
        {"stage": label, **row}
        for name, _, label in EVALUATIONS
        for row in read_json(records[name].folder / "evaluation" / "summary.json")["rows"]
    ]
    return {
        "name": config.name,
        "seed": config.seed,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "gradprism": __version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "trl": trl.__version__,
        },
        "machine": {**machine(), "device": probe["device"], "threads": torch.get_num_threads()},
        "config": config.model_dump(),
        "model": {"id": config.model.path, "parameters": probe["parameters"]},
        "corpus": probe["corpus"],
        "routing": {**route["routing"], **_routes(route_folder)},
        "heat_map": _heat_map(records["probe"].folder / "probe"),
        "audit": route["audit"],
        "evaluation": evaluation,
        "stages": [{"name": r.name, **r.cost, "reused": r.reused} for r in records.values()],
        "curves": {"sft": _curve(records["sft"]), "rl": _curve(records["rl"])},
    }


def _curve(record: Record) -> list[dict[str, float]]:
    return [{"step": step, **row} for step, row in enumerate(record.summary["history"], 1)]


def _existing(key: str, file: str) -> Path:
    if not Path(file).is_file():
        raise ConfigError(f"{key}: {file!r}: no such file")
    return Path(file)


def _fingerprint(model: str) -> str:
    """Hash of a local model's files; a hub id stands for itself."""
    return sha256_folder(Path(model)) if Path(model).is_dir() else model


def _load(config: RunConfig, path: str | Path, device: str | None = None) -> tuple[Any, Any]:
    """Model and renderer of a checkpoint; the template is the base model's throughout."""
    from gradprism.models import load_model
    from gradprism.trajectories.rendering import Renderer, load_tokenizer

    template = Path(config.model.chat_template) if config.model.chat_template else None
    tokenizer = load_tokenizer(str(path), template)
    model = load_model(str(path), config.model.dtype, device or config.model.device)
    return model, Renderer(tokenizer, config.model.context_length)


def _environment(config: RunConfig) -> Any:
    return make_environment(config.environment.name, config.environment.options)


def _probe(config: RunConfig, folder: Path, inputs: dict[str, Path]) -> dict[str, Any]:
    from gradprism.probing.executors.flow import probe_corpus
    from gradprism.probing.executors.local import InProcess
    from gradprism.probing.manifest import Options
    from gradprism.trajectories.readers import iter_trajectories

    files = [Path(file) for file in config.corpus.files]
    trajectories = iter_trajectories(files, config.corpus.format)
    model, renderer = _load(config, config.model.path)
    summary = probe_corpus(
        InProcess(model),
        renderer.tokenizer,
        trajectories,
        folder / "probe",
        Options(config.model.context_length, config.probe.batch_tokens, data=files, read={"format": config.corpus.format}),
    )
    # A stage that was cut short costs what all its attempts did.
    earlier = summary["earlier"]
    for name in ("tokens_forward", "tokens_backward"):
        summary[name] += earlier["tokens"]
    cost = {name: earlier[name] for name in ("wall_seconds", "cpu_seconds")}
    return {**summary, "earlier_cost": cost, "headline": f"{summary['trajectories_per_second']:.1f} trajectories a second"}


def _route(config: RunConfig, folder: Path, inputs: dict[str, Path]) -> dict[str, Any]:
    from gradprism.routing.folder import route_probe

    route = config.route
    result = route_probe(
        inputs["probe"] / "probe",
        folder / "route",
        metric=route.metric,
        policy=route.policy,
        normalise=route.normalise,
        rl_share=None if route.rl_share == 0.5 else route.rl_share,
        seed=config.seed,
        on_existing="replace",
    )
    routing = result["routing"]
    line = f"{routing['n_sft']} to SFT, {routing['n_rl']} to RL at {route.metric} {routing['threshold']:.4f}"
    return {**result, "headline": line}


def _heat_map(probe: Path) -> dict[str, Any]:
    """Mean norm of every unit, as a layer x matrix table."""
    import numpy as np

    from gradprism.probing.store import ProbeStore

    store = ProbeStore(probe)
    sums = np.zeros(store.n_units)
    for shard in store.scan("whole"):
        sums += shard.norms.sum(axis=0, dtype="float64")
    means = {unit: float(total / store.n_trajectories) for unit, total in zip(store.manifest["units"], sums, strict=True)}
    parts = [(int(name.split(".")[1]), name.rsplit(".", 1)[1].removesuffix("_proj"), value) for name, value in means.items()]
    layers, kinds = sorted({layer for layer, _, _ in parts}), list(dict.fromkeys(kind for _, kind, _ in parts))
    table = {(layer, kind): value for layer, kind, value in parts}
    return {"layers": layers, "kinds": kinds, "mean_norms": [[table[layer, kind] for kind in kinds] for layer in layers]}


def _routes(folder: Path) -> dict[str, Any]:
    """Scores, routes and task types of a route folder, in the corpus's order."""
    import polars as pl

    from gradprism.trajectories.readers import read_trajectories

    table = pl.read_parquet(folder / "routes.parquet")
    types = {t.id: t.task.get("task_type") for t in read_trajectories([folder / "sft.jsonl"])}
    with open(folder / "rl.jsonl", encoding="utf-8") as file:
        types |= {row["id"]: row["task"].get("task_type") for row in map(json.loads, file)}
    named = [types[i] for i in table["id"].to_list()]
    return {
        "scores": table["score"].to_list(),
        "routes": table["route"].to_list(),
        **({"task_types": named} if all(isinstance(name, str) for name in named) else {}),
    }


def _sft(config: RunConfig, folder: Path, inputs: dict[str, Path]) -> dict[str, Any]:
    from gradprism.training.sft import train_sft
    from gradprism.trajectories.readers import read_trajectories

    trajectories = read_trajectories([inputs["route"] / "route" / "sft.jsonl"])
    model, renderer = _load(config, config.model.path, "cpu")  # the trainer places it
    summary = train_sft(model, renderer, trajectories, config.sft, folder, device=config.model.device)
    first, last = (sum(row["loss"] for row in part) / len(part) for part in _ends(summary["history"]))
    return {**summary, "headline": f"loss {first:.3f} → {last:.3f} on {len(trajectories)} trajectories"}


def _refresh(config: RunConfig, folder: Path, inputs: dict[str, Path]) -> dict[str, Any]:
    from gradprism.experiments.refresh import remaining, reroute

    model, renderer = _load(config, inputs["sft"])
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


def _sft_refreshed(config: RunConfig, folder: Path, inputs: dict[str, Path]) -> dict[str, Any]:
    from gradprism.training.checkpoints import save_checkpoint
    from gradprism.training.sft import train_sft
    from gradprism.trajectories.readers import read_trajectories

    trajectories = read_trajectories([inputs["refresh"] / "route" / "sft.jsonl"])
    model, renderer = _load(config, inputs["sft"], "cpu")
    if not trajectories:
        save_checkpoint(model, renderer.tokenizer, folder)
        return {"trajectories": 0, "headline": "nothing moved, the model is the same"}
    summary = train_sft(model, renderer, trajectories, config.sft, folder, device=config.model.device)
    return {
        **summary,
        "headline": f"loss {summary['first_loss']:.3f} → {summary['last_loss']:.3f} on {len(trajectories)} trajectories",
    }


def _rl(config: RunConfig, folder: Path, inputs: dict[str, Path], start: str, tasks_from: str) -> dict[str, Any]:
    from gradprism.experiments.refresh import RefreshEvery, remaining
    from gradprism.training.rl import read_tasks, train_rl

    environment = _environment(config)
    tasks = read_tasks(inputs[tasks_from] / "route" / "rl.jsonl", environment)
    if not tasks and tasks_from == "refresh":  # all has fallen below the threshold; RL goes on with what the first route gave it
        tasks = read_tasks(inputs["route"] / "route" / "rl.jsonl", environment)
    model, renderer = _load(config, inputs[start], "cpu")
    first, refresh = inputs["route"] / "route", None
    if config.refresh.every_k_steps:
        ids = {task.id for task in tasks}
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
    summary = train_rl(
        model,
        renderer,
        environment,
        tasks,
        config.rl,
        folder,
        context_length=config.model.context_length,
        workers=config.environment.workers,
        device=config.model.device,
        refresh=refresh,
    )
    played = [row for row in summary["history"] if "success" in row]
    first_success, last_success = (sum(row["success"] for row in part) / len(part) for part in _ends(played))
    line = f"success while sampling {100 * first_success:.1f} % → {100 * last_success:.1f} % on {len(tasks)} tasks"
    return {**summary, "headline": line}


def _ends(history: list[dict[str, float]]) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """First and last fifth, at least one step each."""
    size = max(1, len(history) // 5)
    return history[:size], history[-size:]


def _evaluate(config: RunConfig, folder: Path, inputs: dict[str, Path], source: str | None) -> dict[str, Any]:
    from gradprism.evaluation.agents import ModelAgent
    from gradprism.evaluation.run import evaluate
    from gradprism.evaluation.summary import headline

    model, renderer = _load(config, inputs[source] if source else config.model.path)
    summary = evaluate(
        ModelAgent(model, renderer, config.model.context_length),
        _environment(config),
        config.evaluation,
        folder / "evaluation",
        workers=config.environment.workers,
    )
    return {**summary, "headline": headline(summary["rows"])}
