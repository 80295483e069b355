"""The four record formats of agent corpora, and how each becomes a `Trajectory`.

- `messages` (OpenAI, TRL): `messages` of `role` and `content`; `train` or OpenAI's `weight` says whether a turn is learnt.
- `eto` (Song et al. 2024): `conversations` of `from` (human, gpt) and `value`, with `game_file` or `reward`.
- `agenttraj` (AgentGym, Xi et al. 2024): `item_id` and `conversations` whose gpt turns carry a `loss` flag.
- `sharegpt`: `conversations` with more speakers, and perhaps a `system` prompt beside them.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradprism.runtime.errors import DataError
from gradprism.trajectories.record import ROLES, Message, Trajectory


@dataclass(frozen=True, slots=True)
class _Layout:
    """The keys under which a format keeps its turns; a turn whose `flags` hold a false value is not learnt."""

    turns: str
    speaker: str
    text: str
    flags: tuple[str, ...]
    roles: Mapping[str, str]


_HUMAN_GPT = {"human": "user", "gpt": "assistant"}
_LAYOUTS = {
    "messages": _Layout("messages", "role", "content", ("train", "weight"), {role: role for role in ROLES}),
    "eto": _Layout("conversations", "from", "value", ("loss",), _HUMAN_GPT),
    "sharegpt": _Layout(
        "conversations",
        "from",
        "value",
        ("loss",),
        {
            **{role: role for role in ROLES},
            **_HUMAN_GPT,
            "model": "assistant",
            "function_call": "assistant",
            "observation": "tool",
            "function_response": "tool",
        },
    ),
    "agenttraj": _Layout("conversations", "from", "value", ("loss",), _HUMAN_GPT),
}
FORMATS = tuple(_LAYOUTS)
# Parts of a turn beside its text: a trajectory has no place for them, and to drop them would drop what should be learnt.
_BESIDE_TEXT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")


def recognise(record: Mapping[str, Any]) -> str | None:
    """The format of a record by its keys, or None. A `conversations` record is ShareGPT unless it has another format's marks."""
    if isinstance(record.get("messages"), list):
        return "messages"
    turns = record.get("conversations")
    if not isinstance(turns, list):
        return None
    turns = [turn for turn in turns if isinstance(turn, dict)]
    if record.get("item_id") is not None or any(turn.get("loss") is not None for turn in turns):
        return "agenttraj"
    has_mark = record.get("game_file") is not None or record.get("reward") is not None
    return "eto" if has_mark and all(turn.get("from") in ("human", "gpt") for turn in turns) else "sharegpt"


def parse_record(record: Mapping[str, Any], format: str, place: str, default_id: str) -> Trajectory:
    """Makes the `Trajectory` of one record in a format of `FORMATS`; raises `DataError` with `place`."""
    layout = _LAYOUTS[format]
    turns = record.get(layout.turns)
    if not isinstance(turns, list):
        found = recognise(record)
        hint = f"it looks like {found!r}" if found else "give --format, or convert the record"
        raise DataError(f"{place}: format {format!r} needs a list {layout.turns!r}; keys seen: {_keys(record)}; {hint}")
    messages = [_message(turn, layout, f"{place}: turn {number}") for number, turn in enumerate(turns, 1)]
    if format == "sharegpt":
        messages = _with_system(record.get("system"), messages, place)
    if not messages:
        raise DataError(f"{place}: {layout.turns!r} is empty; delete the record")
    if all(message.role != "assistant" for message in messages):
        raise DataError(f"{place}: no assistant turn, so there is nothing to learn; delete the record")
    key = next((key for key in ("id", "item_id") if record.get(key) is not None), None)
    identifier = default_id if key is None else _identifier(record[key], key, place)
    return Trajectory(identifier, tuple(messages), _task(record, format, key, place), place)


def to_record(trajectory: Trajectory) -> dict[str, Any]:
    """The trajectory in the `messages` format, from which `parse_record` makes an equal one."""
    messages = [m.to_chat() if m.train else {**m.to_chat(), "train": False} for m in trajectory.messages]
    record: dict[str, Any] = {"id": trajectory.id, "messages": messages}
    if trajectory.task:
        record["task"] = trajectory.task
    return record


def _message(turn: Any, layout: _Layout, place: str) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"{place}: expected an object with {layout.speaker!r} and {layout.text!r}, found {_kind(turn)}")
    for key in (layout.speaker, layout.text):
        if key not in turn:
            raise DataError(f"{place}: no {key!r}; keys seen: {_keys(turn)}")
    for key in _BESIDE_TEXT:
        if turn.get(key):
            raise DataError(f"{place}: {key!r} beside {layout.text!r} is not supported; write it into the text as the model would")
    speaker = turn[layout.speaker]
    role = layout.roles.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise DataError(f"{place}: {layout.speaker!r} is {speaker!r}; known: {', '.join(layout.roles)}")
    flags = [_flag(turn[key], key, place) for key in layout.flags if turn.get(key) is not None]
    return Message(role, _text(turn[layout.text], layout.text, place), all(flags))


def _text(value: Any, key: str, place: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        texts = [p["text"] for p in value if isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str)]
        if len(texts) != len(value):
            raise DataError(f"{place}: {key!r} holds a part that is not text; only text can be learnt here")
        return "".join(texts)
    raise DataError(f"{place}: {key!r} is {_kind(value)}, expected a string")


def _flag(value: Any, key: str, place: str) -> bool:
    if value not in (0, 1):  # true and false among them
        raise DataError(f"{place}: {key!r} is {value!r}, expected true or false")
    return bool(value)


def _with_system(system: Any, messages: list[Message], place: str) -> list[Message]:
    if system is None or system == "":
        return messages
    if not isinstance(system, str):
        raise DataError(f"{place}: 'system' is {_kind(system)}, expected a string")
    if any(message.role == "system" for message in messages):
        raise DataError(f"{place}: both a 'system' key and a system turn; keep one")
    return [Message("system", system), *messages]


def _identifier(value: Any, key: str, place: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{place}: {key!r} is {value!r}, expected a string that is not empty or an integer")
    return str(value)


def _task(record: Mapping[str, Any], format: str, id_key: str | None, place: str) -> dict[str, Any]:
    """The `task` object, after the record's other plain values (a reward, a task type, a game file)."""
    task: dict[str, Any] = {"env": "alfworld"} if format == "eto" and record.get("game_file") is not None else {}
    for key, value in record.items():
        is_value = isinstance(value, str | int | float) and not (isinstance(value, float) and not math.isfinite(value))
        if is_value and key not in (id_key, "system"):
            task[key] = value
    if isinstance(given := record.get("task"), dict):
        try:
            json.dumps(given, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"{place}: 'task' is not plain JSON ({error})") from None
        task |= given
    return task


def _keys(record: Mapping[str, Any]) -> str:
    return ", ".join(map(str, record)) or "none"


def _kind(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
