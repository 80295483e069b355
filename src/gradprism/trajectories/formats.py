"""The record formats of agent corpora, and how a record of each becomes a `Trajectory`.

- `messages` (OpenAI, TRL): `messages` of `role` and `content`; `train` or OpenAI's `weight` says whether a turn is trained on.
- `eto` (Song et al. 2024): `conversations` of `from` (human, gpt) and `value`, with `game_file` or `reward`.
- `sharegpt`: `conversations` with more speakers, and perhaps a `system` prompt beside them.
- `agenttraj` (AgentGym, Xi et al. 2024): `item_id` and `conversations` whose gpt turns carry a `loss` flag.

`docs/extending.md` has one of a user's own.
"""

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gradprism.runtime.errors import DataError
from gradprism.runtime.registry import Registry
from gradprism.trajectories.record import ROLES, Message, Trajectory

Record = Mapping[str, Any]  # one JSON object of a corpus


class Format(Protocol):
    """A way to write a trajectory as one JSON object."""

    def recognises(self, record: Record, /) -> bool:
        """Whether a record is of this format, by its keys; asked of a file's first record alone."""
        ...

    def parse(self, record: Record, /) -> Trajectory:
        """The record's trajectory; an empty id stands for none. What it raises is told with the file and line."""
        ...


FORMATS: Registry[Format] = Registry("format")
register_format = FORMATS.register


def recognise(record: Record) -> str | None:
    """The name of a record's format, or None; where several recognise it, the one that was registered last."""
    return next((name for name in reversed(list(FORMATS)) if FORMATS[name].recognises(record)), None)


def parse_record(record: Record, format: str, place: str, default_id: str) -> Trajectory:
    """Makes the `Trajectory` of a record in a format of `FORMATS`; raises `DataError` with `place`."""
    parse = FORMATS[format].parse
    try:
        parsed = parse(record)
        if all(message.role != "assistant" for message in parsed.messages):
            raise DataError("no assistant turn, so there is nothing to train on; delete the record")
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{place}: format {format!r} cannot read the record ({type(error).__name__}: {error})") from error
    return Trajectory(parsed.id or default_id, tuple(parsed.messages), parsed.task, place)


@dataclass(frozen=True, slots=True)
class _Turns:
    """A format of this package: the keys under which it keeps its turns; one with a false value under `flags` is not trained on."""

    name: str
    turns: str
    speaker: str
    text: str
    flags: tuple[str, ...]
    roles: Mapping[str, str]

    def recognises(self, record: Record) -> bool:
        return _name_of(record) == self.name

    def parse(self, record: Record) -> Trajectory:
        turns = record.get(self.turns)
        if not isinstance(turns, list):
            found = recognise(record)
            hint = f"it looks like {found!r}" if found else "give --format, or convert the record"
            raise DataError(f"format {self.name!r} needs a list {self.turns!r}; keys seen: {_keys(record)}; {hint}")
        messages = [self._message(turn, f"turn {number}") for number, turn in enumerate(turns, 1)]
        if self.name == "sharegpt":
            messages = _with_system(record.get("system"), messages)
        if not messages:
            raise DataError(f"{self.turns!r} is empty; delete the record")
        key = next((key for key in ("id", "item_id") if record.get(key) is not None), None)
        task = _task(record, key)
        if self.name == "eto" and record.get("game_file") is not None:
            task = {"env": "alfworld", **task}
        return Trajectory("" if key is None else _identifier(record[key], key), tuple(messages), task)

    def _message(self, turn: Any, place: str) -> Message:
        if not isinstance(turn, dict):
            raise DataError(f"{place}: expected an object with {self.speaker!r} and {self.text!r}, found {_kind(turn)}")
        for key in (self.speaker, self.text):
            if key not in turn:
                raise DataError(f"{place}: no {key!r}; keys seen: {_keys(turn)}")
        for key in _BESIDE_TEXT:
            if turn.get(key):
                raise DataError(
                    f"{place}: {key!r} beside {self.text!r} is not supported; write it into the text as the model would"
                )
        speaker = turn[self.speaker]
        role = self.roles.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise DataError(f"{place}: {self.speaker!r} is {speaker!r}; known: {', '.join(self.roles)}")
        flags = [_flag(turn[key], key, place) for key in self.flags if turn.get(key) is not None]
        return Message(role, _text(turn[self.text], self.text, place), float(all(flags)))


_SAME = {role: role for role in ROLES}
_HUMAN_GPT = {"human": "user", "gpt": "assistant"}
_SHAREGPT = {"model": "assistant", "function_call": "assistant", "observation": "tool", "function_response": "tool"}
# Parts of a turn beside its text: a trajectory has no place for them, and to drop them would drop what should be trained on.
_BESIDE_TEXT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
for _format in (
    _Turns("messages", "messages", "role", "content", ("train", "weight"), _SAME),
    _Turns("eto", "conversations", "from", "value", ("loss",), _HUMAN_GPT),
    _Turns("sharegpt", "conversations", "from", "value", ("loss",), {**_SAME, **_HUMAN_GPT, **_SHAREGPT}),
    _Turns("agenttraj", "conversations", "from", "value", ("loss",), _HUMAN_GPT),
):
    register_format(_format.name)(_format)


def _name_of(record: Record) -> str | None:
    """The name of a record's format among those of this package. A `conversations` record is ShareGPT's unless it has another's marks."""
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


def _text(value: Any, key: str, place: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        texts = [p["text"] for p in value if isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str)]
        if len(texts) != len(value):
            raise DataError(f"{place}: {key!r} holds a part that is not text; only text can be trained on here")
        return "".join(texts)
    raise DataError(f"{place}: {key!r} is {_kind(value)}, expected a string")


def _flag(value: Any, key: str, place: str) -> bool:
    if value not in (0, 1):  # true and false among them
        raise DataError(f"{place}: {key!r} is {value!r}, expected true or false")
    return bool(value)


def _with_system(system: Any, messages: list[Message]) -> list[Message]:
    if system is None or system == "":
        return messages
    if not isinstance(system, str):
        raise DataError(f"'system' is {_kind(system)}, expected a string")
    if any(message.role == "system" for message in messages):
        raise DataError("both a 'system' key and a system turn; keep one")
    return [Message("system", system), *messages]


def _identifier(value: Any, key: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{key!r} is {value!r}, expected a string that is not empty or an integer")
    return str(value)


def _task(record: Record, id_key: str | None) -> dict[str, Any]:
    """The `task` object, which may be given as JSON text, after the record's other plain values (a reward, a task type, a game file)."""
    task = {key: value for key, value in record.items() if key not in (id_key, "system") and _is_plain(value)}
    given = record.get("task")
    if isinstance(given, str):
        with contextlib.suppress(ValueError, RecursionError):  # else it is a text like others
            given = json.loads(given)
    if not isinstance(given, dict):
        return task
    try:
        json.dumps(given, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"'task' is not plain JSON ({error})") from None
    task.pop("task", None)
    return task | given


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _keys(record: Record) -> str:
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
