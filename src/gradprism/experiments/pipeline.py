"""The PRISM pipeline as a graph of stages: probe, route, SFT, RL, and an evaluation of each model."""

import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from gradprism.experiments import steps
from gradprism.experiments.config import RunConfig
from gradprism.experiments.reads import Reads
from gradprism.experiments.stages import Record, Stage, StageGraph, Step, machine, versions
from gradprism.runtime.files import read_json, write_json

# (stage, the stage whose checkpoint it evaluates, how the report calls the model)
EVALUATIONS = (("evaluate-base", None, "base"), ("evaluate-sft", "sft", "sft"), ("evaluate-rl", "rl", "rl"))


def build_graph(config: RunConfig) -> StageGraph:
    """The stages of a run. Nothing heavy is imported until a stage runs."""
    reads, stages = Reads.of(config), []

    def add(name: str, step: Step, read: dict[str, Any], needs: dict[str, str] | None = None, resumes: bool = False) -> None:
        stages.append(Stage(name, partial(step, config), read, needs or {}, resumes))

    corpus = {}
    if config.corpus.collect is not None:
        add("collect", steps.collect, reads.collect)
        corpus = {"corpus": "collect"}
    add("probe", steps.probe, reads.probe, corpus, resumes=True)
    routed = {"probe": "probe"}
    if config.route.policy == "pass_rate":
        add("pass-rates", steps.pass_rates, reads.pass_rates, corpus)
        routed["pass_rates"] = "pass-rates"
    add("route", steps.route, reads.route, routed)
    add("sft", steps.sft, reads.sft, {"route": "route"}, resumes=True)
    start, tasks = "sft", "route"  # where RL's model and tasks come from
    if config.refresh.after_sft:
        add("refresh", steps.refresh, reads.refresh, {"probe": "probe", "route": "route", "model": "sft"}, resumes=True)
        add("sft-refreshed", steps.sft, reads.sft, {"route": "refresh", "model": "sft"}, resumes=True)
        start, tasks = "sft-refreshed", "refresh"
    add("rl", steps.rl, reads.rl, {"probe": "probe", "route": "route", "tasks": tasks, "model": start}, resumes=True)
    for name, source, _ in EVALUATIONS:
        add(name, steps.evaluate, reads.evaluate, {"model": source} if source else {})
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
        "episodes": {
            "rl": config.rl.rounds * config.rl.tasks_per_round * config.rl.rollouts_per_task,
            "evaluation": evaluated * len(EVALUATIONS),
        },
    }


def gather_results(config: RunConfig, records: dict[str, Record]) -> dict[str, Any]:
    """Everything that the report shows, read from the stages' own artefacts."""
    import torch

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
        "versions": versions(),
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


def _heat_map(probe: Path) -> dict[str, Any]:
    """Mean norm of every unit, as a layer x matrix table."""
    from gradprism.probing.result import Probe

    loaded = Probe.load(probe)
    parts = [(unit.layer, unit.kind, float(value)) for unit, value in zip(loaded.units, loaded.mean_norms, strict=True)]
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
