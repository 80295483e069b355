"""Tool calls in an agent's text, and what the tools do to the database.

A call is a line, `call book id=r3 people=2 time=19:00`, or a JSON object with `name` and `arguments`, alone, in `<tool_call>` tags, or in
a fenced block, as chat models write them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from gradprism.environments.dialogue.world import DOMAINS, Booking, Database, plain_words
from gradprism.runtime.errors import DataError
from gradprism.trajectories.record import Message, ToolCall, Trajectory
from gradprism.trajectories.tools import read_calls

WRITES = ("book", "change", "cancel")
TOOLS = ("find", "show", *WRITES)
_LINE = re.compile(r"\s*call\s+(\w+)\s*(.*)", re.IGNORECASE | re.DOTALL)
_ARGUMENT = re.compile(r"([\w-]+)\s*=\s*([\w:.-]+)")
_JSON = re.compile(r"\{.*\}", re.DOTALL)


def read_call(text: str) -> ToolCall | None:
    """The call that a text makes, with arguments as lower-case text; None for words. A call that cannot be read has the name `?`."""
    if line := _LINE.match(text):
        rest = line[2].strip().splitlines()[0] if line[2].strip() else ""
        return ToolCall(line[1].lower(), dict(_ARGUMENT.findall(rest.lower())))
    found = _JSON.search(text)
    if found is None or not re.search(r'"(?:name|function|arguments|tool\w*)"', found[0]):
        return ToolCall("?", {}) if "<tool_call>" in text else None
    try:
        calls = read_calls(json.loads(found[0]), "call")
    except (ValueError, RecursionError, DataError):
        return ToolCall("?", {})
    return ToolCall(calls[0].name.lower(), {key.lower(): plain_words(str(value)) for key, value in calls[0].arguments.items()})


def write_call(call: ToolCall, form: str) -> str:
    """A call as text: a `line`, else JSON."""
    if form != "line":
        return json.dumps({"name": call.name, "arguments": dict(call.arguments)})
    return " ".join(["call", call.name, *(f"{key}={value}" for key, value in call.arguments.items())])


def structured(trajectory: Trajectory) -> Trajectory:
    """A conversation whose calls are structured, whose tools' results are turns of the tools, and whose instructions are the system's."""
    messages: list[Message] = []
    for message in trajectory.messages:
        call = read_call(message.content) if message.role == "assistant" else None
        if call is not None:
            call = replace(call, id=f"call_{len(messages)}")
            messages.append(Message("assistant", "", tool_calls=(call,)))
        elif message.role == "assistant":
            messages.append(message)
        else:
            before, _, last = message.content.rpartition("\n")
            who, _, said = last.partition(": ")
            made = messages[-1].tool_calls[0] if messages and messages[-1].tool_calls else None
            if before:
                messages.append(Message("system", before))
            if who == "tool" and made is not None:
                messages.append(Message("tool", said, name=made.name, tool_call_id=made.id))
            else:
                messages.append(Message("user", said))
    return replace(trajectory, messages=tuple(messages), tools=_schemas())


def _schemas() -> tuple[Mapping[str, object], ...]:
    """The tools as JSON schemas in OpenAI's form."""
    search = sorted({slot.name for domain in DOMAINS.values() for slot in domain.search})
    details = sorted({slot.name for domain in DOMAINS.values() for slot in domain.details})

    def tool(name: str, description: str, required: list[str], optional: list[str]) -> Mapping[str, object]:
        properties = {key: {"type": "string"} for key in (*required, *optional)}
        parameters = {"type": "object", "properties": properties, "required": required}
        return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}

    return (
        tool("find", "Lists what fits, as ids.", [], search),
        tool("show", "Shows a booking.", ["ref"], []),
        tool("book", "Books what has that id.", ["id"], details),
        tool("change", "Changes details of a booking.", ["ref"], details),
        tool("cancel", "Cancels a booking.", ["ref"], []),
    )


@dataclass(frozen=True, slots=True)
class Result:
    """What a tool answers, and whether it did what it was asked to."""

    text: str
    done: bool = True


def run_call(call: ToolCall, database: Database) -> Result:
    """Runs a call, which changes the database where it books, changes or cancels; one that is wrong changes nothing."""
    domain, given = database.domain, {key: str(value) for key, value in call.arguments.items()}
    if call.name not in TOOLS:
        return Result("error , no such tool", False)
    named = {slot.name: slot for slot in domain.slots}
    key = {"find": None, "book": "id"}.get(call.name, "ref")
    for name, value in given.items():
        if name == key:
            continue
        if name not in named:
            return Result(f"error , no {name[:20]} here", False)
        if value not in named[name].all_values:
            return Result(f"error , no such {name}", False)
    details = {slot.name: given[slot.name] for slot in domain.details if slot.name in given}
    if call.name == "find":
        found = [item for item in database.items if item.fits(given)]
        return Result(" , ".join(f"{item.id} {' '.join(item.values.values())}" for item in found[:4]) or "nothing found")
    if call.name == "book":
        if not any(item.id == given.get("id") for item in database.items):
            return Result("error , no such id", False)
        if missing := [slot.name for slot in domain.details if slot.name not in details]:
            return Result(f"error , {missing[0]} is missing", False)
        reference = database.next_reference
        database.bookings[reference] = Booking(given["id"], details)
        database.next_reference = f"b{int(reference[1:]) % 90 + 10}"
        while database.next_reference in database.bookings:
            database.next_reference = f"b{int(database.next_reference[1:]) % 90 + 10}"
        return Result(f"booked {reference}")
    reference = given.get("ref", "")
    booking = database.bookings.get(reference)
    if booking is None:
        return Result("error , no such booking", False)
    if call.name == "show":
        told = " ".join(f"{name} {value}" for name, value in booking.details.items())
        return Result(f"{reference} {booking.item} {told} , {'fixed' if booking.fixed else 'free'}")
    if call.name == "cancel":
        del database.bookings[reference]
        return Result(f"cancelled {reference}")
    if not details:
        return Result("error , nothing to change", False)
    database.bookings[reference] = replace(booking, details={**booking.details, **details})
    return Result(f"changed {reference}")
