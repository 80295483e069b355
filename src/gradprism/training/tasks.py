"""The tasks of RL: read from a route folder, and drawn in a shuffled order."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradprism.environments.protocol import Environment, Task
from gradprism.routing.sets import RlTask
from gradprism.runtime.errors import DataError, MissingFileError
from gradprism.runtime.files import parse_json


def as_tasks(tasks: Iterable[Task | RlTask], environment: Environment) -> list[Task]:
    """The environment's tasks, also of the RL tasks of a route, each once; raises `ConfigError` for one that is not its own."""
    found = [environment.task(task.task) if isinstance(task, RlTask) else task for task in tasks]
    return list({task.id: task for task in found}.values())


def read_tasks(path: Path | str, environment: Environment, *, of_corpus: bool = False) -> list[Task]:
    """The tasks of a route folder's `rl.jsonl`, or of a corpus in the `messages` format, without repeats; raises `DataError` naming the
    line that has none.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; give the rl.jsonl of a route folder")
    tasks: dict[str, Task] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = parse_json(line)
                if "messages" in record and not of_corpus:
                    raise DataError(f"{path}:{number}: is a trajectory of the SFT side; give the rl.jsonl of a route folder")
                task = environment.task(record["task"])
            except DataError:
                raise
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path}:{number}: no task of environment {environment.name!r} ({error})") from None
            tasks[task.id] = task
    return list(tasks.values())


class TaskStream:
    """Tasks in an order shuffled anew for each pass; process `rank` of `world` takes every `world`-th. `drawn` is its whole state.

    With `as_given` the first pass is in the order of `tasks`. Streams of other `salt` have other orders.
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
        return np.random.default_rng([self._seed, number, *self.salt]).permutation(len(self.tasks))
