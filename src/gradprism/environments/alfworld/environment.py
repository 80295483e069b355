"""ALFWorld as an `Environment`: generated or official games, sessions on the real engine, the expert."""

from dataclasses import dataclass
from typing import Any

from gradprism.environments.alfworld import generator, official
from gradprism.environments.protocol import Expert, Info, Session, Step, Task
from gradprism.runtime.errors import ConfigError

MAX_ACTION_CHARACTERS = 200  # no command of the engine comes near; a longer action is refused before it reaches any parser
# How the two kinds of games name the same thing.
ALIASES = {"seen": "valid_seen", "unseen": "valid_unseen"}


@dataclass(frozen=True, slots=True)
class AlfworldEnvironment:
    """Games generated at one `difficulty`, or the official ones below `data_dir` (or, with `games="official"`, `$ALFWORLD_DATA`)."""

    difficulty: str = "small"
    data_dir: str = ""
    games: str = "generated"
    name: str = "alfworld"

    def __post_init__(self) -> None:
        generator.parse_difficulty(self.difficulty)
        if self.games not in ("generated", "official"):
            raise ConfigError(f"games {self.games!r}: choose generated or official")
        if self._official:
            official.games_folder(self.data_dir)

    @property
    def _official(self) -> bool:
        return bool(self.data_dir) or self.games == "official"

    @property
    def splits(self) -> tuple[str, ...]:
        """`train`, then those to evaluate on."""
        return official.SPLITS if self._official else generator.SPLITS

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        """Rooms that training does not know, and those that it does."""
        return ("unseen", "seen")

    def size(self, split: str) -> int | None:
        """Generated splits have no end."""
        return len(self.tasks(split)) if self._official else None

    def tasks(self, split: str, count: int | None = None, start: int = 0, task_type: str | None = None) -> list[Task]:
        """Tasks of a split, the six types in turn; generated splits have no end, so they need a `count`."""
        if task_type is not None and task_type not in generator.TASK_TYPES:
            raise ConfigError(f"task type {task_type!r}: choose one of {list(generator.TASK_TYPES)}")
        if self._official:
            split = ALIASES.get(split, split)
            if split not in official.SPLITS:
                raise ConfigError(f"split {split!r}: choose one of {list(official.SPLITS)}, or seen or unseen")
            names = official.list_official(official.games_folder(self.data_dir), split)
            if task_type is not None:
                names = [name for name in names if name.split("/")[2].partition("-")[0] == task_type]
            end = len(names) if count is None else start + count
            if end > len(names) or start >= len(names):
                raise ConfigError(f"split {split!r}: has {len(names)} games, so not those from {start} to {end}")
            names = names[start:end]
        else:
            if split not in generator.SPLITS:
                raise ConfigError(f"split {split!r}: choose one of {list(generator.SPLITS)}")
            if count is None:
                raise ConfigError(f"split {split!r}: games are generated without end; say how many (--count)")
            names = generator.list_games(self.difficulty, split, count, start, task_type)
        return [self.task({"env": self.name, "id": name}) for name in names]

    def task(self, reference: dict[str, Any]) -> Task:
        """The task of a reference such as `{"env": "alfworld", "id": "small/train/pick_and_place_simple/3"}`."""
        name = reference.get("id")
        if reference.get("env") != self.name or not isinstance(name, str):
            raise ConfigError(f"task {reference!r}: expected env {self.name!r} and the id of a game")
        if name.startswith(f"{official.PREFIX}/"):
            _, split, task, _ = official.parse_official(name)
            return Task(self.name, name, task.partition("-")[0], split)
        _, split, task_type, _ = generator.parse_name(name)
        return Task(self.name, name, task_type, split)

    def session(self) -> Session:
        """A session with an engine of its own; it plays both kinds of games."""
        return AlfworldSession(self.data_dir)

    def expert(self) -> Expert:
        """A fresh expert for one episode."""
        from gradprism.environments.alfworld.expert import AlfworldExpert

        return AlfworldExpert()


class AlfworldSession:
    """One engine; see `Session`."""

    def __init__(self, data_dir: str = "") -> None:
        from gradprism.environments.alfworld.engine import AlfworldEngine

        self._data_dir = data_dir
        self._engine = AlfworldEngine()

    def reset(self, task_id: str) -> Step:
        """Starts the game named `task_id`."""
        if task_id.startswith(f"{official.PREFIX}/"):
            game = official.load_official(official.games_folder(self._data_dir), task_id)
        else:
            game = generator.generate(task_id)
        return Step(self._engine.reset(game), info=Info(admissible=self._engine.admissible))

    def step(self, action: str) -> Step:
        """Plays `action`; reward 1.0 when it completes the task."""
        from gradprism.environments.alfworld.engine import NOTHING_HAPPENS

        action = " ".join(action.split()) if len(action) <= MAX_ACTION_CHARACTERS else ""
        admissible = self._engine.admissible
        if action not in admissible:
            return Step(NOTHING_HAPPENS, info=Info(valid=False, admissible=admissible))
        observation, won = self._engine.step(action)
        return Step(observation, float(won), won, Info(admissible=self._engine.admissible, success=won, score=float(won)))


ENVIRONMENT = AlfworldEnvironment
