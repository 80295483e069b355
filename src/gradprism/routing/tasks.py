"""Which task each trajectory is of, by the corpus, and how often a model wins that task, by the episodes it played."""

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from gradprism.probing.result import Probe
from gradprism.runtime.errors import DataError
from gradprism.trajectories.corpus_files import iter_records


class _Reference(msgspec.Struct, frozen=True, gc=False):
    id: Any = None
    task_type: Any = None


class _Line(msgspec.Struct, gc=False):
    """A line of a probe's corpus; what is not asked for is skipped, not parsed."""

    id: str
    task: _Reference = _Reference()


def measure_tasks(store: Probe, normalise: str, pass_rates: Path | None) -> tuple[pl.DataFrame, list[str] | None]:
    """`Probe.measures`' table, with the column `pass_rate` (0 to 1) where episodes are given, and each row's task type.

    There are no types unless all tasks name theirs. Raises what `measure`, `read_tasks` and `read_pass_rates` do, and `DataError`
    naming a trajectory whose task has no episode.
    """
    with ThreadPoolExecutor(1) as pool:  # hashing and reading the corpus hide behind the norms
        reading = pool.submit(read_tasks, store)
        table = store.measures(normalise).drop("index")
        tasks, types = reading.result()
    if pass_rates is None:
        return table, types
    rates = read_pass_rates(pass_rates)
    if owed := [(id, task) for id, task in zip(table["id"], tasks, strict=True) if task not in rates]:
        id, task = owed[0]
        raise DataError(
            f"trajectory {id!r}: {pass_rates} holds no episode of its task {task!r}, and of {len(owed)} of {len(tasks)} trajectories in "
            "all; evaluate the tasks of the whole corpus"
        )
    return table.with_columns(pass_rate=pl.Series([rates[task] for task in tasks], dtype=pl.Float64)), types


def read_tasks(store: Probe) -> tuple[list[str], list[str] | None]:
    """The id of each trajectory's task (where it names none, the trajectory's own) and its task type, in the corpus's order.

    There are no types unless all tasks name theirs. Raises `DataError` where the corpus is not the one that was probed.
    """
    decode = msgspec.json.Decoder(_Line).decode
    try:
        lines = [decode(line) for block in store.corpus_blocks() for line in block]
    except msgspec.MsgspecError:
        raise DataError(
            f"{store.folder}/corpus.jsonl: is not the corpus that was probed; give the same `gradprism probe` command again, "
            "which restores it"
        ) from None
    ids = [line.id if line.task.id is None else str(line.task.id) for line in lines]
    types = [line.task.task_type for line in lines]
    return ids, types if all(isinstance(task_type, str) for task_type in types) else None


def read_pass_rates(path: Path) -> dict[str, float]:
    """The share of episodes won, 0 to 1, of each task id in a file as `gradprism evaluate` writes it (`episodes.jsonl`).

    Raises `MissingFileError`, and `DataError` with the line for whatever is no episode.
    """
    played: defaultdict[str, list[bool]] = defaultdict(list)
    for record in iter_records(path):
        episode = record.value
        if not (isinstance(episode, dict) and isinstance(episode.get("id"), str) and isinstance(episode.get("success"), bool)):
            raise DataError(
                f"{record.place}: is no episode, which has a task's 'id' (text) and 'success' (true or false); "
                "give the episodes.jsonl of a `gradprism evaluate`"
            )
        played[episode["id"]].append(episode["success"])
    return {task: sum(wins) / len(wins) for task, wins in played.items()}
