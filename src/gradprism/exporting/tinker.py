"""A route as the Tinker cookbook reads it: conversations with a flag on each message, for `TrainOnWhat.CUSTOMIZED`."""

from pathlib import Path

from gradprism.exporting.chats import flat, write_rl
from gradprism.exporting.rl_rows import RlRows, empty_sides
from gradprism.exporting.sft_rows import Reader, SftRow, SftRows
from gradprism.exporting.tables import json_text
from gradprism.routing.routes import Routes
from gradprism.runtime.files import write_jsonl
from gradprism.trajectories.record import ChatMessage, Message

READER = Reader("the Tinker cookbook", masks="flags")


def export_tinker(routes: Routes, folder: Path) -> list[str]:
    """Writes `sft.jsonl` and `rl.jsonl`; returns warnings.

    Each message has `trainable`; one with reasoning has a list of parts, of type `thinking` and `text`, as content. `tools` are the
    functions themselves (`ToolSpec`), the arguments of calls JSON text (`ToolCall`).
    """
    sft, rl = SftRows.read(routes, READER), RlRows(routes)
    if routes.routing.n_sft:
        write_jsonl(folder / "sft.jsonl", map(_row, sft))
    write_rl(folder / "rl.jsonl", rl)
    rich = [
        "FromConversationFileBuilder reads chats of plain text alone; calls, tools and reasoning need the builder in docs/exporting.md"
    ]
    return [*(rich if sft.calls or sft.tools or sft.reasoning or sft.results else []), *rl.warnings(), *empty_sides(routes)]


def _row(row: SftRow) -> dict[str, object]:
    trajectory = row.trajectory
    tools = {"tools": [tool.get("function", tool) for tool in trajectory.tools]} if trajectory.tools else {}
    return {"messages": [_message(m) for m in row.messages], **tools, "id": row.id, "task": json_text(trajectory.task)}


def _message(message: Message) -> ChatMessage:
    chat = flat(message.to_chat())
    chat["trainable"] = message.role == "assistant" and message.train
    if reasoning := chat.pop("reasoning_content", ""):
        text = [{"type": "text", "text": message.content}] if message.content else []
        chat["content"] = [{"type": "thinking", "thinking": reasoning}, *text]
    return chat
