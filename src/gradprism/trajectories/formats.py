"""The record formats of agent corpora by name, and how a record of each becomes a `Trajectory`.

Those of this package are in `chat_formats` and `agent_formats`; `docs/formats.md` describes each, and `docs/extending.md` has one of a
user's own.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from gradprism.runtime.errors import DataError
from gradprism.runtime.registry import Registry
from gradprism.trajectories.agent_formats import AGENTS
from gradprism.trajectories.chat_formats import CHATS
from gradprism.trajectories.layouts import Reader
from gradprism.trajectories.reading import Notes, Record, keys_of
from gradprism.trajectories.record import Trajectory


class Format(Protocol):
    """A way to write a trajectory as one JSON object."""

    def recognises(self, record: Record, /) -> bool:
        """Whether a record is of this format, by its keys; what no format recognises is read as the record before it in its file."""
        ...

    def parse(self, record: Record, /) -> Trajectory:
        """The record's trajectory; an empty id stands for none. What it raises is told with the file and line."""
        ...


FORMATS: Registry[Format] = Registry("format")
register_format = FORMATS.register
for _layout in (*CHATS, *AGENTS):
    register_format(_layout.name)(Reader(_layout))


def recognise(record: Record, names: Sequence[str] | None = None) -> str | None:
    """The name of a record's format, or None; where several recognise it, the last of `names`, by default the one registered last.

    Who asks for many records gives `names`, since to list all formats is to look through all installed packages.
    """
    return next((name for name in reversed(names or list(FORMATS)) if FORMATS[name].recognises(record)), None)


def not_recognised(record: Record) -> str:
    """What to say of a record whose format nobody recognises."""
    if "chosen" in record and "rejected" in record:
        name = "completion" if "prompt" in record else "turns"
        return f"'chosen' and 'rejected' are a preference pair, not a trajectory; map {name}=chosen gives the chosen one"
    for key, value in record.items():
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, Mapping) and (found := recognise(first)):
            return f"format not recognised; {key!r} is a list of records ({found}); write that list alone as the file"
    return (
        f"format not recognised; keys seen: {keys_of(record)}; known formats: {', '.join(FORMATS)}; "
        "map turns=KEY names the key of the turns, prompt=KEY and completion=KEY those of a question and its answer"
    )


def parse_record(record: Record, format: str, place: str, default_id: str, notes: Notes | None = None) -> Trajectory:
    """Makes the `Trajectory` of a record in a format of `FORMATS`; raises `DataError` with `place`.

    `notes` counts what the record says and nothing uses; a format of a user's own does not tell.
    """
    chosen = FORMATS[format]
    try:
        if isinstance(chosen, Reader):
            if missing := chosen.layout.lacks(record):
                found = recognise(record)
                hint = f"it looks like {found!r}" if found else "give another format, a map, or convert the record"
                raise DataError(f"format {format!r} needs {missing}; keys seen: {keys_of(record)}; {hint}")
            parsed = chosen.layout.read(record, Notes() if notes is None else notes)
        else:
            parsed = chosen.parse(record)
        if all(message.role != "assistant" for message in parsed.messages):
            raise DataError("no assistant turn, so there is nothing to train on; delete the record")
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{place}: format {format!r} cannot read the record ({type(error).__name__}: {error})") from error
    return Trajectory(parsed.id or default_id, tuple(parsed.messages), parsed.task, place, tuple(parsed.tools), parsed.weight)
