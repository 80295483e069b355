"""The figures of an experiment as SVG: success by arm, success against cost, along the sweeps, and while training.

Colours are Okabe and Ito's; markers differ too, so that none of them is needed. With one version of matplotlib, equal results give equal
bytes.
"""

import importlib.metadata
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from gradprism.experiments import costs
from gradprism.experiments.statistics import Interval
from gradprism.reporting.experiment_results import MAIN_GROUP, Experiment

CAPTIONS = {
    "success": "Success of every arm with its 95 % interval",
    "sweeps": "Success along the sweeps with 95 % intervals",
    "cost": "Success against cost, relative to full RL",
    "curves": "Success while training against the cost so far, relative to full RL's whole cost",
}
FIGURES = tuple(CAPTIONS)
WIDTH = 7.6  # inches; at GitHub's width of a README, text of 9 points is then read as it is
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#8A8A8A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
LINES = ("-", "--", ":")
INK = "#333333"


def matplotlib_version() -> str:
    """The version that is installed; does not import it."""
    return importlib.metadata.version("matplotlib")


def drawn_by(svg: str) -> str | None:
    """The version of matplotlib that drew a figure, by what it wrote into it."""
    found = re.search(r"Matplotlib v([\w.+]+)", svg)
    return found[1] if found else None


def picture(experiment: Experiment, name: str) -> list[str]:
    """The figure in Markdown, or nothing where there is nothing to draw."""
    return [f"![{CAPTIONS[name]}]({name}.svg)"] if has_figure(experiment, name) else []


def has_figure(experiment: Experiment, name: str) -> bool:
    """Whether the results hold enough for a figure."""
    return bool(_DATA[name](experiment))


def draw_figures(experiment: Experiment) -> dict[str, str]:
    """File name to SVG of every figure that the results hold enough for."""
    import matplotlib
    from matplotlib.figure import Figure

    drawn = {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own settings are
        matplotlib.rcParams.update(
            {"svg.hashsalt": "gradprism", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
        )
        for name in FIGURES:
            if data := _DATA[name](experiment):
                figure = Figure(layout="constrained")
                _DRAW[name](figure, experiment, data)
                file = io.StringIO()
                figure.savefig(file, format="svg", metadata={"Date": None})
                # Matplotlib ends lines with blanks, which no editor would keep.
                drawn[f"{name}.svg"] = re.sub(r"[ \t]+$", "", file.getvalue(), flags=re.MULTILINE)
    return drawn


def _styles(arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line of each arm; the same in every figure of an experiment."""
    return {
        arm: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": LINES[i // len(COLOURS) % len(LINES)],
        }
        for i, arm in enumerate(arms)
    }


def _bars(mean: Interval) -> list[list[float]]:
    """Lengths below and above the mean, in percent, as matplotlib wants them."""
    return [[100 * max(0.0, mean.mean - mean.low)], [100 * max(0.0, mean.high - mean.mean)]]


# --- success by arm


def _success_data(experiment: Experiment) -> list[tuple[str, Interval]]:
    groups = dict.fromkeys([MAIN_GROUP, *(arm["group"] for arm in experiment.arms.values())])
    return [(arm, mean) for group in groups for arm in experiment.of_group(group) if (mean := experiment.mean(arm))]


def _draw_success(figure: Any, experiment: Experiment, data: list[tuple[str, Interval]]) -> None:
    figure.set_size_inches(WIDTH, 0.9 + 0.24 * len(data))
    axes = figure.subplots()
    for y, (arm, mean) in enumerate(data):
        axes.errorbar(100 * mean.mean, y, xerr=_bars(mean), fmt="o", color=COLOURS[0], capsize=2.5, ms=5)
        if y and experiment.arms[data[y - 1][0]]["group"] != experiment.arms[arm]["group"]:
            axes.axhline(y - 0.5, color="#BBBBBB", linewidth=0.8)
    for reference, line in zip(experiment.results["reference_arms"], LINES[1:], strict=False):
        if mean := experiment.mean(reference):
            axes.axvline(100 * mean.mean, color=INK, linewidth=0.8, linestyle=line, label=experiment.title(reference), zorder=1)
    axes.set_yticks(range(len(data)), [experiment.title(arm) for arm, _ in data])
    axes.set_ylim(len(data) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{experiment.splits[0]} success, % (bars: 95 % interval)")
    axes.grid(axis="x", color="#E3E3E3")
    axes.set_axisbelow(True)
    _legend(figure, axes, columns=2)


# --- success against cost


def _cost_data(experiment: Experiment) -> list[tuple[str, Interval, dict[str, float]]]:
    """Arm, success, and each cost relative to full RL."""
    rows = []
    for arm in experiment.of_group(MAIN_GROUP):
        mean, speedups = experiment.mean(arm), {what: experiment.speedup(arm, what) for what in _COSTS}
        relative = {what: 1 / found.ratio for what, found in speedups.items() if found}
        if mean and relative:
            rows.append((arm, mean, relative))
    return rows


_COSTS = {"wall_seconds": "wall time", "flops": "FLOPs"}


def _draw_cost(figure: Any, experiment: Experiment, data: list[tuple[str, Interval, dict[str, float]]]) -> None:
    figure.set_size_inches(WIDTH, 3.9)
    shown = {what: name for what, name in _COSTS.items() if any(what in relative for _, _, relative in data)}
    styles = _styles(experiment.of_group(MAIN_GROUP))
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (what, name) in zip(panels, shown.items(), strict=True):
        for arm, mean, relative in data:
            if what in relative:
                style = {**styles[arm], "linestyle": "none"}
                axes.errorbar(
                    relative[what],
                    100 * mean.mean,
                    yerr=_bars(mean),
                    capsize=2,
                    ms=6,
                    label=experiment.title(arm),
                    elinewidth=0.9,
                    **style,
                )
        axes.set_xlabel(f"{name}, full RL = 1")
        axes.set_xlim(left=0)
        axes.grid(color="#E3E3E3")
        axes.set_axisbelow(True)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel(f"{experiment.splits[0]} success, %")
    _legend(figure, panels[0])


# --- along the sweeps


def _sweep_data(experiment: Experiment) -> list[tuple[str, list[tuple[str, Interval]]]]:
    """Title and known points of every sweep that has at least two."""
    found = [
        (sweep["title"], [(value, mean) for value, arm in sweep["arms"].items() if (mean := experiment.mean(arm))])
        for sweep in experiment.results["sweeps"]
    ]
    return [(title, points) for title, points in found if len(points) > 1]


def _draw_sweeps(figure: Any, experiment: Experiment, data: list[tuple[str, list[tuple[str, Interval]]]]) -> None:
    columns = min(2, len(data))
    rows = -(-len(data) // columns)
    figure.set_size_inches(WIDTH, 0.5 + 2.7 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    for axes, (title, points) in zip(panels, data, strict=False):
        positions = _positions([value for value, _ in points])
        for x, (_, mean) in zip(positions, points, strict=True):
            axes.errorbar(x, 100 * mean.mean, yerr=_bars(mean), fmt="o", color=COLOURS[0], capsize=3, ms=5)
        axes.plot(positions, [100 * mean.mean for _, mean in points], color=COLOURS[0], linewidth=1)
        for reference, line in zip(experiment.results["reference_arms"], LINES[1:], strict=False):
            if mean := experiment.mean(reference):
                axes.axhline(100 * mean.mean, color=INK, linewidth=0.8, linestyle=line, label=experiment.title(reference), zorder=1)
        axes.set_xticks(positions, [value for value, _ in points])
        axes.set_xlabel(title)
        axes.set_ylabel(f"{experiment.splits[0]} success, %")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="#E3E3E3")
        axes.set_axisbelow(True)
    for axes in list(figure.axes)[len(data) :]:
        axes.remove()
    _legend(figure, figure.axes[0])


def _positions(values: Sequence[str]) -> list[float]:
    """Where the values stand on the axis: at what they say where all are numbers, else one after another."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return [float(i) for i in range(len(values))]


# --- while training


def _curve_data(experiment: Experiment) -> list[tuple[str, list[tuple[float, float]]]]:
    """Arm, and (FLOPs so far over full RL's whole, success) where all its seeds with a curve have a point; means over them."""
    whole = experiment.costs(experiment.results["full_rl_arm"] or "")
    if not whole or not (unit := costs.mean_cost(whole)["flops"]):
        return []
    rows = []
    for arm in experiment.of_group(MAIN_GROUP):
        runs = [run for run in experiment.runs(arm) if run["curve"] and run["stages"]]
        points = []
        for stage, fraction, success in costs.mean_curve(runs):
            spent = [costs.cost_at(run, experiment.stages, stage, fraction, "flops") for run in runs]
            points.append((sum(spent) / len(runs) / unit, success))
        if points:
            rows.append((arm, points))
    return rows


def _draw_curves(figure: Any, experiment: Experiment, data: list[tuple[str, list[tuple[float, float]]]]) -> None:
    figure.set_size_inches(WIDTH, 3.9)
    axes, styles = figure.subplots(), _styles(experiment.of_group(MAIN_GROUP))
    for arm, points in data:
        x, y = zip(*points, strict=True)
        axes.plot(x, [100 * s for s in y], label=experiment.title(arm), linewidth=1.4, ms=4, **styles[arm])
    target = costs.final_success(experiment.runs(experiment.results["full_rl_arm"] or ""))
    if target is not None:
        axes.axhline(100 * target, color=INK, linewidth=0.8, linestyle="--", zorder=1, label="where full RL ends")
    axes.set_xlabel("FLOPs so far, of full RL's whole")
    axes.set_ylabel(f"{experiment.splits[0]} success, % (mean over seeds)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(color="#E3E3E3")
    axes.set_axisbelow(True)
    _legend(figure, axes)


def _legend(figure: Any, axes: Any, columns: int = 3) -> None:
    """Above the plot, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=8)


_DATA: dict[str, Callable[[Any], Any]] = {
    "success": _success_data,
    "sweeps": _sweep_data,
    "cost": _cost_data,
    "curves": _curve_data,
}
_DRAW: dict[str, Callable[..., None]] = {
    "success": _draw_success,
    "sweeps": _draw_sweeps,
    "cost": _draw_cost,
    "curves": _draw_curves,
}
