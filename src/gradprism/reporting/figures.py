"""The report's figures: plotly objects from parts of the results. Colours are Okabe and Ito's, safe for colour-blind readers."""

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

COLOURS = {"base": "#B8B8B8", "sft": "#0072B2", "rl": "#E69F00"}
OTHER_COLOURS = ("#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
# One hue from light to middling: it survives grey print, and dark figures can be read on all of it.
PALE_TO_BLUE = [[0, "#F7FBFF"], [0.33, "#C6DBEF"], [0.67, "#85BCDC"], [1, "#4292C6"]]
INK, GRID = "#333333", "#E3E3E3"

_AXIS = {
    "showline": True,
    "linecolor": INK,
    "ticks": "outside",
    "tickcolor": INK,
    "gridcolor": GRID,
    "zeroline": False,
    "automargin": True,
}
_TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "#FFFFFF",
        "plot_bgcolor": "#FFFFFF",
        "margin": {"l": 60, "r": 20, "t": 36, "b": 50},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title": {"text": ""}},
        "xaxis": {**_AXIS, "showgrid": False},
        "yaxis": _AXIS,
        "bargap": 0.3,
    }
)


def _label(text: str, longest: int = 40) -> str:
    """A name from the data, shown as it is (plotly reads a few HTML tags in any text) and cut where it would crowd out the plot."""
    return html.escape(text if len(text) <= longest else text[: longest - 1] + "…", quote=False)


def _figure(traces: Sequence[Any], x: str, y: str, height: int = 340, **layout: Any) -> go.Figure:
    return go.Figure(
        list(traces),
        go.Layout(template=_TEMPLATE, height=height, xaxis={"title": {"text": x}}, yaxis={"title": {"text": y}}, **layout),
    )


def stage_colours(stages: Sequence[str]) -> dict[str, str]:
    """A colour a stage; those of the pipeline always have the same."""
    unknown = [s for s in dict.fromkeys(stages) if s not in COLOURS]
    return {**COLOURS, **{s: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, s in enumerate(unknown)}}


def score_bins(scores: Sequence[float], anchor: float) -> tuple[np.ndarray, float]:
    """Bin index of every score and the bins' width: bin k is (anchor + k·width, anchor + (k + 1)·width].

    Closed on the right and anchored at the threshold, so that no bin mixes the two sides: s ≤ threshold falls left of it.
    The width is Freedman and Diaconis's (1981), held between 10 and 60 bins over the range.
    """
    s = np.asarray(scores, dtype=np.float64)
    spread = float(s.max() - s.min())
    if spread == 0:
        width = max(abs(anchor), 1.0) / 100
    else:
        q1, q3 = np.percentile(s, [25, 75])
        width = float(np.clip(2 * (q3 - q1) / len(s) ** (1 / 3), spread / 60, spread / 10))
    return np.ceil((s - anchor) / width).astype(int) - 1, width


def score_figure(routing: dict[str, Any]) -> go.Figure:
    """Histogram of the scores, stacked by route, with the threshold."""
    threshold = routing.get("threshold")
    anchor = min(routing["scores"]) if threshold is None else threshold
    index, width = score_bins(routing["scores"], anchor)
    bins = np.arange(index.min(), index.max() + 1)
    routes = np.asarray(routing["routes"])
    traces = [
        go.Bar(
            x=[anchor + (k + 0.5) * width for k in bins.tolist()],
            y=[int(((index == k) & (routes == route)).sum()) for k in bins],
            width=width,
            name=f"{route.upper()} ({int((routes == route).sum())})",
            marker={"color": COLOURS[route], "line": {"color": "#FFFFFF", "width": 1}},
            hovertemplate="%{x:.4g}: %{y} trajectories",
        )
        for route in ("sft", "rl")
    ]
    figure = _figure(traces, f"score ({_label(routing['metric'])})", "trajectories", barmode="stack", bargap=0)
    if threshold is not None:
        figure.add_vline(threshold, line={"color": INK, "width": 1.5, "dash": "dash"})
        figure.add_annotation(
            x=threshold, y=1, yref="paper", yanchor="bottom", text=f"threshold {threshold:.4g}", showarrow=False, font={"size": 12}
        )
        # A line does not stretch the axis: a threshold beyond all scores must still be seen.
        ends = [anchor + int(bins[0]) * width, anchor + (int(bins[-1]) + 1) * width, threshold]
        figure.update_xaxes(range=[min(ends) - width, max(ends) + width])
        if threshold - min(ends) < max(ends) - threshold:  # the legend goes to the side where the threshold's label is not
            figure.update_layout(legend={"x": 1, "xanchor": "right"})
    # Left alone, plotly puts the ticks of a bar chart at the bars' centres, which are no round numbers.
    figure.update_xaxes(tick0=0, dtick=_round_step(len(bins) * width / 8))
    figure.update_layout(legend_traceorder="normal")
    return figure


def _round_step(step: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))


def heat_map_figure(heat_map: dict[str, Any], *, log: bool = True) -> go.Figure:
    """Mean Frobenius norm by layer (first at the bottom) and matrix; `log` colours by order of magnitude and leaves zeros blank."""
    norms = heat_map["mean_norms"]
    values = [[(math.log10(v) if v > 0 else None) if log else v for v in row] for row in norms]
    known = [v for row in values for v in row if v is not None]
    bar: dict[str, Any] = {"title": {"text": "mean norm", "side": "right"}, "outlinewidth": 0, "thickness": 14}
    if log and known:
        ticks = _log_ticks(min(known), max(known))
        bar |= {"tickvals": [math.log10(t) for t in ticks], "ticktext": [f"{t:.3g}" for t in ticks]}
    few = len(norms) <= 16
    trace = go.Heatmap(
        z=values,
        x=[_label(kind) for kind in heat_map["kinds"]],
        y=[str(layer) for layer in heat_map["layers"]],
        customdata=norms,
        text=[[f"{v:.2g}" for v in row] for row in norms] if few else None,
        texttemplate="%{text}" if few else None,
        textfont={"size": 11, "color": "#111111"},
        colorscale=PALE_TO_BLUE,
        colorbar=bar,
        xgap=1,
        ygap=1,
        hovertemplate="layer %{y}, %{x}: %{customdata:.4g}<extra></extra>",
    )
    figure = _figure([trace], "matrix", "layer", height=max(300, 110 + (30 if few else 14) * len(norms)))
    figure.update_xaxes(type="category", showline=False, ticks="")
    figure.update_yaxes(type="category", showline=False, ticks="", showgrid=False)
    return figure


def _log_ticks(low: float, high: float) -> list[float]:
    """1–2–5 ticks within [10^low, 10^high]; powers of ten alone over more than three decades; the ends where neither gives two."""
    steps = (1, 2, 5) if high - low <= 3 else (1,)
    ticks = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in steps]
    inside = [t for t in ticks if low <= math.log10(t) <= high]
    return inside if len(inside) >= 2 else sorted({10.0**low, 10.0**high})


def evaluation_figure(evaluation: list[dict[str, Any]]) -> go.Figure:
    """Success over all task types with its 95 % interval: splits along the axis, a bar a stage."""
    overall = [row for row in evaluation if row["task_type"] == "all" and row["episodes"]]
    stages = list(dict.fromkeys(row["stage"] for row in overall))
    colours = stage_colours(stages)
    traces = []
    for stage in stages:
        rows = [row for row in overall if row["stage"] == stage]
        success = [row["successes"] / row["episodes"] for row in rows]
        traces.append(
            go.Bar(
                x=[_label(row["split"]) for row in rows],
                y=[100 * s for s in success],
                name=_label(stage),
                marker={"color": colours[stage], "line": {"color": INK, "width": 0.5}},
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [100 * max(0.0, row["high"] - s) for row, s in zip(rows, success, strict=True)],
                    "arrayminus": [100 * max(0.0, s - row["low"]) for row, s in zip(rows, success, strict=True)],
                    "color": INK,
                    "thickness": 1.3,
                    "width": 5,
                },
                hovertemplate="%{x}: %{y:.1f} %",
            )
        )
    top = max((100 * row["high"] for row in overall), default=100)
    figure = _figure(traces, "", "success, % (bars: 95 % interval)", barmode="group")
    figure.update_xaxes(type="category")
    figure.update_yaxes(range=[0, min(102, 1.08 * top)])
    return figure


def sft_figure(curve: list[dict[str, Any]]) -> go.Figure:
    """SFT loss by optimizer step."""
    return _figure(
        [_line(curve, "loss", "loss", COLOURS["sft"])], "optimizer step", "loss, nats a token", height=300, showlegend=False
    )


def rl_figure(curve: list[dict[str, Any]], window: int = 5) -> go.Figure:
    """Success of the sampled episodes by RL step, with its running mean; other shares are a click in the legend away."""
    success = [row.get("success") for row in curve]
    mean = [_mean(success[max(0, i + 1 - window) : i + 1]) for i in range(len(success))]
    smooth = [{**row, "mean": m} for row, m in zip(curve, mean, strict=True)]
    traces = [
        _line(curve, "success", "a step", COLOURS["rl"], mode="markers", opacity=0.6),
        _line(smooth, "mean", f"mean of the last {window} steps", COLOURS["rl"]),
    ]
    for key, name, colour, dash in (
        ("invalid_share", "invalid actions", "#D55E00", "dot"),
        ("zero_variance_groups", "zero-variance groups", "#009E73", "dash"),
    ):
        if any(row.get(key) is not None for row in curve):
            traces.append(_line(curve, key, name, colour, dash=dash, visible="legendonly"))
    figure = _figure(traces, "RL step", "success while sampling", height=300)
    figure.update_yaxes(rangemode="tozero", tickformat=".0%")
    return figure


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _line(
    curve: list[dict[str, Any]], key: str, name: str, colour: str, *, mode: str = "lines", dash: str | None = None, **more: Any
) -> go.Scatter:
    return go.Scatter(
        x=[row["step"] for row in curve],
        y=[row.get(key) for row in curve],
        name=name,
        mode=mode,
        line={"color": colour, "width": 2, "dash": dash},
        marker={"color": colour, "size": 6},
        **more,
    )
