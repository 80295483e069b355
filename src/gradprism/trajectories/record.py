"""The record that everything else passes around: one conversation between an agent and its environment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
ChatMessage = dict[str, Any]  # as chat templates take it: OpenAI's keys, the arguments of a call as an object


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant turn makes; `arguments` is a JSON object, `id` what the tool's result names (empty: none)."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""

    def to_chat(self) -> dict[str, Any]:
        """OpenAI's form."""
        call = {"type": "function", "function": {"name": self.name, "arguments": dict(self.arguments)}}
        return {"id": self.id, **call} if self.id else call


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: its text, and for an assistant the reasoning before it and the calls after it.

    `weight`: of an assistant turn in the loss; 0 for one that the source marks as not to be trained on (AgentTraj's `loss`). A tool's
    result has the tool's `name` and the `tool_call_id` that it answers, where the source tells them.
    """

    role: str
    content: str
    weight: float = 1.0
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    tool_call_id: str = ""

    @property
    def train(self) -> bool:
        """Whether the turn, if it is an assistant's, is trained on."""
        return self.weight > 0

    def to_chat(self) -> ChatMessage:
        """The form that chat templates take; keys without a value are left out."""
        chat: ChatMessage = {"role": self.role, "content": self.content}
        if self.reasoning:
            chat["reasoning_content"] = self.reasoning
        if self.tool_calls:
            chat["tool_calls"] = [call.to_chat() for call in self.tool_calls]
        if self.name:
            chat["name"] = self.name
        if self.tool_call_id:
            chat["tool_call_id"] = self.tool_call_id
        return chat


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A gold trajectory.

    `task` says how an environment sets the same task up again (for ALFWorld `env`, `game`, `task_type`, `split`) and is empty when
    the corpus does not tell. `tools` are the functions that the agent may call, as JSON schemas in OpenAI's form. `source` is `file:line`,
    for messages to a person; it plays no part in equality. `weight`, 0 or more: how much it counts in the loss of SFT, relative to others.
    """

    id: str
    messages: tuple[Message, ...]
    task: dict[str, Any] = field(default_factory=dict)
    source: str = field(default="", compare=False)
    tools: tuple[Mapping[str, Any], ...] = ()
    weight: float = 1.0

    def chat(self) -> list[ChatMessage]:
        """The messages in the form that chat templates take."""
        return [message.to_chat() for message in self.messages]

    def prompt(self) -> list[ChatMessage]:
        """The messages before the first assistant turn that is trained on: what RL is given of a trajectory."""
        return [message.to_chat() for message in before_training(self.messages)]


def before_training(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages before the first assistant turn that is trained on; all of them where none is."""
    first = next((i for i, message in enumerate(messages) if message.role == "assistant" and message.train), len(messages))
    return messages[:first]
