"""Cases, what they gave, and the files and tables of it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from device.machine import Machine
from gradprism.runtime.errors import DataError
from gradprism.runtime.files import atomic_write, read_json, write_json

Value = float | int | str | None
Row = Mapping[str, Value]  # a line of a table: column to value
Status = Literal["measured", "failed", "pending"]


@dataclass(frozen=True, slots=True)
class Report:
    """The rows that a case measured; `failure` says which bound they break, and is empty where they keep all.

    `done` counts what has been measured, in any unit of the case's own: of two reports of an unfinished case the one with more is kept.
    """

    rows: Sequence[Row]
    failure: str = ""
    done: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """Something to measure: a file's name, the table that its rows belong to, and about how many seconds it takes on one H100.

    `run` gives its report, or one after another, each with what has been measured by then: what comes last before a stop is kept.
    """

    name: str
    table: str
    run: Callable[[], Report | Iterator[Report]]
    seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case that has been tried, or with the status pending, what a case that was stopped had measured by then.

    `seconds` is its whole time, the building of a model included.
    """

    case: str
    table: str
    status: Status
    machine: Machine
    seconds: float = 0.0
    rows: Sequence[Row] = field(default_factory=list)
    reason: str = ""
    done: int = 0

    @classmethod
    def read(cls, path: Path) -> "Outcome":
        """The outcome in a file; raises `DataError` where it holds none."""
        values = read_json(path)
        try:
            return cls(**{**values, "machine": Machine(**values["machine"])})
        except (TypeError, KeyError) as error:
            raise DataError(f"{path}: no outcome of this kit ({error}); delete it, and its case is measured again") from error


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the kit: its cases by worth, and `summarise`, which makes rows of one more table out of all that was measured."""

    name: str
    title: str
    cases: Sequence[Case]
    summarise: Callable[[Sequence[Outcome]], Sequence[Row]] = lambda outcomes: []


@dataclass(frozen=True, slots=True)
class Store:
    """The folder of a part: one JSON file a case, which appears whole, and the part's tables beside it."""

    folder: Path
    part: str

    def path(self, case: str) -> Path:
        """The file of a case."""
        return self.folder / self.part / f"{case}.json"

    def read(self, case: str) -> Outcome | None:
        """What is known of a case."""
        return Outcome.read(self.path(case)) if self.path(case).exists() else None

    def write(self, outcome: Outcome) -> None:
        """Keeps an outcome; a figure that is no number is kept as text."""
        rows = [{name: _finite(value) for name, value in row.items()} for row in outcome.rows]
        write_json(self.path(outcome.case), asdict(replace(outcome, rows=rows)), sort_keys=False)

    def begun(self, case: str) -> int:
        """How often a case was begun by processes that then ended without an outcome."""
        path = self._marker(case)
        return int(path.read_text(encoding="utf-8")) if path.exists() else 0

    def begin(self, case: str) -> None:
        """Notes that a case is begun, in case the process ends in it."""
        count = self.begun(case) + 1
        with atomic_write(self._marker(case)) as file:
            file.write(str(count))

    def end(self, case: str) -> None:
        """Takes that back."""
        self._marker(case).unlink(missing_ok=True)

    def _marker(self, case: str) -> Path:
        return self.folder / self.part / f"{case}.begun"


def page(part: Part, outcomes: Sequence[Outcome], pending: Sequence[str]) -> str:
    """The part's tables in Markdown: one a table name, failed cases as lines that say so, and what is pending.

    Where several machines have measured, each row says by its number which one it was, and each has a summary of its own.
    """
    told = [outcome for outcome in outcomes if outcome.status != "pending" or outcome.rows]
    machines = sorted({outcome.machine.line for outcome in told})
    several = len(machines) > 1
    lines = [f"# {part.title}", ""]
    lines += [
        line for number, name in enumerate(machines, 1) for line in ([f"Machine {number}: {name}", ""] if several else [name, ""])
    ]
    for name in dict.fromkeys(outcome.table for outcome in told):
        rows = [row for outcome in told if outcome.table == name for row in _numbered(_rows(outcome), outcome.machine, machines)]
        lines += [f"**{name}**", "", *table(rows), ""]
    summary: list[Row] = []
    for machine in dict.fromkeys(outcome.machine for outcome in told):
        summary += _numbered(part.summarise([outcome for outcome in told if outcome.machine == machine]), machine, machines)
    if summary:
        lines += ["**In all**", "", *table(summary), ""]
    if pending:
        lines += [f"Pending: {', '.join(pending)}.", ""]
    return "\n".join(lines)


def _numbered(rows: Sequence[Row], machine: Machine, machines: Sequence[str]) -> list[Row]:
    return [{"machine": machines.index(machine.line) + 1, **row} if len(machines) > 1 else row for row in rows]


def _rows(outcome: Outcome) -> list[Row]:
    rows: list[Row] = [{"case": outcome.case, **row} for row in outcome.rows]
    if outcome.reason:  # in the case's last line, or one of its own
        last = rows.pop() if rows else {"case": outcome.case}
        said = f"pending: {outcome.reason}" if outcome.status == "pending" else outcome.reason
        rows.append({**last, "failed": f"{last['failed']}; {said}" if last.get("failed") else said})
    return rows


def table(rows: Sequence[Row]) -> list[str]:
    """Rows as a Markdown table, with the columns of all in the order in which they first come."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if "failed" in columns:
        columns = [*(column for column in columns if column != "failed"), "failed"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return lines + [f"| {' | '.join(shown(row.get(column)) for column in columns)} |" for row in rows]


def _finite(value: Value) -> Value:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def shown(value: Value) -> str:
    """A value as a table shows it: three digits that count, and no line breaks or column marks."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else " ".join(value.replace("|", "/").split())
