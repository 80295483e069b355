"""What all formats of this package share: the keys of a record beside its turns, and the trajectory that both make."""

import contextlib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gradprism.runtime.errors import DataError
from gradprism.trajectories.reading import Notes, Record, from_json, kind_of, plain, refuse_media, says_something
from gradprism.trajectories.record import Message, Trajectory
from gradprism.trajectories.tools import read_tools
from gradprism.trajectories.turns import MASKED, WEIGHTS

_IDS = ("id", "item_id")
_LATER_IDS = ("trajectory_id", "traj_id", "session_id", "conversation_id", "uuid")  # kept in the task too
_SYSTEM = ("system", "system_prompt", "system_message", "systemPrompt", "system_instruction")
_TOOLS = ("tools", "functions", "tool_definitions", "available_tools")
_TOOLS_ELEMENT = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)
# Beside turns these are kept in the task, and said: elsewhere they hold what is trained on, or whether it is.
_NOT_OF_A_TASK = {"completion", "response", "mask", *WEIGHTS, *MASKED}


class Layout(Protocol):
    """A format of this package."""

    @property
    def name(self) -> str:
        """By which it is chosen."""
        ...

    def recognises(self, record: Record, /) -> bool:
        """Whether a record is of this format, by its keys."""
        ...

    def lacks(self, record: Record, /) -> str:
        """What the format needs and the record does not have; empty where it can be read."""
        ...

    def read(self, record: Record, notes: Notes, /) -> Trajectory:
        """The record's trajectory; `notes` counts what nothing uses. Raises `DataError`."""
        ...


@dataclass(frozen=True, slots=True)
class Reader:
    """A layout as a `Format`."""

    layout: Layout

    def recognises(self, record: Record) -> bool:
        """Whether a record is of this format."""
        return self.layout.recognises(record)

    def parse(self, record: Record) -> Trajectory:
        """The record's trajectory."""
        return self.layout.read(record, Notes())


def turns_under(record: Record, keys: Iterable[str]) -> tuple[str, list[Any]] | None:
    """The first of `keys` with a list, or the JSON text of one, and that list; None where there is none.

    An object of equally long lists is a list of objects, as `datasets` keeps a `Sequence` of them.
    """
    for key in keys:
        value = record.get(key)
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = from_json(value, key)
        if isinstance(value, Mapping) and _are_columns(value.values()):
            value = [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return key, list(value)
    return None


def _are_columns(values: Collection[Any]) -> bool:
    return all(isinstance(value, list) for value in values) and len({len(value) for value in values}) == 1


def assemble(record: Record, messages: list[Message], used: Iterable[str], notes: Notes, turns: Sequence[Any] = ()) -> Trajectory:
    """The trajectory of a record: its `messages`, and what is beside them; `used` are the keys that were read already.

    `turns` are those as they were written, for the tools that a system turn may carry.
    """
    refuse_media(record, "beside the turns")
    used = {*used, *_SYSTEM, *_TOOLS, "task"}
    messages = _with_system(record, messages)
    tools = _tools(record, turns)
    # Not under `messages`, which is also how trajectories are written: what is written there is read as it is.
    if "messages" not in used and lists_tools(messages, tools):
        notes.remarks["tools beside a system turn that lists them in <tools>: left in its text alone"] += 1
        tools = ()
    key = next((key for key in _IDS if record.get(key) is not None), None)
    later = next((key for key in _LATER_IDS if record.get(key)), None) if key is None else None
    identifier = "" if key is None else _identifier(record[key], key)
    if later is not None:
        identifier = _identifier(record[later], later)
    task = _task(record, used | ({key} if key else set()))
    notes.task_texts.update(k for k in record.keys() & task.keys() - {*used, *_LATER_IDS} if _is_prose(record[k]))
    kept = used | (set(task) - _NOT_OF_A_TASK) | set(_IDS)
    notes.record_keys.update(k for k in record if k not in kept and says_something(record[k]) and not _is_nan(record[k]))
    return Trajectory(identifier, tuple(messages), task, tools=tools)


def record_weight(record: Record) -> float:
    """A record's own `weight`, 1 where it has none; raises `DataError` for anything but a number of 0 or more."""
    weight = record.get("weight")
    if weight is None:
        return 1.0
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise DataError(f"'weight' is {weight!r}, expected a number of 0 or more")
    return float(weight)


def _with_system(record: Record, messages: list[Message]) -> list[Message]:
    for key in _SYSTEM:
        system = _joined(record.get(key))
        if system is None or system == "":
            continue
        if not isinstance(system, str):
            raise DataError(f"{key!r} is {kind_of(system)}, expected a string")
        present = [message.content for message in messages if message.role == "system"]
        if not present:
            messages = [Message("system", system), *messages]
        elif system not in present:
            raise DataError(f"both a {key!r} key and a system turn; keep one")
    return messages


def _joined(value: Any) -> Any:
    """A text that is given as a list of parts of text (Anthropic's), or as a system turn, as one."""
    if isinstance(value, Mapping) and "content" in value and value.keys() <= {"role", "content"}:
        value = value["content"] if value.get("role") in (None, "system", "developer") else value
    if isinstance(value, list) and value and all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in value):
        return "".join(part["text"] for part in value)
    return value


def _tools(record: Record, turns: Sequence[Any]) -> tuple[Mapping[str, Any], ...]:
    found = [read_tools(record[key], key) for key in _TOOLS if says_something(record.get(key))]
    for turn in turns:
        if isinstance(turn, Mapping) and str(turn.get("role") or turn.get("from")).lower() in ("system", "developer"):
            found += [read_tools(turn[key], key) for key in _TOOLS if says_something(turn.get(key))]
    found = [tools for tools in found if tools]
    if any(tools != found[0] for tools in found):
        raise DataError("tools are given in several places, which differ; keep one")
    return found[0] if found else ()


def lists_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a system turn names all of some tools in a `<tools>` element, as Hermes' function calling set does."""
    inside = "".join(part for message in messages if message.role == "system" for part in _TOOLS_ELEMENT.findall(message.content))
    return bool(inside and tools) and all(str(tool.get("function", tool).get("name")) in inside for tool in tools)


def _identifier(value: Any, key: str) -> str:
    if isinstance(value, float) and value.is_integer():  # as pandas keeps integers beside missing ones
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{key!r} is {value!r}, expected a string that is not empty or an integer")
    return str(value)


def _task(record: Record, used: set[str]) -> dict[str, Any]:
    """The `task` object, which may be given as JSON text, after the record's other plain values (a reward, a task type, a game file)."""
    task = {key: value for key, value in record.items() if key not in used and _is_plain(value)}
    given = record.get("task")
    if isinstance(given, str):
        with contextlib.suppress(ValueError, RecursionError):  # else it is a text like others
            given = json.loads(given)
    if not isinstance(given, Mapping):
        return {**task, "task": record["task"]} if _is_plain(record.get("task")) else task
    return task | plain(dict(given), "'task'")


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _is_prose(value: Any) -> bool:
    """Whether a value is a text, or JSON as one, that may have been meant for the model; a name, a path or an id is not."""
    return isinstance(value, str) and (value.lstrip()[:1] in ("[", "{") or len(value.split()) > 1)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
