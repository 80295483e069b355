"""What an experiment has found, as `results.json`: every evaluated episode, what every stage cost, and the audits. Tables and figures
are made from this file alone."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from gradprism.concentration import METRICS
from gradprism.experiments.arms import ExperimentConfig, Plan, Run
from gradprism.experiments.costs import stage_flops
from gradprism.experiments.stages import COUNTS, StageGraph
from gradprism.experiments.steps import PASS_RATES
from gradprism.routing.audit import drawn_by_chance
from gradprism.runtime.files import read_json

RESULTS = "results.json"


def gather(config: ExperimentConfig, plan: Plan, earlier: dict[str, Any] | None = None) -> dict[str, Any]:
    """The results of all runs that are evaluated; those of `earlier` results stand in for what was not made here."""
    graph, earlier = plan.graph, earlier or {}
    machines: list[dict[str, Any]] = list(earlier.get("machines") or ([{}] if earlier else []))
    kept: dict[str, Any] = {}  # what earlier runs cost stays what it was, though a stage of theirs was made again
    earlier_runs = reusable(plan, earlier)
    model = _model(config, plan) or earlier.get("model") or {"id": Path(config.model.path).name}
    arms, stages = [], {}
    for arm in config.arms:
        runs = []
        for run in [run for run in plan.runs if run.arm.name == arm.name]:
            if graph.is_done(run.evaluation):
                runs.append(_run(config, graph, run))
                stages |= {
                    name: _stage(config, graph, name, model.get("matmul", 0), machines) for name in (*run.stages, run.evaluation)
                }
            elif run.evaluation in earlier_runs:
                found = earlier_runs[run.evaluation]
                runs.append({**found, "seed": run.seed})
                kept |= {name: earlier["stages"][name] for name in (*found["stages"], run.evaluation)}
        seeds = config.seeds_of(arm)
        arms.append({"name": arm.name, "title": arm.title or arm.name, "group": arm.group, "seeds": seeds, "runs": runs})
    for name in plan.audits.values():
        if graph.is_done(name):
            stages[name] = _stage(config, graph, name, model.get("matmul", 0), machines)
        elif name in earlier.get("stages", {}):
            stages[name] = earlier["stages"][name]
    stages = {name: {"machine": 0, **stage} for name, stage in (stages | kept).items()}
    # Only those that a stage is of: earlier ones may be gone with their runs.
    used = sorted({stage["machine"] for stage in stages.values()})
    machines = [machines[place] for place in used]
    stages = {name: {**stage, "machine": used.index(stage["machine"])} for name, stage in stages.items()}
    complete = all(graph.is_done(name) for name in plan.audits.values())
    # An audit that lacks some of its probes does not replace one that has them.
    audits = earlier.get("audits", {}) if earlier.get("audits") and not complete else _audits(config, plan)
    return {
        "name": config.name,
        "environment": config.environment.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machines": machines,
        "model": model,
        "corpus": _corpus(plan) or earlier.get("corpus", {}),
        "tasks": _tasks(config, plan) or earlier.get("tasks", {}),
        "splits": list(config.evaluation.splits),
        "seeds": config.seeds,
        **{name: getattr(config, name) for name in ("reference_arms", "full_rl_arm", "base_arm", "sft_arm")},
        "regime": config.regime.model_dump(),
        "claims": [claim.model_dump() for claim in config.claims],
        "sweeps": [sweep.model_dump() for sweep in config.sweeps],
        "arms": arms,
        "stages": stages,
        "audits": audits,
    }


def reusable(plan: Plan, earlier: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The runs of earlier results that are those of the plan, by their evaluation stage."""
    wanted = {run.evaluation for run in plan.runs}
    return {run["evaluation"]: run for arm in earlier.get("arms", []) for run in arm["runs"] if run.get("evaluation") in wanted}


def _run(config: ExperimentConfig, graph: StageGraph, run: Run) -> dict[str, Any]:
    episodes = _episodes(graph, run.evaluation)
    of = {split: [e for e in episodes if e["split"] == split] for split in config.evaluation.splits}
    routing = graph.record(run.route).summary["routing"] if run.route else {}
    by_chance = drawn_by_chance(pl.read_parquet(graph.path(run.route) / "route" / "routes.parquet")) if run.route else None
    moved = sum(graph.record(name).summary["moved_to_sft"] for name in run.stages if graph.kinds[name] == "refresh")
    return {
        "seed": run.seed,
        "success": {split: "".join("01"[e["success"]] for e in chosen) for split, chosen in of.items()},
        "score": {split: [round(e["score"], 4) for e in chosen] for split, chosen in of.items()},
        "n_sft": routing["n_sft"] + moved if routing else None,
        "n_rl": (routing["n_rl"] - moved or routing["n_rl"]) if routing else None,  # with nothing left RL plays what it first had
        "n_rl_by_chance": by_chance,
        "stages": list(run.stages),
        "forward_only": list(run.forward_only),
        "evaluation": run.evaluation,
        "curve": _curve(config, graph, run, of),
    }


def _curve(config: ExperimentConfig, graph: StageGraph, run: Run, of: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Success while training, on the first tasks of the first split; the last point is that of the final evaluation."""
    split, n = next(iter(of)), config.rl.evaluate_tasks
    final = sum(e["success"] for e in of[split][:n]) / len(of[split][:n])
    if run.model is None:
        return [{"stage": "base", "fraction": 1.0, "success": final, "tasks": n}]
    kind = graph.kinds[run.model]
    if kind != "rl":
        return [{"stage": kind, "fraction": 1.0, "success": final, "tasks": n}]
    summary = graph.record(run.model).summary
    points = [
        {"stage": "rl", "fraction": point["step"] / summary["optimizer_steps"], "success": point["success"], "tasks": n}
        for point in summary["evaluation"]
    ]
    # The last point is the final evaluation, as it is for arms without RL.
    points = [point for point in points if point["fraction"] < 1]
    return [*points, {"stage": "rl", "fraction": 1.0, "success": final, "tasks": n}]


def _stage(
    config: ExperimentConfig, graph: StageGraph, name: str, parameters: int, machines: list[dict[str, Any]]
) -> dict[str, Any]:
    """What a stage cost, and the place in `machines`, which may grow, of what it ran on."""
    record = graph.record(name)
    machine = {**record.machine, "threads": config.threads}
    if machine not in machines:
        machines.append(machine)
    times, peaks = ("wall_seconds", "cpu_seconds", "gpu_seconds"), ("peak_memory_mib", "peak_gpu_memory_mib")
    cost = {key: record.cost.get(key, 0) for key in (*times, *peaks, *COUNTS)}
    return {
        "kind": graph.kinds[name],
        "machine": machines.index(machine),
        **{key: round(value, 2) for key, value in cost.items()},
        "evaluation_seconds": round(record.summary.get("evaluation_seconds", 0.0), 2),
        "flops": stage_flops(parameters, int(cost["tokens_forward"]), int(cost["tokens_backward"])),
    }


def _model(config: ExperimentConfig, plan: Plan) -> dict[str, Any] | None:
    """Its name, all its parameters, and those that every token is multiplied by: the probed matrices and the output embeddings."""
    from transformers import AutoConfig

    probe = plan.audits.get("probe")
    if probe is None or not plan.graph.is_done(probe):
        return None
    manifest = read_json(plan.graph.path(probe) / "probe" / "manifest.json")
    known = AutoConfig.from_pretrained(config.model.path, trust_remote_code=False).get_text_config()
    return {
        "id": Path(config.model.path).name,
        "parameters": manifest["parameters"],
        "matmul": sum(manifest["n_parameters"]) + known.vocab_size * known.hidden_size,
    }


def _corpus(plan: Plan) -> dict[str, Any] | None:
    probe = plan.audits.get("probe")
    if probe is None or not plan.graph.is_done(probe):
        return None
    return {"trajectories": int(plan.graph.record(probe).summary["corpus"]["trajectories"])}


def _tasks(config: ExperimentConfig, plan: Plan) -> dict[str, Any] | None:
    """The tasks that were played, in order: the same for every arm."""
    done = next((run.evaluation for run in plan.runs if plan.graph.is_done(run.evaluation)), None)
    if done is None:
        return None
    episodes = _episodes(plan.graph, done)
    return {
        split: [{"id": e["id"], "task_type": e.get("task_type")} for e in episodes if e["split"] == split]
        for split in config.evaluation.splits
    }


def _episodes(graph: StageGraph, evaluation: str) -> list[dict[str, Any]]:
    lines = (graph.path(evaluation) / "evaluation" / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _audits(config: ExperimentConfig, plan: Plan) -> dict[str, Any]:
    """The audit of the experiment's probe for each metric, compared with its other probes."""
    from gradprism.routing.stability import audit

    graph = plan.graph
    done = {label: graph.path(name) / "probe" for label, name in plan.audits.items() if graph.is_done(name)}
    if "probe" not in done:
        return {}
    by_folder = {folder: label for label, folder in reversed(done.items())}  # two labels may be one probe
    done = {label: folder for label, folder in done.items() if by_folder[folder] == label}
    probe = done.pop("probe")
    rates = next((s.name for s in graph.stages if graph.kinds[s.name] == "pass-rates" and graph.is_done(s.name)), None)
    audits = {}
    for metric in METRICS:
        found = audit(
            probe,
            metric,
            seed=config.seed,
            compare=list(done.values()),
            pass_rates=graph.path(rates) / PASS_RATES if rates else None,
        ).to_json()
        pairs = found["agreement"]
        probes = dict(zip(done, pairs.pop("probes").values(), strict=True))
        stability = {f"{kind}: {label}": pair for kind, of in pairs.items() for label, pair in of.items()}
        stability |= {f"probes: {label}": {k: v for k, v in pair.items() if k != "differs"} for label, pair in probes.items()}
        audits[metric] = {
            "spearman": found["spearman"],
            "eta_squared": found["task_type_eta_squared"],
            "agreement": found["split_by"],
            "threshold_standard_error": found["threshold_standard_error"],
            "share_within_one_standard_error": found["share_within_one_standard_error"],
            "stability": stability,
            "warnings": found["warnings"],
        }
    return audits
