"""The cost of a folder's result so far, over all attempts: `attempts.jsonl`, a running account that a kill cannot take back.

Each process of an attempt adds a line whenever it writes a shard or a checkpoint, with what it has used since it began; its last line
counts.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradprism.runtime.files import append_jsonl
from gradprism.runtime.usage import Usage

_SUMS = ("rows", "tokens", "cpu_seconds")


class Attempt:
    """One process's account in a folder; `name` is shared by the processes of one run."""

    def __init__(self, folder: Path, name: str | None = None, process: int = 0, file: str = "attempts.jsonl") -> None:
        """`file` is one that matches `attempts*.jsonl`; processes that do not see one another's writing need one each."""
        self.path = Path(folder) / file
        self.name = name or f"{time.time():.3f}-{os.getpid()}"
        self.process = process
        self.rows = self.tokens = 0
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def add(self, rows: int, tokens: int) -> None:
        """Says that rows of so many tokens have been written."""
        self.rows += rows
        self.tokens += tokens
        self._append({"rows": self.rows, "tokens": self.tokens})

    def record(self, used: Usage) -> None:
        """Says what has been used since the attempt began; its seconds are measured here."""
        counts = {name: value for name, value in used.to_json().items() if not name.endswith("_seconds")}
        self._append({"rows": 0, "tokens": used.tokens_forward, **counts})

    def _append(self, counts: dict[str, float]) -> None:
        append_jsonl(
            self.path,
            {
                "attempt": self.name,
                "process": self.process,
                **counts,
                "wall_seconds": round(time.perf_counter() - self._wall, 3),
                "cpu_seconds": round(time.process_time() - self._cpu, 3),
            },
        )


def total_cost(folder: Path, without: str | None = None) -> dict[str, Any]:
    """`attempts`, `rows`, `tokens`, `wall_seconds` and `cpu_seconds` of the attempts in a folder but the one called `without`.

    Times of the processes of one attempt run side by side: the longest counts; the rest is summed.
    """
    last: dict[tuple[str, int], dict[str, Any]] = {}
    for line in (line for path in sorted(Path(folder).glob("attempts*.jsonl")) for line in _lines(path)):
        if line["attempt"] != without:
            last[line["attempt"], line["process"]] = line
    walls: dict[str, float] = {}
    for (attempt, _), line in last.items():
        walls[attempt] = max(walls.get(attempt, 0.0), line["wall_seconds"])
    sums = {name: sum(line[name] for line in last.values()) for name in _SUMS}
    return {"attempts": len(walls), **sums, "wall_seconds": sum(walls.values())}


def total_usage(folder: Path, without: str | None = None) -> Usage:
    """The records of the attempts in a folder but the one called `without`."""
    last = {line["attempt"]: line for line in _lines(Path(folder) / "attempts.jsonl") if line["attempt"] != without}
    return sum((Usage.from_json(line) for line in last.values()), Usage())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with open(path, encoding="utf-8") as file:
        for text in file:
            try:
                line = json.loads(text)
                if all(key in line for key in ("attempt", "process", *_SUMS, "wall_seconds")):
                    yield line
            except (ValueError, TypeError):  # torn by a kill
                continue
