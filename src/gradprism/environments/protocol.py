"""What an environment gives to the rest of the house: tasks with stable ids, sessions that play them, experts that show how.

A new environment is a folder `environments/<name>/` whose module `environment` calls its class `ENVIRONMENT`: a frozen dataclass that
satisfies `Environment` and whose fields, all with defaults, are the options that a user may set. docs/environments.md shows one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Task:
    """One task of an environment; `id` sets the same task up again on any machine that has the environment's data."""

    env: str
    id: str
    task_type: str
    split: str

    def reference(self) -> dict[str, str]:
        """The form in which corpora, `rl.jsonl` and transcripts name the task."""
        return {"env": self.env, "id": self.id, "task_type": self.task_type, "split": self.split}


@dataclass(frozen=True, slots=True)
class Info:
    """What is known of a step beside its text; none of it is shown to an agent unless the prompt template says so.

    `valid`: the engine accepted the action. `admissible`: actions that it would accept now; one with `<…>` in it stands for any text
    there. `success` and `score` (0 to 1): how the episode stands. `failure`: why the engine, not the agent, ended the episode.
    `details`: the environment's own account, such as the terms of a reward; JSON-serialisable, and kept in the transcript's end.
    """

    valid: bool = True
    admissible: Sequence[str] = ()
    success: bool = False
    score: float = 0.0
    failure: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """What an action led to. `reward` is the environment's own, for this step alone (for ALFWorld 1.0 on success)."""

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
        """Plays an action; any text is allowed: what is not understood is a step that changes nothing, with `info.valid` false."""
        ...


class Expert(Protocol):
    """Solves tasks from what an agent could know."""

    def act(self, step: Step) -> str:
        """The next action, from the observation (and perhaps `info.admissible`); the first step is the one `Session.reset` gave."""
        ...


class Environment(Protocol):
    """A family of tasks, and the makers of what plays them. Pickled to worker processes, so it holds settings, not engines."""

    @property
    def name(self) -> str:
        """What task references call it."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of its splits, the one for training first."""
        ...

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        """The splits that are evaluated on unless others are asked for."""
        ...

    def size(self, split: str) -> int | None:
        """How many tasks a split has, or None where they are generated without end; raises as `tasks` does."""
        ...

    def tasks(self, split: str, count: int | None = None, start: int = 0, task_type: str | None = None) -> list[Task]:
        """Tasks `start` to `start + count` of a split, of one type if given, in an order that never changes, types in turn.

        `count` None: all from `start` on. Raises `ConfigError` for an unknown split or type, for more tasks than there are, and for
        all tasks of a split without end.
        """
        ...

    def task(self, reference: dict[str, Any]) -> Task:
        """The task that a reference names; raises `ConfigError`."""
        ...

    def session(self) -> Session:
        """A new session; dear enough to be kept and reused."""
        ...

    def expert(self) -> Expert:
        """A new expert for one episode; raises `ConfigError` where the environment has none."""
        ...
