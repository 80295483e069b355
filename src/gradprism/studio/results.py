"""Results of a run or an experiment as their page shows them: arms with intervals and costs, claims, sweeps, and every table."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gradprism.experiments.comparison import Comparison
from gradprism.experiments.costs import TRAINING, cost_at, mean_cost, run_cost
from gradprism.experiments.results import Run, shown_results
from gradprism.experiments.statistics import Interval
from gradprism.reporting.document import Block, Heading, Table
from gradprism.reporting.pages import document
from gradprism.reporting.tables import claims_table
from gradprism.studio.folders import Folder


def results_view(folder: Folder) -> dict[str, Any]:
    """`ResultsView` of `web/src/api.ts`; raises `DataError` for results of another form."""
    folder.below("results.json")
    comparison = Comparison(shown_results(folder.path))
    results = comparison.results
    reference = next((arm for arm in results.reference_arms if comparison.runs(arm)), None)
    return {
        "id": folder.id,
        "version": folder.version(),
        "name": results.name,
        "path": folder.shown,
        "environment": results.environment,
        "created": results.created,
        "model": results.model and {"id": results.model.id, "parameters": results.model.parameters},
        "trajectories": results.trajectories,
        "seeds": results.seeds,
        "splits": comparison.splits,
        "is_run": comparison.is_run,
        "arms": [_arm(comparison, name, reference) for name in comparison.arms],
        "tasks": {split: [task.model_dump() for task in tasks] for split, tasks in results.tasks.items()},
        "claims": _claims(comparison),
        "sweeps": [
            {"title": sweep.title, "points": [{"value": value, "arm": arm} for value, arm in sweep.arms.items()]}
            for sweep in results.sweeps
        ],
        "heat_map": results.heat_map and results.heat_map.model_dump(),
        "routes": {name: routing.model_dump() for name, routing in results.routes.items()},
        "document": [_block(block) for block in document(comparison) if block],
    }


def _arm(comparison: Comparison, name: str, reference: str | None) -> dict[str, Any]:
    arm, runs = comparison.arms[name], comparison.runs(name)
    known = [split for split in comparison.splits if comparison.runs(name, split)]
    compared = [split for split in known if reference not in (None, name)]
    return {
        "name": name,
        "title": arm.title,
        "group": arm.group,
        "seeds": [run.seed for run in runs],
        "n_sft": runs[-1].n_sft if runs else None,
        "n_rl": comparison.played(runs[-1]) if runs else None,
        "success": {split: _interval(comparison.mean(name, split)) for split in known},
        "score": {split: mean for split in known if (mean := _interval(comparison.mean(name, split, "score")))},
        "difference": {
            split: {**told, "p": comparison.p(name, str(reference), split)}
            for split in compared
            if (told := _interval(comparison.difference(name, str(reference), split)))
        },
        "outcomes": {
            split: [{"seed": run.seed, "success": run.success[split]} for run in comparison.runs(name, split)] for split in known
        },
        "cost": _cost(comparison, name),
        "curve": _curve(comparison, runs),
    }


def _interval(found: Interval | None) -> dict[str, float] | None:
    return None if found is None else {"mean": found.mean, "low": found.low, "high": found.high}


def _cost(comparison: Comparison, name: str) -> dict[str, float | None] | None:
    costs = comparison.costs(name)
    if not costs:
        return None
    stages = comparison.results.stages
    choosing = [run_cost(run, stages, choosing=True) for run in comparison.runs(name) if run.stages]
    wall, flops = comparison.speedup(name), comparison.speedup(name, "flops")
    mean = _some(mean_cost(costs), ("wall_seconds", "cpu_seconds", "gpu_seconds", "flops", "peak_memory_mib"))
    return {
        **mean,
        "choosing_wall_seconds": mean_cost(choosing).wall_seconds,
        "speedup_wall": wall and wall.ratio,
        "speedup_flops": flops and flops.ratio,
    }


def _some(value: Any, names: Sequence[str]) -> dict[str, float]:
    return {name: getattr(value, name) for name in names}


def _curve(comparison: Comparison, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The points that all runs with a curve have: mean success, and mean cost up to there."""
    stages, drawn = comparison.results.stages, [run for run in runs if run.curve]
    made = []
    for point in drawn[0].curve if drawn else ():
        at = [next((p for p in run.curve if (p.stage, p.fraction) == (point.stage, point.fraction)), None) for run in drawn]
        if None in at or (point.stage not in ("base", *TRAINING)):
            continue
        success = sum(p.success for p in at if p) / len(at)
        costs = {
            measure: sum(cost_at(run, stages, point.stage, point.fraction, measure) for run in drawn) / len(drawn)
            for measure in ("wall_seconds", "cpu_seconds", "flops")
        }
        made.append({"stage": point.stage, "fraction": point.fraction, "success": success, **costs})
    return made


def _claims(comparison: Comparison) -> list[dict[str, Any]]:
    claims = comparison.results.claims
    verdicts = [row[1] for row in claims_table(comparison).rows] if claims else []
    return [
        {
            **claim.model_dump(),
            "difference": _interval(comparison.difference(claim.better, claim.worse)),
            "p": comparison.training_p(claim.better, claim.worse),
            "verdict": verdict.replace("**", ""),
        }
        for claim, verdict in zip(claims, verdicts, strict=True)
    ]


def _block(block: Block) -> dict[str, Any]:
    if isinstance(block, Heading):
        return {"type": "heading", "text": block.text, "level": block.level}
    if isinstance(block, Table):
        return {"type": "table", **asdict(block)}
    assert isinstance(block, str)  # figures were not asked for: pages draw their own
    lines = [line for line in block.splitlines() if line]
    if all(line.startswith("- ") for line in lines):
        return {"type": "list", "items": [line[2:] for line in lines]}
    return {"type": "paragraph", "text": "\n".join(lines)}
