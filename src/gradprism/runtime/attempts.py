"""The cost of a folder's result so far, over all attempts: `attempts.jsonl`, a running account that a kill cannot take back.

Each process of an attempt adds a line whenever it writes a shard or a checkpoint, with what it has used since it began; its last line
counts.
"""

import os
import time
from dataclasses import replace
from pathlib import Path

from gradprism.runtime.files import append_jsonl, read_jsonl
from gradprism.runtime.usage import Usage


class Attempt:
    """One process's account in a folder; `name` is shared by the processes of one run.

    `file` is one that matches `attempts*.jsonl`; processes that do not see one another's writing need one each.
    """

    def __init__(self, folder: Path, name: str | None = None, process: int = 0, file: str = "attempts.jsonl") -> None:
        self.path = Path(folder) / file
        self.name = name or f"{time.time():.3f}-{os.getpid()}"
        self.process, self.used = process, Usage()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def add(self, used: Usage) -> None:
        """Says that so much more has been used."""
        self.record(self.used + used)

    def record(self, used: Usage) -> None:
        """Says what has been used since the attempt began; its seconds are measured here."""
        wall, cpu = round(time.perf_counter() - self._wall, 3), round(time.process_time() - self._cpu, 3)
        self.used = replace(used, wall_seconds=wall, cpu_seconds=cpu)
        append_jsonl(self.path, {"attempt": self.name, "process": self.process, **self.used.to_json()})


def total_usage(folder: Path, without: str | None = None) -> Usage:
    """Usage of the attempts in a folder but the one called `without`.

    Processes of one attempt run side by side: of their wall clocks the longest counts.
    """
    last: dict[str, dict[int, Usage]] = {}
    for line in (line for path in sorted(Path(folder).glob("attempts*.jsonl")) for line in read_jsonl(path)):
        if isinstance(line, dict) and line.get("attempt", without) != without:
            last.setdefault(line["attempt"], {})[line["process"]] = Usage.from_json(line)
    seconds = sum(max(used.wall_seconds for used in of_attempt.values()) for of_attempt in last.values())
    total = sum((used for of_attempt in last.values() for used in of_attempt.values()), Usage())
    return replace(total, wall_seconds=float(seconds))
