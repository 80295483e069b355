"""The tasks of RL: read from a route folder, and drawn in a shuffled order."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradprism.environments.protocol import Environment, Task
from gradprism.routing.sets import RlTask
from gradprism.runtime.errors import ConfigError, DataError, MissingFileError
from gradprism.runtime.files import parse_json
from gradprism.trajectories.layouts import record_weight


def as_tasks(tasks: Iterable[Task | RlTask], environment: Environment) -> list[Task]:
    """The environment's tasks, also of the RL tasks of a route, each once, with the mean weight of those that name it.

    Raises `ConfigError` for one that is not the environment's.
    """
    return _each_once(
        replace(environment.task(task.task), weight=task.weight) if isinstance(task, RlTask) else task for task in tasks
    )


def _each_once(tasks: Iterable[Task]) -> list[Task]:
    found: dict[str, list[Task]] = {}
    for task in tasks:
        found.setdefault(task.id, []).append(task)
    return [replace(same[-1], weight=math.fsum(task.weight for task in same) / len(same)) for same in found.values()]


def read_tasks(path: Path | str, environment: Environment, *, of_corpus: bool = False) -> list[Task]:
    """The tasks of a route folder's `rl.jsonl`, or of a corpus in the `messages` format, without repeats; raises `DataError` naming the
    line that has none.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise MissingFileError(f"{path}: {what}; give the rl.jsonl of a route folder")
    tasks = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = parse_json(line)
                if "messages" in record and not of_corpus:
                    raise DataError(f"{path}:{number}: is a trajectory of the SFT side; give the rl.jsonl of a route folder")
                weight = 1.0 if of_corpus else _weight(record, f"{path}:{number}")
                task = replace(environment.task(record["task"]), weight=weight)
            except DataError:
                raise
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path}:{number}: no task of environment {environment.name!r} ({error})") from None
            tasks.append(task)
    return _each_once(tasks)


def _weight(record: Mapping[str, Any], place: str) -> float:
    try:
        return record_weight(record)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def check_tasks(tasks: Sequence[Task]) -> None:
    """Raises `ConfigError` where there is nothing to play."""
    if not tasks:
        raise ConfigError("no tasks to train on: the route sends nothing to RL; lower the threshold or use another policy")
    if not any(task.weight for task in tasks):
        raise ConfigError("all tasks have the weight 0: there is nothing to play")


class TaskStream:
    """Tasks in an order shuffled anew for each pass; process `rank` of `world` takes every `world`-th. `drawn` is its whole state.

    A pass has each task once. Where weights differ it has each as often as its share of them, times the number of tasks, rounded up or
    down by chance, so that over many passes tasks are drawn in proportion. With `as_given` the first pass is in the order of `tasks`.
    Streams of other `salt` have other orders.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        seed: int,
        rank: int = 0,
        world: int = 1,
        salt: tuple[int, ...] = (),
        *,
        as_given: bool = False,
    ) -> None:
        self.tasks, self.rank, self.salt = list(tasks), rank, salt
        self._seed, self._world, self._as_given = seed, world, as_given
        self._weights = np.array([task.weight for task in self.tasks], dtype=np.float64)
        self.drawn = 0
        self._pass, self._order = -1, np.zeros(0, dtype=np.int64)

    def over(self, tasks: Sequence[Task], salt: tuple[int, ...]) -> "TaskStream":
        """A new stream of other tasks for the same process, shuffled."""
        return TaskStream(tasks, self._seed, self.rank, self._world, salt)

    def draw(self, n: int) -> list[Task]:
        """The next `n` tasks."""
        return [self._next() for _ in range(n)]

    def _next(self) -> Task:
        number, place = divmod(self.drawn * self._world + self.rank, len(self.tasks))
        if number != self._pass:
            self._pass, self._order = number, self._order_of(number)
        self.drawn += 1
        return self.tasks[self._order[place]]

    def _order_of(self, number: int) -> NDArray[np.int64]:
        """The tasks of a pass, by their places."""
        if number == 0 and self._as_given:
            return np.arange(len(self.tasks))
        chance = np.random.default_rng([self._seed, number, *self.salt])
        order = chance.permutation(len(self.tasks))
        return chance.permutation(systematic(self._weights, order, chance.random())) if weighs(self.tasks) else order


def weighs(tasks: Sequence[Task]) -> bool:
    """Whether some tasks are to be drawn more often than others."""
    return len({task.weight for task in tasks}) > 1


def systematic(weights: NDArray[np.float64], order: NDArray[np.int64], offset: float) -> NDArray[np.int64]:
    """Places `[n]` drawn in proportion to `weights` `[n]` ≥ 0: those at `offset` (0 to 1), `offset` + 1, …, where each takes a stretch
    n·w/Σw of a line, in `order`."""
    edges = np.cumsum(weights[order])
    points = (offset + np.arange(len(order))) * (edges[-1] / len(order))
    last = int(np.flatnonzero(weights[order])[-1])  # a rounding may lead past it
    return order[np.minimum(np.searchsorted(edges, points, side="right"), last)]
