"""Which task each trajectory is of, by the corpus, and how often a model wins that task, by the episodes it played."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import polars as pl

from gradprism.probing.result import Probe
from gradprism.runtime.errors import DataError
from gradprism.runtime.files import sha256_file, sha256_json
from gradprism.trajectories.corpus_files import iter_records


class _Reference(msgspec.Struct, frozen=True, gc=False):
    id: Any = None
    task_type: Any = None
    source: Any = None


class _Line(msgspec.Struct, gc=False):
    """A line of a probe's corpus; what is not asked for is skipped, not parsed."""

    id: str
    task: _Reference | None = None


def read_tasks(probe: Probe) -> pl.DataFrame:
    """The task of each trajectory, in the corpus's order: `task`, its id (where a trajectory names none, its own), `task_type` and
    `source` (null where they are not told as text), and `named`, whether it names one at all.

    Raises `DataError` where the corpus is not the one that was probed.
    """
    decode = msgspec.json.Decoder(_Line).decode
    try:
        return pl.concat([_tasks([decode(line) for line in block]) for block in probe.corpus_blocks()])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise DataError(
            f"{probe.folder}/corpus.jsonl: is not the corpus that was probed; give the same `gradprism probe` command again, "
            "which restores it"
        ) from None


def _tasks(lines: list[_Line]) -> pl.DataFrame:
    tasks = [line.task or _Reference() for line in lines]
    return pl.DataFrame(
        {
            "task": [line.id if task.id is None else str(task.id) for line, task in zip(lines, tasks, strict=True)],
            "task_type": [task.task_type if isinstance(task.task_type, str) else None for task in tasks],
            "source": [task.source if isinstance(task.source, str) else None for task in tasks],
            "named": [line.task is not None for line in lines],
        },
        schema={"task": pl.String, "task_type": pl.String, "source": pl.String, "named": pl.Boolean},
    )


class Played(NamedTuple):
    """The end of an episode; `score` is None where the file tells none."""

    success: bool
    score: float | None


@dataclass(frozen=True, slots=True)
class PassRates:
    """Share of each task's episodes that a model wins, 0 to 1 by the task's id; `source` says where from, and `sha256` is of that.

    `episodes` are those of each task, None where only rates were given.
    """

    rates: Mapping[str, float]
    source: str
    sha256: str
    episodes: Mapping[str, Sequence[Played]] | None = None

    @classmethod
    def of(cls, rates: "str | Path | Mapping[str, float]") -> "PassRates":
        """Rates by task id, or the share of episodes won in a file as `gradprism evaluate` writes it (`episodes.jsonl`).

        Raises `MissingFileError`, and `DataError` with the line for whatever is no episode.
        """
        if isinstance(rates, Mapping):
            if bad := [(task, rate) for task, rate in rates.items() if not (isinstance(rate, int | float) and 0 <= rate <= 1)]:
                raise DataError(f"pass rates: that of task {bad[0][0]!r} is {bad[0][1]!r}; give numbers from 0 to 1")
            return cls(rates, "the pass rates", sha256_json(dict(rates)))
        path = Path(rates)
        played: defaultdict[str, list[Played]] = defaultdict(list)
        for record in iter_records(path):
            episode = record.value
            if not (isinstance(episode, dict) and isinstance(episode.get("id"), str) and isinstance(episode.get("success"), bool)):
                raise DataError(
                    f"{record.place}: is no episode, which has a task's 'id' (text) and 'success' (true or false); "
                    "give the episodes.jsonl of a `gradprism evaluate`"
                )
            score = episode.get("score")
            played[episode["id"]].append(Played(episode["success"], score if isinstance(score, int | float) else None))
        rates = {task: sum(end.success for end in ends) / len(ends) for task, ends in played.items()}
        return cls(rates, f"the episodes of {path}", sha256_file(path), played)

    def column(self, ids: pl.Series, tasks: pl.Series) -> pl.Series:
        """The rate of each trajectory's task, `[n]`; raises `DataError` naming the first trajectory whose task has none."""
        if missing := [(id, task) for id, task in zip(ids, tasks, strict=True) if task not in self.rates]:
            id, task = missing[0]
            raise DataError(
                f"trajectory {id!r}: {self.source} hold no episode of its task {task!r}, and of {len(missing)} of {len(tasks)} "
                "trajectories in all; evaluate the tasks of the whole corpus"
            )
        return pl.Series("pass_rate", [self.rates[task] for task in tasks], dtype=pl.Float64)
