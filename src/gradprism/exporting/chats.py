"""Chats in the forms that several trainers share, and the files of them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import pyarrow as pa

from gradprism.exporting.rl_rows import RlRow
from gradprism.exporting.sft_rows import SftRow, SftRows
from gradprism.exporting.tables import Kind, json_text, write_parquet
from gradprism.runtime.files import write_jsonl
from gradprism.trajectories.record import ChatMessage, Message

CHAT: Kind = "list of json"
_FUNCTION = pa.struct([("name", pa.string()), ("arguments", pa.string())])
_CALL = pa.struct([("id", pa.string()), ("type", pa.string()), ("function", _FUNCTION)])
# A message with all keys that there can be, null where there is none, and the arguments of a call as JSON text.
FLAT_MESSAGE = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("reasoning_content", pa.string()),
        ("tool_calls", pa.list_(_CALL)),
        ("name", pa.string()),
        ("tool_call_id", pa.string()),
    ]
)


def chats(messages: Iterable[Message]) -> list[ChatMessage]:
    """The messages in OpenAI's form, the arguments of a call as an object."""
    return [message.to_chat() for message in messages]


def with_text_arguments(chat: Mapping[str, object], calls: Sequence[Mapping[str, Mapping[str, object]]]) -> ChatMessage:
    """A message in OpenAI's form with its `calls`, their arguments as JSON text."""
    texts = [{**c, "function": {**c["function"], "arguments": json_text(c["function"]["arguments"])}} for c in calls]
    return {**chat, "tool_calls": texts}


def flat(chat: ChatMessage) -> ChatMessage:
    """A message in OpenAI's form with the arguments of its calls as JSON text."""
    return with_text_arguments(chat, chat["tool_calls"]) if chat.get("tool_calls") else chat


def sft_json(row: SftRow) -> dict[str, object]:
    """A row as JSON: `id`, `messages`, `tools` if there are any, `task`."""
    tools = {"tools": [dict(tool) for tool in row.trajectory.tools]} if row.trajectory.tools else {}
    return {"id": row.id, "messages": chats(row.messages), **tools, "task": json_text(row.trajectory.task)}


def write_sft(path: Path, rows: SftRows, apart: tuple[str, str] | None = None) -> None:
    """Writes the rows in Parquet: `id`, `messages`, `tools` (in a set that has any) and `task` (JSON text).

    A row of a set that is split has, in place of `messages`, two columns that `apart` names: the last turn, and before it the others.
    """
    before, last = names = apart if apart and rows.split else ("messages", "")
    columns: dict[str, Kind] = {"id": pa.string(), **dict.fromkeys(filter(None, names), CHAT)}
    columns |= {"tools": CHAT} if rows.tools else {}

    def row(of: SftRow) -> dict[str, object]:
        made = sft_json(of)
        return {**made, before: chats(of.messages[:-1]), last: chats(of.messages[-1:])} if last else made

    write_parquet(path, {**columns, "task": pa.string()}, map(row, rows))


def write_rl(path: Path, rows: Iterable[RlRow]) -> None:
    """Writes the tasks in JSON Lines, `RlRow.to_json`; without any there is no file."""
    iterator = iter(rows)
    first = next(iterator, None)
    if first is not None:
        write_jsonl(path, (row.to_json() for row in chain((first,), iterator)))
