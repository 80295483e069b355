"""A route's RL tasks by the names that they have in the data of verl-agent's environments."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from gradprism.environments.alfworld import official
from gradprism.environments.alfworld.environment import AlfworldEnvironment
from gradprism.routing.sets import RlTask
from gradprism.runtime.errors import ConfigError, DataError

# Under this name alfworld-download lays out the games, and verl-agent's configuration looks for them.
ALFWORLD_LAYOUT = "json_2.1.1"
# The column that names a task in an environment's data, by environment.
COLUMNS: dict[str, dict[str, pa.DataType]] = {"alfworld": {"game_file": pa.string()}, "webshop": {"goal_index": pa.int64()}}
_GAME_FILE = re.compile(rf"([^/]+)/([^/]+)/([^/]+)/{re.escape(official.GAME_FILE)}")
_GOAL = re.compile(r"((official|generated)-\d+-[0-9a-f]{12})/(synthetic|human)/(\d{1,9})", re.ASCII)


@dataclass(frozen=True, slots=True)
class VerlTask:
    """A task to play. `counterpart`: its game file or goal number in the official data, None for a task that is not of them."""

    rl: RlTask
    env: str
    id: str
    split: str
    counterpart: str | int | None = None

    @property
    def place(self) -> str:
        """The line that names it, for messages."""
        return self.rl.source or f"task {self.rl.id!r}"


def read_tasks(tasks: Iterable[RlTask]) -> dict[str, list[VerlTask]]:
    """The tasks by environment, each once, in the order in which they come first; raises `DataError` for one that cannot be named."""
    found: dict[str, dict[str, VerlTask]] = {}
    for rl in tasks:
        task = _named(rl)
        found.setdefault(task.env, {}).setdefault(task.id, task)
    if len({file_name(env) for env in found}) < len(found):
        raise DataError(f"environments {sorted(found)} would share a file; give them names that differ in letters or digits")
    return {env: list(some.values()) for env, some in found.items()}


def file_name(env: str) -> str:
    """An environment's name as part of a file's."""
    return re.sub(r"[^A-Za-z0-9]+", "-", env).strip("-").lower()


def _named(rl: RlTask) -> VerlTask:
    place, env = rl.source or f"task {rl.id!r}", rl.task.get("env")
    if not isinstance(env, str) or not env:
        raise DataError(
            f"{place}: names no task of an environment, so none can set it up; give the corpus tasks, or route without it"
        )
    if not rl.prompt:
        raise DataError(f"{place}: 'prompt' is empty; a trajectory must begin with an observation")
    try:
        if env == "alfworld":
            return _alfworld(rl)
        task_id, split = rl.task.get("id"), rl.task.get("split")
        if not isinstance(task_id, str) or not task_id:
            raise ConfigError(f"task {rl.task!r}: has no 'id'")
        goal = _GOAL.fullmatch(task_id) if env == "webshop" else None
        if env == "webshop" and goal is None:
            raise ConfigError(f"task {rl.task!r}: expected the id of a goal, as official-1000-1a2b3c4d5e6f/synthetic/17")
    except ConfigError as error:
        raise DataError(f"{place}: {error}") from None
    index = int(goal[4]) if goal and goal[2] == "official" else None
    return VerlTask(rl, env, task_id, split if isinstance(split, str) else "", index)


def _alfworld(rl: RlTask) -> VerlTask:
    """A game by its id or, in older corpora, by its file."""
    reference: Mapping[str, object] = rl.task
    game_file = reference.get("game_file")
    if "id" not in reference and isinstance(game_file, str):
        match = _GAME_FILE.search(game_file)
        if match is None:
            raise ConfigError(f"game_file {game_file!r}: expected …/SPLIT/TASK/TRIAL/{official.GAME_FILE}")
        reference = {"env": "alfworld", "id": "/".join((official.PREFIX, *match.groups()))}
    task = AlfworldEnvironment().task(reference)
    if not task.id.startswith(f"{official.PREFIX}/"):
        return VerlTask(rl, task.env, task.id, task.split)
    if task.split not in official.SPLITS:
        raise ConfigError(f"game {task.id!r}: split {task.split!r} is none of {list(official.SPLITS)}")
    return VerlTask(rl, task.env, task.id, task.split, f"{ALFWORLD_LAYOUT}/{task.id.partition('/')[2]}/{official.GAME_FILE}")
