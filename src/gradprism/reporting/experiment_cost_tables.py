"""What arms cost against full RL, where their training went, and whether choosing the data pays; from an experiment's `results.json`."""

from collections.abc import Callable, Sequence
from typing import Any

from gradprism.experiments import costs
from gradprism.reporting.experiment_figures import picture
from gradprism.reporting.experiment_numbers import tera, times
from gradprism.reporting.experiment_results import Experiment
from gradprism.reporting.tables import count, duration, markdown, printable, share


def cost_parts(experiment: Experiment) -> list[str]:
    """All of it, as parts of a page."""
    parts = ["## Table 3: cost", cost_table(experiment), COST_NOTE, work_table(experiment), *picture(experiment, "cost")]
    if lines := saving_lines(experiment):
        parts += ["### Does choosing pay?", "\n".join(lines)]
    parts += ["### All that was run", ledger_table(experiment)]
    training, curves = training_table(experiment), picture(experiment, "curves")
    if training or curves:
        parts += ["## While training", *([training, TRAINING_NOTE] if training else []), *curves]
    return parts


def cost_table(experiment: Experiment) -> str:
    """Table 3: wall time and FLOPs of each arm against full RL, what choosing took of them, and the cost of full RL's success."""
    full_rl = experiment.results["full_rl_arm"] or ""
    whole, target = experiment.costs(full_rl), costs.final_success(experiment.runs(full_rl))
    rows = []
    for arm in _costed(experiment):
        runs, spent = experiment.runs(arm), costs.mean_cost(experiment.costs(arm))
        row = [experiment.title(arm), str(len(runs)), duration(spent["wall_seconds"]), times(experiment.speedup(arm))]
        row += [duration(spent["cpu_seconds"]), times(experiment.speedup(arm, "cpu_seconds"))]
        row += [tera(spent["flops"]), times(experiment.speedup(arm, "flops"))]
        for what in ("wall_seconds", "flops"):
            choosing = costs.mean_cost([costs.run_cost(run, experiment.stages, choosing=True) for run in runs])[what]
            row.append(share(choosing / spent[what]) if spent[what] else "–")
        for what in ("wall_seconds", "flops"):
            compares = what == "flops" or experiment.times_compare(arm)
            row.append(_reach(experiment, runs, target, whole, what) if compares else "–")
        rows.append(row)
    headings = ["arm", "seeds", "wall time", "speed-up, wall", "CPU time", "speed-up, CPU", "TFLOP", "speed-up, FLOPs"]
    headings += ["choosing, of wall", "choosing, of FLOPs", "to full RL's success, wall", "to full RL's success, FLOPs"]
    return markdown(headings, rows, 1)


def _costed(experiment: Experiment) -> list[str]:
    return [arm for arm in experiment.arms if experiment.costs(arm)]


def _reach(experiment: Experiment, runs: Sequence[Any], target: float | None, whole: Sequence[costs.Cost], what: str) -> str:
    """`0.41× (2 of 3)`: mean cost at which the runs that got there did, of all that full RL cost, and how many did."""
    curves = [run for run in runs if run["curve"]]
    if target is None or not curves or not whole or not costs.mean_cost(whole)[what]:
        return "–"
    reached = [c for run in curves if (c := costs.cost_to_reach(run, experiment.stages, target, what)) is not None]
    ratio = f"{sum(reached) / len(reached) / costs.mean_cost(whole)[what]:.2f}×" if reached else "never"
    return f"{ratio} ({len(reached)} of {len(curves)})"


def work_table(experiment: Experiment) -> str:
    """What each arm's cost consists of: means over its runs, and the largest peak."""
    parts = _WORK + (_GPU if _has_gpu(experiment) else ())
    rows = [[experiment.title(arm), *_work(costs.mean_cost(experiment.costs(arm)), parts)] for arm in _costed(experiment)]
    return markdown(["arm", *(heading for heading, _, _ in parts)], rows, 1)


def _mib(peak: float) -> str:
    return f"{peak:.0f}" if peak else "–"


# (heading, what of the cost, its text)
_Column = tuple[str, str, Callable[[float], str]]
_WORK: tuple[_Column, ...] = (
    ("tokens forward", "tokens_forward", count),
    ("tokens backward", "tokens_backward", count),
    ("tokens generated", "tokens_generated", count),
    ("env. steps", "environment_steps", count),
    ("CPU time", "cpu_seconds", duration),
    ("peak MiB", "peak_memory_mib", _mib),
)
_GPU: tuple[_Column, ...] = (("GPU time", "gpu_seconds", duration), ("peak GPU MiB", "peak_gpu_memory_mib", _mib))


def _has_gpu(experiment: Experiment) -> bool:
    return any(stage["gpu_seconds"] for stage in experiment.stages.values())


def _work(cost: costs.Cost, parts: Sequence[_Column]) -> list[str]:
    return [text(cost[name]) for _, name, text in parts]


def ledger_table(experiment: Experiment) -> str:
    """All that was run, each stage once, by kind; the last row is the total."""
    kinds = list(dict.fromkeys(stage["kind"] for stage in experiment.stages.values()))
    parts = _WORK + (_GPU if _has_gpu(experiment) else ())
    rows = []
    for kind in [*kinds, None]:
        chosen = [stage for stage in experiment.stages.values() if kind in (None, stage["kind"])]
        spent = costs.total([costs.stage_cost(stage) for stage in chosen])
        evaluating = sum(stage["evaluation_seconds"] for stage in chosen)
        row = [kind or "total", str(len(chosen)), duration(spent["wall_seconds"]), duration(evaluating) if evaluating else "-"]
        rows.append([*row, tera(spent["flops"]), *_work(spent, parts)])
    return markdown(
        ["stages", "number", "wall time", "evaluating meanwhile", "TFLOP", *(heading for heading, _, _ in parts)], rows, 1
    )


def saving_lines(experiment: Experiment) -> list[str]:
    """Whether choosing the data pays, in wall time and in FLOPs, for each arm that chooses: the failure signature "the probe costs more
    than it saves".
    """
    whole, lines = experiment.costs(experiment.results["full_rl_arm"] or ""), []
    for arm in _costed(experiment):
        said = []
        for what, unit, text in (
            ("wall_seconds", "wall time", duration),
            ("flops", "FLOPs", lambda flops: f"{tera(flops)} TFLOP"),
        ):
            if what != "flops" and not experiment.times_compare(arm):
                continue
            if (found := costs.saving(experiment.runs(arm), whole, experiment.stages, what)) is not None:
                pays = "pays" if found.pays else "**does not pay**"
                saved = f"saves {text(found.saved)}" if found.saved > 0 else "saves nothing"
                said.append(f"in {unit} {pays} (choosing costs {text(found.choosing)}, training {saved} against full RL)")
        if said:
            lines.append(f"- {printable(experiment.title(arm))}: {'; '.join(said)}.")
    return lines


def training_table(experiment: Experiment) -> str:
    """Where RL began, was at its best and ended, of the arms that play it, on the tasks of the curves; empty where none does.

    Where scores are not successes, also the share of all evaluated episodes whose score is 0.
    """
    graded, rows = bool(experiment.scores(list(experiment.arms))), []
    for arm in experiment.arms:
        runs = [run for run in experiment.runs(arm) if run["stages"]]
        curve = [(fraction, success) for stage, fraction, success in costs.mean_curve(runs) if stage == "rl"]
        if len(curve) < 2:
            continue
        at, best = max(curve, key=lambda point: point[1])
        zeros = experiment.values(arm, experiment.splits[0], "score") == 0
        cells = [f"{100 * curve[0][1]:.1f}", f"{100 * best:.1f} ({100 * at:.0f} %)", f"{100 * curve[-1][1]:.1f}"]
        cells += [f"{100 * zeros.mean():.1f}" if zeros.size else "–"] if graded else []
        rows.append([experiment.title(arm), str(len(runs)), *cells])
    headings = ["arm", "seeds", "before RL", "highest (at, of RL)", "end", *(["score 0, all tasks"] if graded else [])]
    return markdown(headings, rows, 1) if rows else ""


TRAINING_NOTE = (
    "Success in % on the tasks of the curves, the first of the evaluation's, means over seeds. The highest point of a mean curve is that "
    "of several, and so flatters. Score 0: the share of all evaluated episodes that ended with nothing."
)
COST_NOTE = (
    "Means over seeds; in parentheses the range over seeds. Evaluations are not in the times. Wall clocks are of machines that may have "
    "done other work, stages side by side among it: CPU time and FLOPs compare better, and wall clocks of different machines are not "
    "compared at all. Speed-ups are over full RL. Choosing is all that is not training: probing, routing, sampling; of a policy that "
    "reads losses alone it is the forward part of the probe, its time estimated by its FLOPs. FLOPs are estimates: 2 a parameter and "
    "token read, 4 a parameter and token of a backward pass. The last columns say at which part of full RL's whole cost an arm first got "
    "the success that full RL ended with, on the tasks of the curves, and how many seeds did: a first crossing of a noisy curve, and for "
    "SFT the whole of it, since it is only evaluated at its end."
)
