"""A trajectory's messages as a chat template is to see them: merged where that was chosen, thoughts apart from text, losses counted."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradprism.runtime.errors import DataError
from gradprism.trajectories.chat_options import ChatOptions
from gradprism.trajectories.dialect import THOUGHT, Dialect
from gradprism.trajectories.record import Message, Trajectory


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages for a template; `merged[i]` is how many of the trajectory's assistant messages its i-th assistant message holds."""

    messages: tuple[Message, ...]
    merged: tuple[int, ...]

    @property
    def answers(self) -> list[Message]:
        """The assistant messages."""
        return [message for message in self.messages if message.role == "assistant"]


def converse(trajectory: Trajectory, options: ChatOptions, dialect: Dialect, place: str) -> Conversation:
    """The messages of a trajectory for a template of this dialect.

    Raises `DataError`, which names `place`, for a weight other than 0 and 1, and for turns that cannot be joined.
    """
    for number, message in enumerate(trajectory.messages, 1):
        if message.role == "assistant" and message.weight not in (0, 1):
            raise DataError(
                f"{place}: message {number} has the weight {message.weight:g}; a turn counts wholly or not at all, write 1 or 0"
            )
    messages = merge(_calls_as_text(trajectory.messages) if options.calls == "text" else trajectory.messages, options, place)
    counts = [1 for message in messages if message.role == "assistant"]
    if "alternate" in options.merge:
        messages, counts = _joined(messages, place)
    if dialect.splits:
        messages = [_thought_apart(message) for message in messages]
    return Conversation(tuple(messages), tuple(counts))


def _calls_as_text(messages: Sequence[Message]) -> list[Message]:
    """The messages with calls in their turns' texts, and with the results of a turn's calls as a user turn (Hermes' function calling)."""
    made = list[Message]()
    for before, message in zip((None, *messages), messages, strict=False):
        if message.role == "tool":
            text = f"<tool_response>\n{message.content}\n</tool_response>"
            if before is not None and before.role == "tool":
                made[-1] = replace(made[-1], content=f"{made[-1].content}\n{text}")
            else:
                made.append(Message("user", text))
        else:
            calls = ({"name": call.name, "arguments": dict(call.arguments)} for call in message.tool_calls)
            written = [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls]
            made.append(replace(message, content="\n".join(filter(None, (message.content, *written))), tool_calls=()))
    return made


def merge(messages: Sequence[Message], options: ChatOptions, place: str) -> Sequence[Message]:
    """The messages with the system prompt at the head of the first user turn, where that was chosen."""
    if "system" not in options.merge or not any(message.role == "system" for message in messages):
        return messages
    prompt = "\n\n".join(message.content for message in messages if message.role == "system")
    rest = [message for message in messages if message.role != "system"]
    first = next((i for i, message in enumerate(rest) if message.role == "user"), None)
    if first is None:
        raise DataError(f"{place}: no user turn to merge the system prompt into; leave out {options.called('merge', 'system')}")
    rest[first] = replace(rest[first], content=f"{prompt}\n\n{rest[first].content}")
    return rest


def _joined(messages: Sequence[Message], place: str) -> tuple[list[Message], list[int]]:
    """Successive turns of one role as one, and how many each assistant turn holds. Tools' results stay apart."""
    joined, counts = list[Message](), list[int]()
    for message in messages:
        last = joined[-1] if joined else None
        if last is None or last.role != message.role or message.role == "tool":
            joined.append(message)
            counts += [1] if message.role == "assistant" else []
            continue
        if message.role == "assistant":
            if last.train != message.train:
                raise DataError(f"{place}: successive assistant turns of which one is trained on and one not cannot be joined")
            if last.tool_calls or message.reasoning:
                raise DataError(f"{place}: successive assistant turns with calls or a thought between their texts cannot be joined")
            counts[-1] += 1
        text = "\n\n".join(part for part in (last.content, message.content) if part)
        joined[-1] = replace(last, content=text, tool_calls=(*last.tool_calls, *message.tool_calls))
    return joined, counts


def _thought_apart(message: Message) -> Message:
    """An assistant message whose text begins with `<think>…</think>`, with that as its reasoning."""
    if message.role != "assistant" or message.reasoning or not (found := THOUGHT.match(message.content)):
        return message
    return replace(message, reasoning=found[1].strip("\n"), content=message.content[found.end() :])


@dataclass(frozen=True, slots=True)
class Lost:
    """What of a turn is not in its render."""

    text: bool = False
    thought: bool = False
    calls: bool = False


def lost_of(message: Message, written: str) -> Lost:
    """What of an assistant message is not in `written`. Outer white space of text and thought does not count, nor how values are quoted."""
    return Lost(
        message.content.strip() not in written,
        message.reasoning.strip() not in written.replace(message.content.strip() or "\0", "", 1),
        not all(_has_call(call.name, call.arguments, written) for call in message.tool_calls),
    )


def _has_call(name: str, arguments: Mapping[str, Any], written: str) -> bool:
    return name in written and all(any(form in written for form in forms(leaf)) for leaf in _leaves(arguments))


def _leaves(value: Any) -> Iterator[Any]:
    """Keys, strings, numbers and such, from anywhere within."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def forms(leaf: Any) -> Iterator[str]:
    """How a template may write a value: as it is, in JSON, in JSON within JSON, in Python's way."""
    if isinstance(leaf, str):
        inner = json.dumps(leaf, ensure_ascii=False)[1:-1]
        yield leaf
        yield leaf.strip()
        yield inner
        yield json.dumps(leaf)[1:-1]
        yield json.dumps(inner, ensure_ascii=False)[1:-1]
        yield repr(leaf)[1:-1]
        yield leaf.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    else:
        yield json.dumps(leaf)
        yield str(leaf)
