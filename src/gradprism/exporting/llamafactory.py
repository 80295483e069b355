"""A route as LLaMA-Factory reads it: ShareGPT conversations with tools, and the entry of `dataset_info.json` that names their columns."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from gradprism.exporting.chats import write_rl
from gradprism.exporting.rl_rows import RlRows, empty_sides
from gradprism.exporting.sft_rows import Reader, SftRow, SftRows, refused, with_results_in_order, with_thoughts
from gradprism.exporting.tables import json_text
from gradprism.routing.routes import Routes
from gradprism.runtime.files import write_json, write_jsonl
from gradprism.trajectories.record import Message

READER = Reader("LLaMA-Factory", masks="split", assistant_last=True)
# What LLaMA-Factory's own converter of OpenAI's form writes between results of calls that were made together.
BETWEEN_RESULTS = "\n</tool_response>\n<tool_response>\n"
_COLUMNS = {"messages": "conversations", "system": "system", "tools": "tools"}


def export_llamafactory(routes: Routes, folder: Path, *, rows: str = "auto") -> list[str]:
    """Writes `sft.jsonl`, `dataset_info.json` with the data set `gradprism_sft`, and `rl.jsonl`; returns warnings.

    `rows` is `turns` for a row per turn in any set. ShareGPT's form, since of a turn that calls tools the OpenAI form drops text and
    reasoning; the latter stands between `<think>` tags. Where some turns are not to be trained on, there is a row for each turn that is,
    for `mask_history`. Raises `DataError` for messages that do not alternate, which LLaMA-Factory would skip.
    """
    sft, rl = SftRows.read(routes, READER, rows), RlRows(routes)
    if routes.routing.n_sft:
        write_jsonl(folder / "sft.jsonl", map(_row, sft))
        write_json(
            folder / "dataset_info.json",
            {"gradprism_sft": {"file_name": "sft.jsonl", "formatting": "sharegpt", "columns": _COLUMNS}},
        )
    write_rl(folder / "rl.jsonl", rl)
    return [*sft.warnings("mask_history: true"), *_warnings(routes, sft), *rl.warnings(), *empty_sides(routes)]


def _row(row: SftRow) -> dict[str, object]:
    trajectory, messages = row.trajectory, with_results_in_order(row.messages)
    system, turns = ("", messages) if messages[0].role != "system" else (messages[0].content, messages[1:])
    conversation: list[dict[str, str]] = []
    for index, message in enumerate(turns, len(messages) - len(turns)):
        if message.role == "tool" and conversation and conversation[-1]["from"] == "observation":
            conversation[-1]["value"] += BETWEEN_RESULTS + message.content
            continue
        answers = len(conversation) % 2 == 1
        if message.role not in (("assistant",) if answers else ("user", "tool")):
            wanted = "an answer" if answers else "a question or a result"
            raise refused(
                trajectory,
                f"message {index} is of role {message.role}, where LLaMA-Factory takes {wanted} (it skips conversations that do not "
                "alternate): merge or cut its messages",
            )
        conversation.append(_turn(message))
    tools = json_text([dict(tool) for tool in trajectory.tools]) if trajectory.tools else ""
    return {"conversations": conversation, "system": system, "tools": tools, "id": row.id, "task": json_text(trajectory.task)}


def _turn(message: Message) -> dict[str, str]:
    text = with_thoughts(message)
    if not message.tool_calls:
        return {"from": {"user": "human", "tool": "observation", "assistant": "gpt"}[message.role], "value": text}
    gap = "\n" if message.content else ""
    calls = json_text([{"name": call.name, "arguments": dict(call.arguments)} for call in message.tool_calls])
    return {"from": "function_call", "value": f"{text}{gap}<tool_call>{calls}</tool_call>" if text else calls}


def _warnings(routes: Routes, sft: SftRows) -> Iterator[str]:
    if sft.results and (together := sum(map(_results_together, (t.messages for t in routes.sets.sft())))):
        yield f"{together} tool results follow another one and share its message, as in LLaMA-Factory's own reading of OpenAI's form"
    if sft.reasoning:
        yield f"{sft.reasoning} turns have reasoning, in their text between <think> tags: choose a template of a reasoning model"
    if routes.routing.n_rl:
        yield "LLaMA-Factory has no RL in environments: rl.jsonl has the tasks for your own code"


def _results_together(messages: Sequence[Message]) -> int:
    return sum(a.role == b.role == "tool" for a, b in pairwise(messages))
