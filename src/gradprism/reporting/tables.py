"""Results as tables: how often each model succeeds, and what each stage cost. For the terminal and for Markdown."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from gradprism.runtime.errors import DataError, MissingFileError
from gradprism.runtime.files import read_json

if TYPE_CHECKING:
    from rich.console import Console

# ALFWorld's task types under the names of the literature, in its order; any other type goes by its own name.
SHORT_NAMES = {
    "pick_and_place_simple": "Pick",
    "look_at_obj_in_light": "Look",
    "pick_clean_then_place_in_recep": "Clean",
    "pick_heat_then_place_in_recep": "Heat",
    "pick_cool_then_place_in_recep": "Cool",
    "pick_two_obj_and_place": "Pick2",
    "all": "All",
}
COUNTS = ("tokens_forward", "tokens_backward", "tokens_generated", "environment_steps")
COST_HEADERS = (
    "stage",
    "wall time",
    "share",
    "tokens forward",
    "tokens backward",
    "tokens generated",
    "env. steps",
    "peak MiB",
    "reused",
)


class _Part(BaseModel):
    """A part of `results.json`; what the report does not read is not checked."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Routing(_Part):
    metric: str
    policy: str
    scores: list[float]
    routes: list[Literal["sft", "rl"]]
    threshold: float | None = None
    task_types: list[str] | None = None

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if len(self.routes) != len(self.scores) or len(self.task_types or self.scores) != len(self.scores):
            raise ValueError("scores, routes and task_types differ in length")
        return self


class _HeatMap(_Part):
    layers: list[int]
    kinds: list[str]
    mean_norms: list[list[float]]

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        if len(self.mean_norms) != len(self.layers) or any(len(row) != len(self.kinds) for row in self.mean_norms):
            raise ValueError("mean_norms is not one row a layer and one value a kind")
        return self


class _Evaluation(_Part):
    stage: str
    split: str
    task_type: str
    episodes: int
    successes: int
    low: float
    high: float
    score: float | None = None


class _Stage(_Part):
    name: str
    wall_seconds: float
    peak_memory_mib: float | None = None
    tokens_forward: float = 0
    tokens_backward: float = 0
    tokens_generated: float = 0
    environment_steps: float = 0
    reused: bool = False


class _Audit(_Part):
    warnings: list[str] = []
    spearman: dict[str, float | None] = {}


class _Step(_Part):
    step: float
    loss: float | None = None
    success: float | None = None
    invalid_share: float | None = None
    zero_variance_groups: float | None = None


class _Results(_Part):
    name: str
    stages: list[_Stage]
    seed: int | None = None
    created: str | None = None
    versions: dict[str, Any] | None = None
    machine: dict[str, Any] | None = None
    config: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    corpus: dict[str, Any] | None = None
    routing: _Routing | None = None
    heat_map: _HeatMap | None = None
    audit: _Audit | None = None
    evaluation: list[_Evaluation] | None = None
    curves: dict[str, list[_Step]] | None = None
    warnings: list[str] | None = None


def read_results(folder: Path) -> dict[str, Any]:
    """Reads and checks `folder`/results.json; raises `MissingFileError`, or `DataError` with the file and the key that is wrong."""
    path = Path(folder) / "results.json"
    if not path.is_file():
        what = "holds no results.json" if Path(folder).is_dir() else "no such folder"
        raise MissingFileError(f"{folder}: {what}; name a run folder that `gradprism run` has written")
    results = read_json(path)
    try:
        _Results.model_validate(results)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise DataError(f"{path}: {printable(key)}: {first['msg']}; correct it, or run `gradprism run` again") from None
    return results


def printable(text: str) -> str:
    """`text` with control characters replaced, so that data cannot steer a terminal or break a line."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def short_name(task_type: str) -> str:
    """Column heading of a task type."""
    return SHORT_NAMES.get(task_type, task_type)


def task_types(results: dict[str, Any]) -> list[str]:
    """Task types of the evaluation: ALFWorld's in the order of `SHORT_NAMES`, then others as they occur, then `all`."""
    found = dict.fromkeys(row["task_type"] for row in results.get("evaluation") or [])
    order = [*(t for t in SHORT_NAMES if t != "all"), *(t for t in found if t not in SHORT_NAMES), "all"]
    return [t for t in order if t in found]


def percent(row: dict[str, Any]) -> str:
    """`12.5 [6.9, 21.5]`: success of an evaluation row and its 95 % interval, in percent; `–` for no episodes."""
    if not row["episodes"]:
        return "–"
    return f"{100 * row['successes'] / row['episodes']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def evaluation_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a split and stage, both in the order in which they occur; no rows where nothing was evaluated.

    A row is `split`, `stage`, `episodes` (of all types), `score` (mean in percent; `None` where it adds nothing to the success) and
    `cells`: task type, in the order of `task_types`, to `percent` of it.
    """
    entries = results.get("evaluation") or []
    by_key = {(e["split"], e["stage"], e["task_type"]): e for e in entries}
    graded = any(e.get("score") is not None and not math.isclose(e["score"] * e["episodes"], e["successes"]) for e in entries)
    rows = []
    for split in dict.fromkeys(e["split"] for e in entries):
        for stage in dict.fromkeys(e["stage"] for e in entries if e["split"] == split):
            overall = by_key.get((split, stage, "all"), {})
            score = overall.get("score") if graded else None
            rows.append(
                {
                    "split": split,
                    "stage": stage,
                    "episodes": overall.get("episodes"),
                    "score": None if score is None else round(100 * score, 1),
                    "cells": {t: percent(by_key[split, stage, t]) for t in task_types(results) if (split, stage, t) in by_key},
                }
            )
    return rows


def cost_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a stage and a last one, `total`: wall seconds, share of them (a fraction), counts, peak memory in MiB, `reused`.

    A reused stage counts with what it cost when it ran. The total of the peaks is the largest.
    """
    stages = results["stages"]
    wall = sum(s["wall_seconds"] for s in stages)
    rows = [
        {
            "stage": s["name"],
            "wall_seconds": s["wall_seconds"],
            "share": s["wall_seconds"] / wall if wall else None,
            **{name: s.get(name, 0) for name in COUNTS},
            "peak_memory_mib": s.get("peak_memory_mib"),
            "reused": s.get("reused", False),
        }
        for s in stages
    ]
    total = {
        "stage": "total",
        "wall_seconds": wall,
        "share": 1.0 if wall else None,
        **{name: sum(row[name] for row in rows) for name in COUNTS},
        "peak_memory_mib": max((row["peak_memory_mib"] for row in rows if row["peak_memory_mib"] is not None), default=None),
        "reused": bool(rows) and all(row["reused"] for row in rows),
    }
    return [*rows, total]


def duration(seconds: float) -> str:
    """`4.2 s`, `3.1 min`, `11.1 h`."""
    for limit, size, unit in ((60, 1, "s"), (3600, 60, "min")):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 3600:.1f} h"


def count(number: float) -> str:
    """Three significant digits: `950`, `15.2k`, `1.23M`; a hyphen for none, so that the table shows where work was done."""
    rounded = float(f"{number:.3g}")
    if rounded < 1000:
        return f"{rounded:g}" if number else "-"
    thousands = min(int(math.log10(rounded)) // 3, 4)
    return f"{rounded / 1000**thousands:g}{' kMGT'[thousands]}"


def share(fraction: float | None) -> str:
    """`1.4 %`; `<0.1 %` for what is not nothing but rounds to it."""
    if fraction is None:
        return "–"
    return "<0.1 %" if 0 < fraction < 0.0005 else f"{100 * fraction:.1f} %"


def cost_cells(row: dict[str, Any]) -> list[str]:
    """A row of `cost_rows` as text, in the order of `COST_HEADERS`."""
    peak = row["peak_memory_mib"]
    return [
        row["stage"],
        duration(row["wall_seconds"]),
        share(row["share"]),
        *(count(row[name]) for name in COUNTS),
        "–" if peak is None else f"{peak:.0f}",
        "yes" if row["reused"] else "",
    ]


def evaluation_table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """`evaluation_rows` as headings and rows of text, task types in columns; the score last, where there is one."""
    rows, columns = evaluation_rows(results), task_types(results)
    graded = any(row["score"] is not None for row in rows)
    headings = ["split", "stage", *map(short_name, columns), *(["Score"] if graded else [])]
    body = []
    for row in rows:
        score = ["–" if row["score"] is None else f"{row['score']:.1f}"] if graded else []
        body.append([row["split"], row["stage"], *(row["cells"].get(t, "–") for t in columns), *score])
    return headings, body


def print_tables(results: dict[str, Any], console: "Console") -> None:
    """Prints both tables within 80 columns: one of task types by stage for each split, then the costs."""
    from rich.text import Text

    headings, rows = evaluation_table(results)
    for split in dict.fromkeys(row[0] for row in rows):
        chosen = [row for row in rows if row[0] == split]
        episodes = sorted({r["episodes"] for r in evaluation_rows(results) if r["split"] == split and r["episodes"] is not None})
        size = f", {'–'.join(map(str, dict.fromkeys((episodes[0], episodes[-1]))))} episodes" if episodes else ""
        # Types go down and stages across: seven types with their intervals side by side are wider than a terminal.
        body = [[heading, *(row[i] for row in chosen)] for i, heading in enumerate(headings[2:], 2)]
        title = f"Success in % [95 % interval], {split} tasks{size}"
        console.print(_rich_table(title, ["", *(row[1] for row in chosen)], body, "All"))
    if not rows:
        console.print(Text("No evaluation in these results."))
    costs = [cost_cells(row) for row in cost_rows(results)]
    if len(costs) > 1:
        console.print(_rich_table("Cost", COST_HEADERS, costs, "total"))
    else:
        console.print(Text("No stages in these results."))


def _rich_table(title: str, headings: Sequence[str], rows: list[list[str]], strong: str) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text, not str: a name such as "[red]" is data, never markup. The many columns of the costs stand closer, to fit 80 characters.
    padding = (0, 1, 0, 0) if len(headings) < len(COST_HEADERS) else 0
    table = Table(title=Text(printable(title)), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=padding)
    for i, heading in enumerate(headings):
        # A word a line: a column is then no wider than its figures need.
        table.add_column(
            Text("\n".join(map(printable, heading.split()))), justify="right" if i else "left", overflow="fold", vertical="bottom"
        )
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row), style="bold" if row[0] == strong else None)
    return table


def markdown_tables(results: dict[str, Any]) -> str:
    """Both tables as GitHub-flavoured Markdown."""
    parts = []
    headings, rows = evaluation_table(results)
    parts.append(markdown(headings, rows, 2) if rows else "No evaluation in these results.\n")
    costs = [cost_cells(row) for row in cost_rows(results)]
    parts.append(markdown(COST_HEADERS, costs, 1) if len(costs) > 1 else "No stages in these results.\n")
    return "\n".join(parts)


def markdown(headings: Sequence[str], rows: list[list[str]], names: int) -> str:
    """A GitHub-flavoured table; its first `names` columns hold names from the data, left-aligned and escaped, as the headings are."""

    def escape(text: str) -> str:
        return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", printable(text))

    lines = [[escape(h) for h in headings], [":--" if i < names else "--:" for i in range(len(headings))]]
    lines += [[escape(cell) if i < names else cell for i, cell in enumerate(row)] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
