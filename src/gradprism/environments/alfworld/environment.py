"""ALFWorld as an `Environment`: generated tasks, sessions on the real engine, the expert."""

from dataclasses import dataclass
from typing import Any

from gradprism.environments.alfworld.generator import DIFFICULTIES, SPLITS, generate, list_games, parse_name
from gradprism.environments.protocol import Expert, Session, Step, Task
from gradprism.errors import ConfigError

MAX_ACTION_CHARACTERS = 200  # no command of the engine comes near; a longer action is refused before it reaches any parser


@dataclass(frozen=True, slots=True)
class AlfworldEnvironment:
    """Games generated at one difficulty (`tiny`, `small` or `full` rooms)."""

    difficulty: str = "small"
    name: str = "alfworld"

    def __post_init__(self) -> None:
        if self.difficulty not in DIFFICULTIES:
            raise ConfigError(f"difficulty {self.difficulty!r}: choose one of {sorted(DIFFICULTIES)}")

    def tasks(self, split: str, count: int, start: int = 0) -> list[Task]:
        """`count` tasks of `split` (train, seen, unseen, base), the six task types in turn."""
        if split not in SPLITS:
            raise ConfigError(f"split {split!r}: choose one of {list(SPLITS)}")
        return [self.task({"env": self.name, "id": name}) for name in list_games(self.difficulty, split, count, start)]

    def task(self, reference: dict[str, Any]) -> Task:
        """The task of a reference such as `{"env": "alfworld", "id": "small/train/pick_and_place_simple/3"}`."""
        if reference.get("env") != self.name or not isinstance(reference.get("id"), str):
            raise ConfigError(f"task {reference!r}: expected env {self.name!r} and the id of a generated game")
        _, split, task_type, _ = parse_name(reference["id"])
        return Task(self.name, reference["id"], task_type, split)

    def session(self) -> Session:
        """A session with an engine of its own."""
        return AlfworldSession()

    def expert(self) -> Expert:
        """A fresh expert for one episode."""
        from gradprism.environments.alfworld.expert import AlfworldExpert

        return AlfworldExpert()


class AlfworldSession:
    """One engine; see `Session`."""

    def __init__(self) -> None:
        from gradprism.environments.alfworld.engine import AlfworldEngine

        self._engine = AlfworldEngine()

    def reset(self, task_id: str) -> Step:
        """Starts the game named `task_id`."""
        return Step(self._engine.reset(generate(task_id)), info={"valid": True, "admissible": self._engine.admissible})

    def step(self, action: str) -> Step:
        """Plays `action`; reward 1.0 when it completes the task."""
        from gradprism.environments.alfworld.engine import NOTHING_HAPPENS

        action = " ".join(action.split()) if len(action) <= MAX_ACTION_CHARACTERS else ""
        admissible = self._engine.admissible
        if action not in admissible:
            return Step(NOTHING_HAPPENS, info={"valid": False, "admissible": admissible})
        observation, won = self._engine.step(action)
        return Step(observation, float(won), won, {"valid": True, "admissible": self._engine.admissible})
