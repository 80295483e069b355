"""Figures of results as SVG: success, success against cost, along the sweeps, while training; of a single run also its routes and norms.

Colours are Okabe and Ito's; markers differ too, so that none of them is needed. With one version of matplotlib, equal results give equal
bytes.
"""

import importlib.metadata
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradprism.experiments import costs
from gradprism.experiments.comparison import MAIN_GROUP, Comparison
from gradprism.experiments.results import HeatMap, Routing
from gradprism.experiments.statistics import Interval
from gradprism.reporting.document import Figure as Block

WIDTH = 7.6  # inches; at GitHub's width of a README, text of 9 points is then read as it is
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#8A8A8A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
LINES = ("-", "--", ":")
INK = "#333333"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "gradprism",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}


def matplotlib_version() -> str:
    """The installed version; does not import it."""
    return importlib.metadata.version("matplotlib")


def drawn_by(svg: str) -> str | None:
    """The version of matplotlib that drew a figure, by what it wrote into it."""
    found = re.search(r"Matplotlib v([\w.+]+)", svg)
    return found[1] if found else None


def figure(comparison: Comparison, name: str) -> list[Block]:
    """The figure as a block of a document, or nothing where there is nothing to draw."""
    return [Block(name, _FIGURES[name][0])] if has_figure(comparison, name) else []


def has_figure(comparison: Comparison, name: str) -> bool:
    """Whether the results hold enough for a figure."""
    return bool(_FIGURES[name][1](comparison))


def draw_figures(comparison: Comparison) -> dict[str, str]:
    """Name to SVG of every figure that the results hold enough for."""
    drawn = {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own settings are
        matplotlib.rcParams.update(_STYLE)
        for name, (_, data_of, draw) in _FIGURES.items():
            if data := data_of(comparison):
                canvas = Figure(layout="constrained")
                draw(canvas, comparison, data)
                file = io.StringIO()
                canvas.savefig(file, format="svg", metadata={"Date": None})
                # Matplotlib ends lines with blanks, which no editor would keep.
                drawn[name] = re.sub(r"[ \t]+$", "", file.getvalue(), flags=re.MULTILINE)
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


def _legend(figure: Figure, axes: Axes, columns: int = 3) -> None:
    """Above the plot, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=8)


def _grid(axes: Axes, axis: Any = "both") -> None:
    axes.grid(axis=axis, color="#E3E3E3")
    axes.set_axisbelow(True)


# --- success by arm


def _success_data(comparison: Comparison) -> list[tuple[str, Interval]]:
    groups = dict.fromkeys([MAIN_GROUP, *(arm.group for arm in comparison.arms.values())])
    return [(arm, mean) for group in groups for arm in comparison.of_group(group) if (mean := comparison.mean(arm))]


def _draw_success(figure: Figure, comparison: Comparison, data: list[tuple[str, Interval]]) -> None:
    figure.set_size_inches(WIDTH, 0.9 + 0.24 * len(data))
    axes = figure.subplots()
    for y, (arm, mean) in enumerate(data):
        axes.errorbar(100 * mean.mean, y, xerr=_bars(mean), fmt="o", color=COLOURS[0], capsize=2.5, ms=5)
        if y and comparison.arms[data[y - 1][0]].group != comparison.arms[arm].group:
            axes.axhline(y - 0.5, color="#BBBBBB", linewidth=0.8)
    for reference, line in zip(comparison.results.reference_arms, LINES[1:], strict=False):
        if mean := comparison.mean(reference):
            axes.axvline(100 * mean.mean, color=INK, linewidth=0.8, linestyle=line, label=comparison.title(reference), zorder=1)
    axes.set_yticks(range(len(data)), [comparison.title(arm) for arm, _ in data])
    axes.set_ylim(len(data) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{comparison.splits[0]} success, % (bars: 95 % interval)")
    _grid(axes, "x")
    _legend(figure, axes, columns=2)


# --- success against cost

_COSTS: dict[costs.Measure, str] = {"wall_seconds": "wall time", "flops": "FLOPs"}
_CostRow = tuple[str, Interval, dict[costs.Measure, float]]


def _cost_data(comparison: Comparison) -> list[_CostRow]:
    """Arm, success, and each cost relative to full RL."""
    rows = []
    for arm in comparison.of_group(MAIN_GROUP):
        mean, speedups = comparison.mean(arm), {measure: comparison.speedup(arm, measure) for measure in _COSTS}
        relative = {measure: 1 / found.ratio for measure, found in speedups.items() if found}
        if mean and relative:
            rows.append((arm, mean, relative))
    return rows


def _draw_cost(figure: Figure, comparison: Comparison, data: list[_CostRow]) -> None:
    figure.set_size_inches(WIDTH, 3.9)
    shown = {measure: name for measure, name in _COSTS.items() if any(measure in relative for _, _, relative in data)}
    styles = _styles(comparison.of_group(MAIN_GROUP))
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (measure, name) in zip(panels, shown.items(), strict=True):
        for arm, mean, relative in data:
            if measure in relative:
                style = {**styles[arm], "linestyle": "none", "capsize": 2, "ms": 6, "elinewidth": 0.9}
                axes.errorbar(relative[measure], 100 * mean.mean, yerr=_bars(mean), label=comparison.title(arm), **style)
        axes.set_xlabel(f"{name}, full RL = 1")
        axes.set_xlim(left=0)
        _grid(axes)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel(f"{comparison.splits[0]} success, %")
    _legend(figure, panels[0])


# --- along the sweeps

_SweepData = list[tuple[str, list[tuple[str, Interval]]]]


def _sweep_data(comparison: Comparison) -> _SweepData:
    """Title and known points of every sweep that has at least two."""
    found = [
        (sweep.title, [(value, mean) for value, arm in sweep.arms.items() if (mean := comparison.mean(arm))])
        for sweep in comparison.results.sweeps
    ]
    return [(title, points) for title, points in found if len(points) > 1]


def _draw_sweeps(figure: Figure, comparison: Comparison, data: _SweepData) -> None:
    columns = min(2, len(data))
    rows = -(-len(data) // columns)
    figure.set_size_inches(WIDTH, 0.5 + 2.7 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    for axes, (title, points) in zip(panels, data, strict=False):
        positions = _positions([value for value, _ in points])
        for x, (_, mean) in zip(positions, points, strict=True):
            axes.errorbar(x, 100 * mean.mean, yerr=_bars(mean), fmt="o", color=COLOURS[0], capsize=3, ms=5)
        axes.plot(positions, [100 * mean.mean for _, mean in points], color=COLOURS[0], linewidth=1)
        for reference, line in zip(comparison.results.reference_arms, LINES[1:], strict=False):
            if mean := comparison.mean(reference):
                label = comparison.title(reference)
                axes.axhline(100 * mean.mean, color=INK, linewidth=0.8, linestyle=line, label=label, zorder=1)
        axes.set_xticks(positions, [value for value, _ in points])
        axes.set_xlabel(title)
        axes.set_ylabel(f"{comparison.splits[0]} success, %")
        axes.set_ylim(bottom=0)
        _grid(axes, "y")
    for axes in list(figure.axes)[len(data) :]:
        axes.remove()
    _legend(figure, figure.axes[0])


def _positions(values: Sequence[str]) -> list[float]:
    """Places of the values on the axis: at what they say where all are numbers, else one after another."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return [float(i) for i in range(len(values))]


# --- success while training

_Curves = list[tuple[str, list[tuple[float, float]]]]


def _curve_data(comparison: Comparison) -> _Curves:
    """Arm, and (FLOPs so far over full RL's whole, success) where all its seeds with a curve have a point; means over them."""
    whole = comparison.costs(comparison.results.full_rl_arm)
    if not whole or not (unit := costs.mean_cost(whole).flops):
        return []
    rows = []
    for arm in comparison.of_group(MAIN_GROUP):
        runs = [run for run in comparison.runs(arm) if run.curve and run.stages]
        points = []
        for stage, fraction, success in costs.mean_curve(runs):
            spent = [costs.cost_at(run, comparison.results.stages, stage, fraction, "flops") for run in runs]
            points.append((sum(spent) / len(runs) / unit, success))
        if points:
            rows.append((arm, points))
    return rows


def _draw_curves(figure: Figure, comparison: Comparison, data: _Curves) -> None:
    figure.set_size_inches(WIDTH, 3.9)
    axes, styles = figure.subplots(), _styles(comparison.of_group(MAIN_GROUP))
    for arm, points in data:
        x, y = zip(*points, strict=True)
        axes.plot(x, [100 * s for s in y], label=comparison.title(arm), linewidth=1.4, ms=4, **styles[arm])
    target = costs.final_success(comparison.runs(comparison.results.full_rl_arm))
    if target is not None:
        axes.axhline(100 * target, color=INK, linewidth=0.8, linestyle="--", zorder=1, label="where full RL ends")
    axes.set_xlabel("FLOPs so far, of full RL's whole")
    axes.set_ylabel(f"{comparison.splits[0]} success, % (mean over seeds)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    _grid(axes)
    _legend(figure, axes)


# --- of a single run: scores and routes, norms, logs of the trainings


def _score_data(comparison: Comparison) -> list[Routing]:
    return list(comparison.results.routes.values())[:4] if len(comparison.results.seeds) == 1 else []


def _draw_scores(figure: Figure, comparison: Comparison, data: list[Routing]) -> None:
    """Histograms stacked by route; no bin mixes the sides of the threshold."""
    figure.set_size_inches(WIDTH, 2.6 * len(data))
    for axes, routing in zip(figure.subplots(len(data), squeeze=False)[:, 0], data, strict=True):
        left = [routing.start + k * routing.width for k in range(len(routing.sft))]
        below = [0] * len(left)
        for name, counts, colour in (("SFT", routing.sft, COLOURS[0]), ("RL", routing.rl, COLOURS[1])):
            label = f"{name} ({sum(counts)})"
            axes.bar(left, counts, routing.width, below, align="edge", color=colour, edgecolor="white", linewidth=0.5, label=label)
            below = counts
        axes.axvline(routing.threshold, color=INK, linewidth=1, linestyle="--", label=f"threshold {routing.threshold:.4g}")
        axes.set_xlabel(routing.metric if routing.policy == "concentration" else f"{routing.policy} ({routing.metric})")
        axes.set_ylabel("trajectories")
        axes.legend(frameon=False, fontsize=8)


def _norm_data(comparison: Comparison) -> HeatMap | None:
    return comparison.results.heat_map if len(comparison.results.seeds) == 1 else None


def _draw_norms(figure: Figure, comparison: Comparison, data: HeatMap) -> None:
    """Layers upwards, kinds of matrices across; colours by order of magnitude, zeros left blank."""

    few = len(data.layers) <= 16
    figure.set_size_inches(WIDTH, max(2.5, 0.8 + (0.28 if few else 0.12) * len(data.layers)))
    axes = figure.subplots()
    norms = np.array([[norm or np.nan for norm in row] for row in data.mean_norms], dtype=float)
    # Squares and few colours: an image, or a finer scale, would be a bitmap within the SVG.
    squares = axes.pcolormesh(np.log10(norms), cmap=matplotlib.colormaps["Blues"].resampled(16), alpha=0.75, edgecolor="white")
    axes.set_xticks(np.arange(len(data.kinds)) + 0.5, data.kinds)
    axes.set_yticks(np.arange(len(data.layers)) + 0.5, [str(layer) for layer in data.layers])
    axes.set_ylabel("layer")
    for (y, x), norm in np.ndenumerate(norms) if few else ():
        if norm == norm:
            axes.text(x + 0.5, y + 0.5, f"{norm:.2g}", ha="center", va="center", fontsize=7.5)
    figure.colorbar(squares, label="log₁₀ of the mean norm")


_Logs = list[tuple[str, list[tuple[int, float]]]]


def _training_data(comparison: Comparison) -> _Logs:
    """Label and points of the logs of the last arm's trainings, where there is one seed."""
    runs = comparison.runs(next(reversed(comparison.arms), None)) if len(comparison.results.seeds) == 1 else []
    stages = [comparison.results.stages[name] for name in (runs[-1].stages if runs else [])]
    losses = [[(row.step, row.loss) for row in stage.history if row.loss is not None] for stage in stages]
    successes = [[(row.step, 100 * row.success) for row in stage.history if row.success is not None] for stage in stages]
    logs = [*(("SFT: loss", points) for points in losses), *(("RL: success while sampling, %", points) for points in successes)]
    return [(label, points) for label, points in logs if points]


def _draw_training(figure: Figure, comparison: Comparison, data: _Logs) -> None:
    figure.set_size_inches(WIDTH, 2.6)
    for axes, (label, points) in zip(figure.subplots(1, len(data), squeeze=False)[0], data, strict=True):
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=COLOURS[0], linewidth=1.2, marker="o" if len(x) < 40 else None, ms=3)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        _grid(axes, "y")


_FIGURES: dict[str, tuple[str, Callable[[Comparison], Any], Callable[..., None]]] = {
    "success": ("Success of every arm with its 95 % interval", _success_data, _draw_success),
    "sweeps": ("Success along the sweeps with 95 % intervals", _sweep_data, _draw_sweeps),
    "cost": ("Success against cost, relative to full RL", _cost_data, _draw_cost),
    "curves": ("Success while training against the cost so far, relative to full RL's whole cost", _curve_data, _draw_curves),
    "scores": ("Scores, and where the trajectories went", _score_data, _draw_scores),
    "norms": ("Mean Frobenius norm of the gradient over the corpus, by layer and matrix", _norm_data, _draw_norms),
    "training": ("Logs of the trainings", _training_data, _draw_training),
}
FIGURES = tuple(_FIGURES)
