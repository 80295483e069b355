"""ALFWorld as an `Environment`: generated or official games, sessions on the real engine, the expert."""

from collections.abc import Sequence
from dataclasses import dataclass

from gradprism.environments.alfworld import generator, official
from gradprism.environments.alfworld.expert import AlfworldExpert
from gradprism.environments.protocol import Environment, Info, Step, Task
from gradprism.runtime.errors import ConfigError

MAX_ACTION_CHARACTERS = 200  # no command of the engine comes near; a longer action is refused before it reaches any parser
# Names of the splits of generated games, for the official ones.
ALIASES = {"seen": "valid_seen", "unseen": "valid_unseen"}


@dataclass(frozen=True)
class AlfworldEnvironment(Environment):
    """Games generated at one `difficulty`, or the official ones below `data_dir` (or, with `games="official"`, `$ALFWORLD_DATA`)."""

    difficulty: str = "small"
    data_dir: str = ""
    games: str = "generated"
    name = "alfworld"

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
        """Games in rooms that training does not know, and in rooms that it does."""
        return ("unseen", "seen")

    @property
    def dev_split(self) -> str:
        """Games apart in training rooms: no room of `unseen` is looked at."""
        return "valid_train" if self._official else "dev"

    def size(self, split: str) -> int | None:
        """Generated splits have no end."""
        return super().size(split) if self._official else None

    def ids(self, split: str, task_type: str | None = None) -> Sequence[str]:
        """Ids of official games, the six types in turn."""
        names = official.list_official(official.games_folder(self.data_dir), split)
        return [name for name in names if task_type in (None, self.find(name).task_type)]

    def tasks(self, split: str, count: int | None = None, start: int = 0, task_type: str | None = None) -> list[Task]:
        """Tasks of a split, the six types in turn; splits of generated games need a `count`, and `start` counts in each type."""
        if task_type is not None and task_type not in generator.TASK_TYPES:
            raise ConfigError(f"task type {task_type!r}: choose one of {list(generator.TASK_TYPES)}")
        if self._official:
            return super().tasks(ALIASES.get(split, split), count, start, task_type)
        self.check_split(split)
        if count is None:
            raise ConfigError(f"split {split!r}: games are generated without end; say how many (--count)")
        return [self.find(name) for name in generator.list_games(self.difficulty, split, count, start, task_type)]

    def find(self, task_id: str) -> Task:
        """The game of an id such as `small/train/pick_and_place_simple/3`, or that of an official game."""
        if task_id.startswith(f"{official.PREFIX}/"):
            _, split, task, _ = official.parse_official(task_id)
            return Task(self.name, task_id, task.partition("-")[0], split)
        _, split, task_type, _ = generator.parse_name(task_id)
        return Task(self.name, task_id, task_type, split)

    def contents(self, tasks: Sequence[Task] | None = None) -> dict[str, str]:
        """Official games by the hash of their files: of those that are played, or of all. Generated games follow from their names."""
        names = None if tasks is None else [task.id for task in tasks if task.id.startswith(f"{official.PREFIX}/")]
        if not (self._official if names is None else names):
            return {}
        return {"games_sha256": official.contents(official.games_folder(self.data_dir), names)}

    def remarks(self, tasks: Sequence[Task]) -> list[str]:
        """Official splits that are not whole: of a download that broke off, or from which games were deleted."""
        if not self._official:
            return []
        folder = official.games_folder(self.data_dir)
        return [line for split in dict.fromkeys(task.split for task in tasks) if (line := official.missing_games(folder, split))]

    def session(self) -> "AlfworldSession":
        """A session with an engine of its own; it plays both kinds of games."""
        return AlfworldSession(self.data_dir)

    def expert(self) -> AlfworldExpert:
        """A fresh expert for one episode."""
        return AlfworldExpert()


class AlfworldSession:
    """One engine; see `Session`."""

    def __init__(self, data_dir: str = "") -> None:
        from gradprism.environments.alfworld.engine import AlfworldEngine  # the library takes a second to import

        self._data_dir = data_dir
        self._engine = AlfworldEngine()
        self._won = False

    def reset(self, task_id: str) -> Step:
        """Starts the game named `task_id`."""
        self._won = False
        if task_id.startswith(f"{official.PREFIX}/"):
            game = official.load_official(official.games_folder(self._data_dir), task_id)
        else:
            game = generator.generate(task_id)
        return Step(self._engine.reset(game), info=Info(admissible=self._engine.admissible))

    def step(self, action: str) -> Step:
        """Plays `action`; reward 1.0 when it completes the task, which ends the game.

        A command counts as the engine takes it, or in other capitals and with a full stop, as chat models write it: `Go to shelf 1.`
        """
        admissible = self._engine.admissible
        command = action.strip() if len(action) <= MAX_ACTION_CHARACTERS else ""
        if command not in admissible:
            command = command.lower().removesuffix(".").rstrip()
        if self._won or command not in admissible:
            info = Info(valid=False, admissible=admissible, success=self._won, score=float(self._won))
            return Step("Nothing happens.", done=self._won, info=info)  # as the engine says it
        observation, self._won = self._engine.step(command)
        won = float(self._won)
        return Step(observation, won, self._won, Info(admissible=self._engine.admissible, success=self._won, score=won))
