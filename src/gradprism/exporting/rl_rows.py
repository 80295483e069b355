"""A route's RL tasks as rows for trainers whose environments the user brings: a prompt and the reference by which a task is set up."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

from gradprism.exporting.tables import json_text
from gradprism.routing.routes import Routes
from gradprism.routing.sets import RlTask


@dataclass(frozen=True, slots=True)
class RlRow:
    """A task to play: `env` and `task_id` as the environment names them, empty where the corpus names none."""

    rl: RlTask
    env: str
    task_id: str

    @property
    def task(self) -> str:
        """The whole reference as JSON text, since its keys differ from environment to environment."""
        return json_text(self.rl.task)

    def to_json(self) -> dict[str, object]:
        """The row as most trainers take it: columns that they hand on to the environment or the reward beside the prompt."""
        row: dict[str, object] = {"id": self.rl.id, "prompt": self.rl.prompt}
        if self.rl.tools:
            row["tools"] = self.rl.tools
        if self.rl.weight != 1:
            row["weight"] = self.rl.weight
        return {**row, "env": self.env, "task_id": self.task_id, "task": self.task}


@dataclass
class RlRows:
    """The rows of a route's RL tasks, a task of several trajectories once, with the first one's prompt.

    `nameless`: rows without a reference. `repeated`: trajectories whose task has a row already. Both are of what was gone through; of
    that, only a hash of each task is remembered.
    """

    routes: Routes
    nameless: int = 0
    repeated: int = 0

    def __iter__(self) -> Iterator[RlRow]:
        self.nameless = self.repeated = 0
        seen: set[bytes] = set()
        for task in self.routes.sets.rl():
            row = RlRow(task, _text(task.task.get("env")), _text(task.task.get("id") or task.task.get("game_file")))
            if task.task:
                digest = blake2b(row.task.encode(), digest_size=16).digest()
                if digest in seen:
                    self.repeated += 1
                    continue
                seen.add(digest)
            self.nameless += not (row.env and row.task_id)
            yield row

    def warnings(self) -> Iterator[str]:
        """What the trainer's user must know of the rows that were gone through."""
        if self.nameless:
            yield f"{self.nameless} RL rows name no task of an environment (env and id): only their prompt can be played"
        if self.repeated:
            yield f"{self.repeated} trajectories of RL share the task of an earlier one; each task has one row"


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else json_text(value)


def empty_sides(routes: Routes) -> list[str]:
    """A warning for each side to which the route sends nothing."""
    return [
        f"the route sends nothing to {what}, so there is no file for it"
        for what, n in (("SFT", routes.routing.n_sft), ("RL", routes.routing.n_rl))
        if n == 0
    ]
