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
from gradprism.experiments.statistics import Interval

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


def drawn_elsewhere(svg: str) -> bool:
    """Whether another version of matplotlib than the installed one drew a figure, by what it wrote into it."""
    found = re.search(r"Matplotlib v([\w.+]+)", svg)
    return found is not None and found[1] != importlib.metadata.version("matplotlib")


def draw_figures(comparison: Comparison) -> dict[str, str]:
    """Name to SVG of every figure of `FIGURES` that the results hold enough for."""
    drawn = {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own settings are
        matplotlib.rcParams.update(_STYLE)
        for name, (_, draw) in FIGURES.items():
            canvas, file = Figure(layout="constrained"), io.StringIO()
            if draw(canvas, comparison):
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


def _references(line: Callable[..., Any], comparison: Comparison) -> None:
    """Lines across (`axhline`) or up (`axvline`) at the success of the reference arms."""
    for reference, style in zip(comparison.results.reference_arms, LINES[1:], strict=False):
        if mean := comparison.mean(reference):
            line(100 * mean.mean, color=INK, linewidth=0.8, linestyle=style, label=comparison.title(reference), zorder=1)


def _draw_success(figure: Figure, comparison: Comparison) -> bool:
    """Every arm's success with its interval."""
    groups = dict.fromkeys([MAIN_GROUP, *(arm.group for arm in comparison.arms.values())])
    data = [(arm, mean) for group in groups for arm in comparison.of_group(group) if (mean := comparison.mean(arm))]
    if not data:
        return False
    figure.set_size_inches(WIDTH, 0.9 + 0.24 * len(data))
    axes = figure.subplots()
    for y, (arm, mean) in enumerate(data):
        axes.errorbar(100 * mean.mean, y, xerr=_bars(mean), fmt="o", color=COLOURS[0], capsize=2.5, ms=5)
        if y and comparison.arms[data[y - 1][0]].group != comparison.arms[arm].group:
            axes.axhline(y - 0.5, color="#BBBBBB", linewidth=0.8)
    _references(axes.axvline, comparison)
    axes.set_yticks(range(len(data)), [comparison.title(arm) for arm, _ in data])
    axes.set_ylim(len(data) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{comparison.splits[0]} success, % (bars: 95 % interval)")
    _grid(axes, "x")
    _legend(figure, axes, columns=2)
    return True


def _draw_cost(figure: Figure, comparison: Comparison) -> bool:
    """Success against each cost relative to full RL."""
    arms = comparison.of_group(MAIN_GROUP)
    known = {arm: mean for arm in arms if (mean := comparison.mean(arm))}
    units: dict[costs.Measure, str] = {"wall_seconds": "wall time", "flops": "FLOPs"}
    shown = []
    for measure, name in units.items():
        points = [(arm, 1 / found.ratio) for arm in known if (found := comparison.speedup(arm, measure))]
        shown += [(name, points)] if points else []
    if not shown:
        return False
    figure.set_size_inches(WIDTH, 3.9)
    styles = _styles(arms)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (name, points) in zip(panels, shown, strict=True):
        for arm, relative in points:
            style = {**styles[arm], "linestyle": "none", "capsize": 2, "ms": 6, "elinewidth": 0.9}
            axes.errorbar(relative, 100 * known[arm].mean, yerr=_bars(known[arm]), label=comparison.title(arm), **style)
        axes.set_xlabel(f"{name}, full RL = 1")
        axes.set_xlim(left=0)
        _grid(axes)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel(f"{comparison.splits[0]} success, %")
    _legend(figure, panels[0])
    return True


def _draw_sweeps(figure: Figure, comparison: Comparison) -> bool:
    """Success along every sweep of which two points are known."""
    found = [
        (sweep.title, {value: mean for value, arm in sweep.arms.items() if (mean := comparison.mean(arm))})
        for sweep in comparison.results.sweeps
    ]
    data = [(title, means) for title, means in found if len(means) > 1]
    if not data:
        return False
    columns = min(2, len(data))
    rows = -(-len(data) // columns)
    figure.set_size_inches(WIDTH, 0.5 + 2.7 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    for axes, (title, means) in zip(panels, data, strict=False):
        positions = _positions(list(means))
        for x, mean in zip(positions, means.values(), strict=True):
            axes.errorbar(x, 100 * mean.mean, yerr=_bars(mean), fmt="o", color=COLOURS[0], capsize=3, ms=5)
        axes.plot(positions, [100 * mean.mean for mean in means.values()], color=COLOURS[0], linewidth=1)
        _references(axes.axhline, comparison)
        axes.set_xticks(positions, list(means))
        axes.set_xlabel(title)
        axes.set_ylabel(f"{comparison.splits[0]} success, %")
        axes.set_ylim(bottom=0)
        _grid(axes, "y")
    for axes in list(figure.axes)[len(data) :]:
        axes.remove()
    _legend(figure, figure.axes[0])
    return True


def _positions(values: Sequence[str]) -> list[float]:
    """Places of the values on the axis: at what they say where all are numbers, else one after another."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return [float(i) for i in range(len(values))]


def _draw_curves(figure: Figure, comparison: Comparison) -> bool:
    """Mean success over FLOPs so far, relative to full RL's whole, where all of an arm's seeds with a curve have a point."""
    full_rl, arms = comparison.results.full_rl_arm, comparison.of_group(MAIN_GROUP)
    whole, drawn = comparison.costs(full_rl), False
    if not whole or not (unit := costs.mean_cost(whole).flops):
        return False
    figure.set_size_inches(WIDTH, 3.9)
    axes, styles = figure.subplots(), _styles(arms)
    for arm in arms:
        runs = [run for run in comparison.runs(arm) if run.curve and run.stages]
        points = [
            (
                sum(costs.cost_at(run, comparison.results.stages, stage, fraction, "flops") for run in runs) / len(runs) / unit,
                success,
            )
            for stage, fraction, success in costs.mean_curve(runs)
        ]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, [100 * s for s in y], label=comparison.title(arm), linewidth=1.4, ms=4, **styles[arm])
            drawn = True
    target = costs.final_success(comparison.runs(full_rl))
    if target is not None:
        axes.axhline(100 * target, color=INK, linewidth=0.8, linestyle="--", zorder=1, label="where full RL ends")
    axes.set_xlabel("FLOPs so far, of full RL's whole")
    axes.set_ylabel(f"{comparison.results.curve_split or comparison.splits[0]} success, % (mean over seeds)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    _grid(axes)
    _legend(figure, axes)
    return drawn


# --- of a single run: scores and routes, norms, logs of the trainings


def _draw_scores(figure: Figure, comparison: Comparison) -> bool:
    """Histograms stacked by route; no bin mixes the sides of the threshold."""
    data = list(comparison.results.routes.values())[:4] if comparison.is_run else []
    if not data:
        return False
    figure.set_size_inches(WIDTH, 2.6 * len(data))
    for axes, routing in zip(figure.subplots(len(data), squeeze=False)[:, 0], data, strict=True):
        left = [routing.start + k * routing.width for k in range(len(routing.sft))]
        below = np.zeros(len(left))
        sides = (("SFT", routing.sft, COLOURS[0]), ("RL", routing.rl, COLOURS[1]))
        parts = (*sides, ("both", routing.both, COLOURS[2]), ("neither", routing.none, COLOURS[7]))
        for name, counts, colour in parts:
            if name in ("SFT", "RL") or counts:
                label = f"{name} ({sum(counts)})"
                axes.bar(
                    left, counts, routing.width, below, align="edge", color=colour, edgecolor="white", linewidth=0.5, label=label
                )
                below = below + counts
        for cut in routing.cuts or [routing.threshold]:
            axes.axvline(cut, color=INK, linewidth=1, linestyle="--", label=f"{'cut' if routing.cuts else 'threshold'} {cut:.4g}")
        axes.set_xlabel(routing.metric if routing.policy == "concentration" else f"{routing.policy} ({routing.metric})")
        axes.set_ylabel("trajectories")
        axes.legend(frameon=False, fontsize=8)
    return True


def _draw_norms(figure: Figure, comparison: Comparison) -> bool:
    """Layers upwards, kinds of matrices across; colours by order of magnitude, zeros left blank."""
    data = comparison.results.heat_map
    if data is None or not comparison.is_run:
        return False
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
    return True


def _draw_training(figure: Figure, comparison: Comparison) -> bool:
    """The logs of the last arm's trainings."""
    runs = comparison.runs(next(reversed(comparison.arms), None)) if comparison.is_run else []
    stages = [comparison.results.stages[name] for name in (runs[-1].stages if runs else [])]
    losses = [[(row.step, row.loss) for row in stage.history if row.loss is not None] for stage in stages]
    successes = [[(row.step, 100 * row.success) for row in stage.history if row.success is not None] for stage in stages]
    logs = [*(("SFT: loss", points) for points in losses), *(("RL: success while sampling, %", points) for points in successes)]
    data = [(label, points) for label, points in logs if points]
    if not data:
        return False
    figure.set_size_inches(WIDTH, 2.6)
    for axes, (label, points) in zip(figure.subplots(1, len(data), squeeze=False)[0], data, strict=True):
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=COLOURS[0], linewidth=1.2, marker="o" if len(x) < 40 else None, ms=3)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        _grid(axes, "y")
    return True


# Name: caption, and what draws it or says with False that there is nothing to draw.
FIGURES: dict[str, tuple[str, Callable[[Figure, Comparison], bool]]] = {
    "success": ("Success of every arm with its 95 % interval", _draw_success),
    "sweeps": ("Success along the sweeps with 95 % intervals", _draw_sweeps),
    "cost": ("Success against cost, relative to full RL", _draw_cost),
    "curves": ("Success while training against the cost so far, relative to full RL's whole cost", _draw_curves),
    "scores": ("Scores, and where the trajectories went", _draw_scores),
    "norms": ("Mean Frobenius norm of the gradient over the corpus, by layer and matrix", _draw_norms),
    "training": ("Logs of the trainings", _draw_training),
}
