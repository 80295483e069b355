"""Tasks with stable ids, sessions that play them, experts that show how: what an environment gives to the rest of the package.

An environment is a frozen dataclass that derives from `Environment`; its fields, all with defaults, are the options that a user may set.
docs/environments.md shows one.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, Protocol

from gradprism.runtime.errors import ConfigError, GradprismError
from gradprism.trajectories.record import Trajectory


@dataclass(frozen=True, slots=True)
class Task:
    """One task of an environment; `id` sets the same task up again on any machine that has the environment's data.

    `weight`, 0 or more: how often RL draws it, relative to others; no part of what the task is.
    """

    env: str
    id: str
    task_type: str
    split: str
    weight: float = field(default=1.0, compare=False)

    def reference(self) -> dict[str, str]:
        """The JSON form in which corpora, route folders and transcripts name the task: `env`, `id`, `task_type`, `split`."""
        return {"env": self.env, "id": self.id, "task_type": self.task_type, "split": self.split}


@dataclass(frozen=True, slots=True)
class Info:
    """Facts about a step besides its text; none of them is shown to an agent unless the prompt template says so.

    `valid`: the engine accepted the action. `admissible`: actions that it would accept now; one with `<…>` in it stands for any text
    there. `success` and `score` (0 to 1): how the episode stands. `parts`: named parts of the score, each from 0 to 1, such as one
    per wish; tables show their means over the episodes that have them. `failure`: why the engine, not the agent, ended the episode.
    `details`: the environment's own account, such as the terms of a reward; JSON-serialisable, and kept in the episode's transcript.
    """

    valid: bool = True
    admissible: Sequence[str] = ()
    success: bool = False
    score: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""
    details: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """The result of an action. `reward` is the environment's own, for this step alone (for ALFWorld 1.0 on success)."""

    observation: str
    reward: float = 0.0
    done: bool = False
    info: Info = Info()


class Session(Protocol):
    """Plays one task at a time and may be reset as often as wanted. The same task and actions give the same steps, always."""

    def reset(self, task_id: str) -> Step:
        """Starts a task; the observation holds its instruction. Raises `ConfigError` for an unknown id, `DataError` for broken data."""
        ...

    def step(self, action: str) -> Step:
        """Plays an action; any text is allowed: one that is not understood changes nothing, with `info.valid` false."""
        ...


class Expert(Protocol):
    """Solves tasks from what an agent could know."""

    def act(self, step: Step) -> str:
        """The next action, from the observation (and perhaps `info.admissible`); the first step is the one `Session.reset` gave."""
        ...


class Environment(ABC):
    """A family of tasks, and the makers of what plays them. Pickled to worker processes, so it holds settings, not engines.

    A subclass defines `ids` and `session`; ids begin with their split and a slash, unless it defines `find` too.

    `name`: under which it is registered, and by which task references call it. `splits`: the one for training first.
    `evaluation_splits`: those that are evaluated on unless others are asked for. `dev_split`: the one to look at while training and while
    settings are chosen, which no result is reported on; empty: the first of `evaluation_splits`.
    """

    name: ClassVar[str] = ""
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    evaluation_splits: ClassVar[tuple[str, ...]] = ("test",)
    dev_split: ClassVar[str] = ""

    @abstractmethod
    def ids(self, split: str, task_type: str | None = None) -> Sequence[str]:
        """Ids of the tasks of a split, of one type if given, in an order that never changes.

        `split` is one of `splits`. Raises `ConfigError` for an unknown type.
        """

    @abstractmethod
    def session(self) -> Session:
        """A new session; expensive enough to be kept and reused."""

    def expert(self) -> Expert:
        """A new expert for one episode; raises `ConfigError` where the environment has none."""
        raise ConfigError(f"environment {self.name!r}: has no expert")

    def recorded(self, trajectory: Trajectory) -> Trajectory:
        """A demonstration as corpora are to have it: here as it was played, as user and assistant turns."""
        return trajectory

    def find(self, task_id: str) -> Task:
        """The task of that id; raises `ConfigError`."""
        split = task_id.partition("/")[0]
        if split not in self.splits:
            raise ConfigError(f"task {task_id!r}: environment {self.name!r} has none of that id")
        return Task(self.name, task_id, self.name, split)

    def contents(self, tasks: Sequence[Task] | None = None) -> dict[str, str]:
        """What its tasks and steps depend on besides its options, such as the hash of a catalogue; empty unless an environment has some.

        `tasks` are the only ones that are played; None: any may be.
        """
        return {}

    def identity(self, tasks: Sequence[Task] | None = None) -> dict[str, object]:
        """All that its tasks and steps depend on, JSON-serialisable: a result is only reused where this is equal.

        The name, the contents for these `tasks`, and the options without `data_dir`: data counts by what is in it, not by where it lies.
        """
        options = {option.name: getattr(self, option.name) for option in fields(self) if option.name != "data_dir"}  # pyright: ignore[reportArgumentType] # each is a dataclass
        return {**options, **self.contents(tasks), "name": self.name}

    def remarks(self, tasks: Sequence[Task]) -> list[str]:
        """Sentences that a reader of success rates on these tasks has to know; none unless an environment has some."""
        return []

    def size(self, split: str) -> int | None:
        """Number of tasks of a split, or None where they are generated without end; raises as `tasks` does."""
        return len(self.tasks(split))

    def tasks(self, split: str, count: int | None = None, start: int = 0, task_type: str | None = None) -> list[Task]:
        """Tasks `start` to `start + count` of a split, of one type if given; `count` None: all from `start` on.

        Raises `ConfigError` for an unknown split or type, for more tasks than there are, and for all tasks of a split without end.
        """
        self.check_split(split)
        ids = self.ids(split, task_type)
        end = len(ids) if count is None else start + count
        if end > len(ids) or start >= len(ids):
            raise ConfigError(f"split {split!r}: has {len(ids)} tasks, so not those from {start} to {end}")
        return [self.find(task_id) for task_id in ids[start:end]]

    def task(self, reference: Mapping[str, object]) -> Task:
        """The task that a reference names by `env` and `id`; raises `ConfigError`."""
        task_id = reference.get("id")
        if reference.get("env") != self.name or not isinstance(task_id, str):
            raise ConfigError(f"task {dict(reference)!r}: expected env {self.name!r} and the id of a task")
        return self.find(task_id)

    def refusal(self, reference: Mapping[str, object]) -> str:
        """Why it cannot set up the task that a reference names, in words; empty where it can."""
        try:
            self.task(reference)
        except GradprismError as error:
            return str(error)
        except Exception as error:  # what a person's own environment raises for a name that it does not have
            return f"{type(error).__name__}: {error}"
        return ""

    def check_split(self, split: str) -> None:
        """Raises `ConfigError` where there is no such split."""
        if split not in self.splits:
            raise ConfigError(f"split {split!r}: choose one of {list(self.splits)}")
