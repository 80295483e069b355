"""Tables of costs: arms against full RL, where training went, and whether choosing the data pays."""

from collections.abc import Callable, Sequence

from gradprism.experiments import costs
from gradprism.experiments.comparison import Comparison
from gradprism.experiments.costs import Measure
from gradprism.experiments.results import Cost, Run
from gradprism.reporting.document import Table
from gradprism.reporting.numbers import count, duration, mib, share, tera, times

_CHOSEN: tuple[Measure, ...] = ("wall_seconds", "flops")


def _costed(comparison: Comparison) -> list[str]:
    return [arm for arm in comparison.arms if comparison.costs(arm)]


def cost_table(comparison: Comparison) -> Table:
    """Table 2: wall time and FLOPs of each arm against full RL, the share of choosing, and the cost of full RL's success."""
    full_rl, stages = comparison.results.full_rl_arm, comparison.results.stages
    whole, target = comparison.costs(full_rl), costs.final_success(comparison.runs(full_rl))
    rows = []
    for arm in _costed(comparison):
        runs, spent = comparison.runs(arm), costs.mean_cost(comparison.costs(arm))
        row = [comparison.title(arm), str(len(runs)), duration(spent.wall_seconds), times(comparison.speedup(arm))]
        row += [duration(spent.cpu_seconds), times(comparison.speedup(arm, "cpu_seconds"))]
        row += [tera(spent.flops), times(comparison.speedup(arm, "flops"))]
        choosing = costs.mean_cost([costs.run_cost(run, stages, choosing=True) for run in runs])
        for measure in _CHOSEN:
            all_of_it = getattr(spent, measure)
            row.append(share(getattr(choosing, measure) / all_of_it) if all_of_it else "–")
        for measure in _CHOSEN:
            compares = measure == "flops" or comparison.times_compare(arm)
            row.append(_reach(comparison, runs, target, whole, measure) if compares else "–")
        rows.append(row)
    headings = ["arm", "seeds", "wall time", "speed-up, wall", "CPU time", "speed-up, CPU", "TFLOP", "speed-up, FLOPs"]
    headings += ["choosing, of wall", "choosing, of FLOPs", "to full RL's success, wall", "to full RL's success, FLOPs"]
    return Table(headings, rows)


def _reach(comparison: Comparison, runs: Sequence[Run], target: float | None, whole: Sequence[Cost], measure: Measure) -> str:
    """`0.41× (2 of 3)`: mean cost at which the runs that got there did, of all that full RL cost, and how many did."""
    curves = [run for run in runs if run.curve]
    if target is None or not curves or not whole or not (unit := getattr(costs.mean_cost(whole), measure)):
        return "–"
    stages = comparison.results.stages
    reached = [c for run in curves if (c := costs.cost_to_reach(run, stages, target, measure)) is not None]
    ratio = f"{sum(reached) / len(reached) / unit:.2f}×" if reached else "never"
    return f"{ratio} ({len(reached)} of {len(curves)})"


# (heading, name of the cost, its text)
_Column = tuple[str, str, Callable[[float], str]]
_WORK: tuple[_Column, ...] = (
    ("tokens forward", "tokens_forward", count),
    ("tokens backward", "tokens_backward", count),
    ("tokens generated", "tokens_generated", count),
    ("env. steps", "environment_steps", count),
    ("CPU time", "cpu_seconds", duration),
    ("peak MiB", "peak_memory_mib", mib),
)
_GPU: tuple[_Column, ...] = (("GPU time", "gpu_seconds", duration), ("peak GPU MiB", "peak_gpu_memory_mib", mib))


def _columns(comparison: Comparison) -> tuple[_Column, ...]:
    return _WORK + (_GPU if any(stage.gpu_seconds for stage in comparison.results.stages.values()) else ())


def work_table(comparison: Comparison) -> Table:
    """Each arm's cost in parts: means over its runs, and the largest peak."""
    parts, rows = _columns(comparison), []
    for arm in _costed(comparison):
        spent = costs.mean_cost(comparison.costs(arm))
        rows.append([comparison.title(arm), *(text(getattr(spent, name)) for _, name, text in parts)])
    return Table(["arm", *(heading for heading, _, _ in parts)], rows)


def ledger_table(comparison: Comparison) -> Table:
    """All that was run, each stage once, by kind; the last row is the total."""
    stages, parts, rows = list(comparison.results.stages.values()), _columns(comparison), []
    for kind in [*dict.fromkeys(stage.kind for stage in stages), None]:
        chosen = [stage for stage in stages if kind in (None, stage.kind)]
        spent = costs.total([costs.stage_cost(stage) for stage in chosen])
        evaluating = sum(stage.evaluation_seconds for stage in chosen)
        row = [kind or "total", str(len(chosen)), duration(spent.wall_seconds), duration(evaluating) if evaluating else "-"]
        rows.append([*row, tera(spent.flops), *(text(getattr(spent, name)) for _, name, text in parts)])
    meanwhile = "evaluating meanwhile"
    headings = ["stages", "number", "wall time", meanwhile, "TFLOP", *(heading for heading, _, _ in parts)]
    return Table(headings, rows, spare=[meanwhile])


def saving_lines(comparison: Comparison) -> list[str]:
    """Whether choosing the data pays, in wall time and in FLOPs, for each arm that chooses: the failure signature "the probe costs more
    than it saves".
    """
    whole, stages, lines = comparison.costs(comparison.results.full_rl_arm), comparison.results.stages, []
    in_units: tuple[tuple[Measure, str, Callable[[float], str]], ...] = (
        ("wall_seconds", "wall time", duration),
        ("flops", "FLOPs", lambda flops: f"{tera(flops)} TFLOP"),
    )
    for arm in _costed(comparison):
        said = []
        for measure, unit, text in in_units:
            if measure != "flops" and not comparison.times_compare(arm):
                continue
            if (found := costs.saving(comparison.runs(arm), whole, stages, measure)) is not None:
                pays = "pays" if found.pays else "**does not pay**"
                saved = f"saves {text(found.saved)}" if found.saved > 0 else "saves nothing"
                said.append(f"in {unit} {pays} (choosing costs {text(found.choosing)}, training {saved} against full RL)")
        if said:
            lines.append(f"- {comparison.title(arm)}: {'; '.join(said)}.")
    return lines


def training_table(comparison: Comparison) -> Table | None:
    """Where RL began, was at its best and ended, of the arms that play it, on the tasks of the curves; None where none does.

    Where scores are not successes, also the share of all evaluated episodes whose score is 0.
    """
    graded, rows = bool(comparison.scores(list(comparison.arms))), []
    for arm in comparison.arms:
        runs = [run for run in comparison.runs(arm) if run.stages]
        curve = [(fraction, success) for stage, fraction, success in costs.mean_curve(runs) if stage == "rl"]
        if len(curve) < 2:
            continue
        at, best = max(curve, key=lambda point: point[1])
        zeros = comparison.values(arm, comparison.splits[0], "score") == 0
        cells = [f"{100 * curve[0][1]:.1f}", f"{100 * best:.1f} ({100 * at:.0f} %)", f"{100 * curve[-1][1]:.1f}"]
        cells += [f"{100 * zeros.mean():.1f}" if zeros.size else "–"] if graded else []
        rows.append([comparison.title(arm), str(len(runs)), *cells])
    headings = ["arm", "seeds", "before RL", "highest (at, of RL)", "end", *(["score 0, all tasks"] if graded else [])]
    return Table(headings, rows) if rows else None
