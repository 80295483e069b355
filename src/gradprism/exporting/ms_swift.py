"""A route as ms-swift reads it: its own roles for calls and results, a loss and a weight on each turn."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from gradprism.exporting.rl_rows import RlRow, RlRows, empty_sides
from gradprism.exporting.sft_rows import Reader, SftRow, SftRows, with_results_in_order, with_thoughts
from gradprism.exporting.tables import json_text
from gradprism.routing.routes import Routes
from gradprism.runtime.files import write_jsonl
from gradprism.trajectories.record import ChatMessage, Message

READER = Reader("ms-swift", masks="flags", weights=True)


def export_ms_swift(routes: Routes, folder: Path) -> list[str]:
    """Writes `sft.jsonl` and `rl.jsonl`; returns warnings.

    A call is a message of role `tool_call`, reasoning stands in the text between `<think>` tags, results are in the order of their
    calls. In a set with turns that are not to be trained on, assistant turns and calls have `loss`; in one with other weights than 0 and
    1, they have `loss_scale`. RL rows have `env_config`: the environment's `name`, `task_id` and `task` (JSON text).
    """
    sft, rl = SftRows.read(routes, READER), RlRows(routes)
    if routes.routing.n_sft:
        write_jsonl(folder / "sft.jsonl", (_row(row, sft) for row in sft))
    if routes.routing.n_rl:
        write_jsonl(folder / "rl.jsonl", map(_rl_row, rl))
    return [*_warnings(sft), *rl.warnings(), *empty_sides(routes)]


def _row(row: SftRow, rows: SftRows) -> dict[str, object]:
    messages = [message for turn in with_results_in_order(row.messages) for message in _messages(turn, rows, row.trajectory.weight)]
    return {"messages": messages, **_tools(row.trajectory.tools), "id": row.id, "task": json_text(row.trajectory.task)}


def _messages(message: Message, rows: SftRows, weight: float) -> Iterator[ChatMessage]:
    """A turn as ms-swift's messages: the text, then each call."""
    flags: ChatMessage = {}
    if message.role == "assistant":
        flags = {"loss": message.train} if rows.masked else {}
        flags |= {"loss_scale": message.weight * weight} if rows.weighted else {}
    text = with_thoughts(message)
    if message.role == "tool":
        yield {"role": "tool_response", "content": text, **({"name": message.name} if message.name else {})}
    elif text or not message.tool_calls:
        yield {"role": message.role, "content": text, **flags}
    for call in message.tool_calls:
        yield {"role": "tool_call", "content": json_text({"name": call.name, "arguments": dict(call.arguments)}), **flags}


def _rl_row(row: RlRow) -> dict[str, object]:
    """The prompt's messages in OpenAI's form: of calls in them, ms-swift makes its own roles."""
    config = {"name": row.env, "task_id": row.task_id, "task": row.task}
    return {"messages": row.rl.prompt, **_tools(row.rl.tools), "env_config": config, **_weight(row), "id": row.rl.id}


def _weight(row: RlRow) -> dict[str, float]:
    return {} if row.rl.weight == 1 else {"weight": row.rl.weight}


def _tools(tools: object) -> dict[str, str]:
    return {"tools": json_text([dict(tool) for tool in cast(list, tools)])} if tools else {}


def _warnings(sft: SftRows) -> Iterator[str]:
    if sft.weighted:
        yield f"{sft.weighted} trajectories have turns with a weight of their own (loss_scale): set --is_binary_loss_scale false"
    if sft.reasoning:
        yield (
            f"{sft.reasoning} turns have reasoning, in their text between <think> tags; ms-swift's templates of reasoning models leave out "
            "that of earlier turns unless preserve_thinking is set"
        )
