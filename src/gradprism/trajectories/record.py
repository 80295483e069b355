"""The record that everything else passes around: one conversation between an agent and its environment."""

from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `train` is false for an assistant turn that the source marks as not to be trained on (AgentTraj's `loss`)."""

    role: str
    content: str
    train: bool = True

    def to_chat(self) -> dict[str, str]:
        """The `{"role", "content"}` form that chat templates take."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A gold trajectory.

    `task` says how an environment sets the same task up again (for ALFWorld `env`, `game`, `task_type`, `split`) and is empty when
    the corpus does not tell. `source` is `file:line`, for messages to a person; it plays no part in equality.
    """

    id: str
    messages: tuple[Message, ...]
    task: dict[str, Any] = field(default_factory=dict)
    source: str = field(default="", compare=False)

    def chat(self) -> list[dict[str, str]]:
        """The messages in the form that chat templates take."""
        return [message.to_chat() for message in self.messages]

    def prompt(self) -> list[dict[str, str]]:
        """The messages before the first assistant turn that is trained on: what RL is given of a trajectory."""
        for index, message in enumerate(self.messages):
            if message.role == "assistant" and message.train:
                return [m.to_chat() for m in self.messages[:index]]
        return self.chat()
