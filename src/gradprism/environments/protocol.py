"""What an environment gives to the rest of the house: tasks with stable ids, sessions that play them, experts that show how."""

from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Task:
    """One task of an environment; `id` sets the same task up again on any machine."""

    env: str
    id: str
    task_type: str
    split: str

    def reference(self) -> dict[str, str]:
        """The form in which corpora, `rl.jsonl` and transcripts name the task."""
        return {"env": self.env, "id": self.id, "task_type": self.task_type, "split": self.split}


@dataclass(frozen=True, slots=True)
class Step:
    """What an action led to. `reward` is the environment's own (1.0 on success).

    `info["valid"]` says whether the engine accepted the action, `info["admissible"]` lists the actions that it would accept now.
    """

    observation: str
    reward: float = 0.0
    done: bool = False
    info: dict[str, Any] = field(default_factory=dict)


class Session(Protocol):
    """Plays one task at a time and may be reset as often as wanted."""

    def reset(self, task_id: str) -> Step:
        """Starts a task; the observation holds its instruction. Raises `ConfigError` for an unknown id."""
        ...

    def step(self, action: str) -> Step:
        """Plays an action; an unknown or inadmissible one is a step that changes nothing, with `info["valid"]` false."""
        ...


class Expert(Protocol):
    """Solves tasks from observations alone."""

    def act(self, observation: str) -> str:
        """The next action; the first observation of an episode is the one `Session.reset` gave."""
        ...


class Environment(Protocol):
    """A family of tasks, and the makers of what plays them."""

    @property
    def name(self) -> str:
        """What task references call it."""
        ...

    def tasks(self, split: str, count: int, start: int = 0) -> list[Task]:
        """`count` tasks of a split, task types in turn, in a fixed order."""
        ...

    def task(self, reference: dict[str, Any]) -> Task:
        """The task that a reference names; raises `ConfigError`."""
        ...

    def session(self) -> Session:
        """A new session; dear enough to be kept and reused."""
        ...

    def expert(self) -> Expert:
        """A new expert for one episode."""
        ...
