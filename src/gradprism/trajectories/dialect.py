"""The form in which a chat template wants a conversation: found out by asking it."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from gradprism.trajectories.chat import ChatTemplate, TemplateRefusedError
from gradprism.trajectories.record import ChatMessage, Message, ToolCall

THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_TEXT, _OTHER = "zqdtextqz", "zqdotherqz"
_TOOL = {
    "type": "function",
    "function": {
        "name": "zqdtoolqz",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"zqdkeyqz": {"type": "string", "description": "What."}}},
    },
}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How messages are given to one template.

    `parts`: a text is a list of parts. `arguments_as_text`: a call's arguments are a JSON string. `empty_is_none`: a turn of calls alone
    has None for its text. `short_ids`: a call's id has nine letters. `calls`, `tools`: whether calls, and the list of tools, are written at
    all. `splits`: the template takes `<think>…</think>` in a text apart by itself.
    """

    parts: bool = False
    arguments_as_text: bool = False
    empty_is_none: bool = False
    short_ids: bool = False
    calls: bool = False
    tools: bool = False
    splits: bool = False

    def chat(self, messages: Sequence[Message]) -> list[ChatMessage]:
        """The messages as the template takes them."""
        ids = _Ids() if self.short_ids else None
        return [self._message(message, ids) for message in messages]

    def _message(self, message: Message, ids: "_Ids | None") -> ChatMessage:
        chat = message.to_chat()
        if self.parts:
            chat["content"] = [{"type": "text", "text": message.content}]
        elif self.empty_is_none and message.tool_calls and not message.content:
            chat["content"] = None
        for call in chat.get("tool_calls", []):
            if self.arguments_as_text:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            if ids:
                call["id"] = ids.of_call(call.get("id", ""))
        if ids and message.role == "tool":
            chat["tool_call_id"] = ids.of_result(message.tool_call_id)
        return chat


class _Ids:
    """Ids of nine letters for calls, and for their results: by the id that they name, else in the order of the calls."""

    def __init__(self) -> None:
        self._by_id: dict[str, str] = {}
        self._open: list[str] = []
        self._n = 0

    def of_call(self, own: str) -> str:
        self._n += 1
        new = own if re.fullmatch(r"[A-Za-z0-9]{9}", own) else f"call{self._n:05d}"
        self._by_id[own] = new
        self._open.append(new)
        return new

    def of_result(self, own: str) -> str:
        new = self._by_id.get(own) if own else self._open[0] if self._open else None
        new = new or f"call{0:05d}"
        if new in self._open:
            self._open.remove(new)
        return new


def find_dialect(template: ChatTemplate) -> Dialect:
    """The form that gets a text and a call into the render; raises `TemplateRefusedError` where not even a user's text gets there."""
    dialect = _with_calls(template, Dialect(parts=_wants_parts(template)))
    user = [Message("user", _OTHER)]
    plain, tooled = (_try(template, dialect, user, with_tool) for with_tool in (False, True))
    thought = Message("assistant", f"<think>\n{_OTHER}\n</think>\n\n{_TEXT}")
    renders = [_try(template, dialect, messages) for messages in ([*user, thought], [*user, thought, *user])]
    knows = tooled is not None and tooled != plain and "zqdtoolqz" in tooled
    return replace(dialect, tools=knows, splits=any(text is not None and thought.content not in text for text in renders))


def _wants_parts(template: ChatTemplate) -> bool:
    """Whether a text has to be a list of parts to be written."""
    refusal: TemplateRefusedError | None = None
    for parts in (False, True):
        try:
            if _TEXT in template.render(Dialect(parts=parts).chat([Message("user", _TEXT)])):
                return parts
        except TemplateRefusedError as error:
            refusal = refusal or error
    if refusal:
        raise refusal
    return False


def _with_calls(template: ChatTemplate, dialect: Dialect) -> Dialect:
    for short, text, none in product((False, True), repeat=3):
        tried = replace(dialect, short_ids=short, arguments_as_text=text, empty_is_none=none)
        if any(_TEXT in (_try(template, tried, messages, True) or "") for messages in _conversations_with_a_call()):
            return replace(tried, calls=True)
    return dialect


def _conversations_with_a_call() -> Iterator[list[Message]]:
    call = ToolCall("zqdtoolqz", {"zqdkeyqz": _TEXT}, "zqdid")
    called = [Message("user", _OTHER), Message("assistant", "", tool_calls=(call,))]
    yield [*called, Message("tool", _OTHER, name="zqdtoolqz", tool_call_id="zqdid"), Message("assistant", _OTHER)]
    yield called


def _try(template: ChatTemplate, dialect: Dialect, messages: Sequence[Message], with_tool: bool = False) -> str | None:
    """The render, or None where the template refuses."""
    tools: tuple[dict[str, Any], ...] = (_TOOL,) if with_tool else ()
    try:
        return template.render(dialect.chat(messages), tools)
    except TemplateRefusedError:
        return None
