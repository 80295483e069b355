"""One HTML file with everything: it opens from a disk, asks the network for nothing, and runs nothing that comes from data."""

import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gradprism.reporting import tables
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.files import atomic_write

# The browser itself refuses every request, whatever the page or plotly should try.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
.byline, .missing, .note { color: #666; font-size: .9rem; }
.byline { margin-top: .2rem; }
.summary { font-size: 1.05rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
table.wide { width: 100%; }
th, td { padding: .3rem .55rem; text-align: right; border-bottom: 1px solid #e6e6e6; vertical-align: top; }
thead th { border-bottom: 1.5px solid #555; vertical-align: bottom; }
th.name, td.name { text-align: left; overflow-wrap: break-word; }
td:not(.name) { white-space: nowrap; }
tr.strong td, td.strong { font-weight: 600; }
td small { display: block; color: #666; font-weight: 400; }
ul.warnings li { overflow-wrap: anywhere; }
pre { font-size: .82rem; background: #f6f6f6; padding: .8rem; overflow-x: auto; }
details { margin-top: 1rem; }
summary { cursor: pointer; }
.plot { width: 100%; }
@media print { body { max-width: none; margin: 0; } h2 { break-after: avoid; } .plot, table { break-inside: avoid; } }
""".strip()

# How a sentence says which model was evaluated.
WHEN = {"base": "before training", "sft": "after SFT", "rl": "after RL"}

DRAW = """
const figures = JSON.parse(document.getElementById("figures").textContent);
for (const [id, figure] of Object.entries(figures))
  Plotly.newPlot(id, figure.data, figure.layout, {responsive: true, displaylogo: false, displayModeBar: false});
""".strip()


def write_report(results: dict[str, Any], path: Path) -> None:
    """Writes the report of `results` (the content of a run's `results.json`) to `path`, at once or not at all.

    A part that is missing from `results` is named as missing. The file is about 5 MB: plotly ships only its whole library, 4.8 MB,
    and it is in the file so that nothing needs to be fetched.

    Raises `ConfigError` where `path` is a folder, and `WriteError` where it cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; --out names the HTML file")
    page = render(results)
    with atomic_write(path, "wb") as file:
        # A lone surrogate, which JSON may hold, has no UTF-8 form.
        file.write(page.encode("utf-8", errors="replace"))


def render(results: dict[str, Any]) -> str:
    """The page as text; equal results give equal text."""
    from plotly.offline import get_plotlyjs

    figures: dict[str, Any] = {}

    def plot(name: str, figure: Any) -> str:
        figures[name] = figure.to_plotly_json()
        return f'<div class="plot" id="{name}" style="height:{figure.layout.height}px"></div>'

    sections = [
        _section("Success", _evaluation(results, plot)),
        _section("Cost", _costs(results)),
        _section("Scores and routes", _routing(results, plot)),
        _section("Mean gradient norm by layer and matrix", _heat_map(results, plot)),
        _section("Training", _curves(results, plot)),
        _section("Warnings", _warnings(results)),
        _section("What was run", _facts(results)),
    ]
    name = _text(results["name"])
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{name} · gradprism</title>",
            f"<style>\n{STYLE}\n</style></head><body>",
            f"<h1>{name}</h1>",
            _byline(results),
            f'<p class="summary">{_text(summary(results))}</p>',
            *sections,
            '<noscript><p class="missing">The figures need JavaScript.</p></noscript>',
            f'<script type="application/json" id="figures">{script_json(figures)}</script>',
            f"<script>{get_plotlyjs()}</script>",
            f"<script>\n{DRAW}\n</script>",
            "</body></html>\n",
        ]
    )


def _text(value: Any) -> str:
    """A value from the data as HTML text or attribute."""
    return html.escape(tables.printable(str(value)))


def script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    from plotly.utils import PlotlyJSONEncoder

    return json.dumps(value, cls=PlotlyJSONEncoder).replace("<", "\\u003c")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>\n{body}\n</section>"


def _missing(what: str) -> str:
    return f'<p class="missing">No {what} in these results.</p>'


def _table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1, strong: str | None = None, wide: bool = True
) -> str:
    """Escapes every cell; the first `names` columns hold names. The row whose first cell is `strong` stands out."""

    def cell(tag: str, i: int, text: str) -> str:
        kind = ' class="name"' if i < names else ""
        # An interval goes below its estimate, so that seven task types fit on a page.
        estimate, bracket, interval = text.partition(" [")
        split = i >= names and bracket
        return (
            f"<{tag}{kind}>{_text(estimate)}<small>[{_text(interval)}</small></{tag}>"
            if split
            else f"<{tag}{kind}>{_text(text)}</{tag}>"
        )

    def line(tag: str, texts: Sequence[str]) -> str:
        kind = ' class="strong"' if texts[0] == strong else ""
        return f"<tr{kind}>{''.join(cell(tag, i, text) for i, text in enumerate(texts))}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    kind = ' class="wide"' if wide else ""
    return f'<div class="scroll"><table{kind}><thead>{line("th", headings)}</thead><tbody>\n{body}\n</tbody></table></div>'


def summary(results: dict[str, Any]) -> str:
    """A few plain sentences: success before and after, whether the intervals part, the routes, the probe's share of the time."""
    sentences = []
    overall = [e for e in results.get("evaluation") or [] if e["task_type"] == "all" and e["episodes"]]
    for split in dict.fromkeys(e["split"] for e in overall):
        rows = [e for e in overall if e["split"] == split]
        when = [WHEN.get(row["stage"], f"at {row['stage']}") for row in rows]
        estimates = [tables.percent(row).replace(" ", " % ", 1) for row in rows]
        steps = ", ".join(f"{estimate} {at}" for estimate, at in zip(estimates, when, strict=True))
        sentences.append(f"Success on {split} tasks ({_episodes(rows)}; 95 % intervals): {steps}.")
        if len(rows) > 1:
            overlap = rows[-1]["low"] <= rows[0]["high"] and rows[0]["low"] <= rows[-1]["high"]
            told = "overlap, so no difference is claimed" if overlap else "do not overlap"
            sentences.append(f"The intervals {when[0]} and {when[-1]} {told}.")
    if not overall:
        sentences.append("No evaluation in these results.")
    if routing := results.get("routing"):
        routes = routing["routes"]
        sentences.append(f"{routes.count('sft')} of {len(routes)} trajectories went to SFT, {routes.count('rl')} to RL.")
    rows = tables.cost_rows(results)
    probe = [row for row in rows[:-1] if row["stage"] == "probe"]
    if probe and probe[0]["share"] is not None:
        time, total = tables.duration(probe[0]["wall_seconds"]), tables.duration(rows[-1]["wall_seconds"])
        sentences.append(f"The probe took {time} of {total}, {tables.share(probe[0]['share'])} of the wall time.")
    return " ".join(sentences)


def _episodes(rows: list[dict[str, Any]]) -> str:
    sizes = sorted({row["episodes"] for row in rows})
    return f"{sizes[0]} episodes each" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} episodes"


def _byline(results: dict[str, Any]) -> str:
    parts = [f"gradprism {v}" for v in [(results.get("versions") or {}).get("gradprism")] if v]
    parts += [f"{key} {results[key]}" for key in ("created", "seed") if results.get(key) is not None]
    return f'<p class="byline">{_text(" · ".join(parts))}</p>'


def _evaluation(results: dict[str, Any], plot: Callable[[str, Any], str]) -> str:
    headings, rows = tables.evaluation_table(results)
    if not rows:
        return _missing("evaluation")
    note = '<p class="note">Percent of episodes, above the 95 % interval. All: over every task type.</p>'
    table = _table(headings, rows, names=2)
    if not any(e["task_type"] == "all" and e["episodes"] for e in results["evaluation"]):
        return table + note
    from gradprism.reporting.figures import evaluation_figure

    return table + note + plot("plot-evaluation", evaluation_figure(results["evaluation"]))


def _costs(results: dict[str, Any]) -> str:
    rows = [tables.cost_cells(row) for row in tables.cost_rows(results)]
    if len(rows) == 1:
        return _missing("stages")
    note = '<p class="note">A reused stage is listed with what it cost when it ran. The memory in the last row is the largest.</p>'
    return _table(tables.COST_HEADERS, rows, strong="total") + note


def _routing(results: dict[str, Any], plot: Callable[[str, Any], str]) -> str:
    routing, audit = results.get("routing"), results.get("audit")
    parts = []
    if routing and routing["scores"]:
        from gradprism.reporting.figures import score_figure

        threshold = routing.get("threshold")
        limit = "no threshold" if threshold is None else f"threshold {threshold:.4g} (at or below it: SFT)"
        if routing["policy"] != "concentration" and threshold is not None:
            limit = f"threshold {threshold:.4g}"
        parts += [f"<p>Metric {_text(routing['metric'])}, policy {_text(routing['policy'])}, {limit}.</p>"]
        parts += [plot("plot-scores", score_figure(routing))]
        if routing.get("task_types"):
            parts += [
                "<h3>Routes by task type</h3>",
                _table(("task type", "SFT", "RL", "RL share"), route_rows(routing), wide=False),
            ]
    else:
        parts.append(_missing("routing"))
    if audit and audit.get("spearman"):
        rows = [[name, "–" if rho is None else f"{rho:.2f}"] for name, rho in audit["spearman"].items()]
        parts += ["<h3>Rank correlation of the score (Spearman)</h3>", _table(("with", "ρ"), rows, wide=False)]
    elif not audit:
        parts.append(_missing("audit"))
    return "\n".join(parts)


def route_rows(routing: dict[str, Any]) -> list[list[str]]:
    """Task type, trajectories to SFT and to RL, share of RL; types in the tables' order."""
    pairs = list(zip(routing["task_types"], routing["routes"], strict=True))
    known = {t: i for i, t in enumerate(tables.SHORT_NAMES)}
    rows = []
    for task_type in sorted(dict.fromkeys(t for t, _ in pairs), key=lambda t: (known.get(t, len(known)), t)):
        sft, rl = pairs.count((task_type, "sft")), pairs.count((task_type, "rl"))
        rows.append([tables.short_name(task_type), str(sft), str(rl), tables.share(rl / (sft + rl))])
    return rows


def _heat_map(results: dict[str, Any], plot: Callable[[str, Any], str]) -> str:
    heat_map = results.get("heat_map")
    if not heat_map or not heat_map["layers"]:
        return _missing("heat map")
    from gradprism.reporting.figures import heat_map_figure

    note = (
        '<p class="note">Frobenius norm of the gradient, mean over the corpus; colours on a log scale; layer 0 is the input\'s.</p>'
    )
    return plot("plot-heat-map", heat_map_figure(heat_map)) + note


def _curves(results: dict[str, Any], plot: Callable[[str, Any], str]) -> str:
    from gradprism.reporting.figures import rl_figure, sft_figure

    curves, parts = results.get("curves") or {}, []
    for key, title, draw in (("sft", "SFT: loss", sft_figure), ("rl", "RL: success while sampling", rl_figure)):
        curve = curves.get(key)
        parts += [f"<h3>{title}</h3>", plot(f"plot-{key}", draw(curve))] if curve else [_missing(f"{key.upper()} curve")]
    return "\n".join(parts)


def _warnings(results: dict[str, Any]) -> str:
    lines = dict.fromkeys([*(results.get("warnings") or []), *((results.get("audit") or {}).get("warnings") or [])])
    if not lines:
        return "<p>None.</p>"
    return f'<ul class="warnings">{"".join(f"<li>{_text(line)}</li>" for line in lines)}</ul>'


def _facts(results: dict[str, Any]) -> str:
    parts, rows = [], []
    for part in ("model", "corpus", "machine", "versions"):
        if results.get(part):
            rows += [[part, key, f"{v:,}" if type(v) in (int, float) else str(v)] for key, v in results[part].items()]
        else:
            parts.append(_missing(part))
    if rows:
        parts.insert(0, _table(("part", "key", "value"), rows, names=3, wide=False))
    if results.get("config"):
        text = html.escape(json.dumps(results["config"], indent=2, ensure_ascii=False))
        parts.append(f"<details><summary>Resolved configuration</summary><pre>{text}</pre></details>")
    else:
        parts.append(_missing("configuration"))
    return "\n".join(parts)
