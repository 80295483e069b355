"""A route as NeMo RL reads it: chats for its SFT data set `openai_format`, and tasks for NeMo Gym in the form of OpenAI's Responses."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gradprism.exporting.chats import sft_json
from gradprism.exporting.rl_rows import RlRow, RlRows, empty_sides
from gradprism.exporting.sft_rows import Reader, SftRows
from gradprism.exporting.tables import json_text
from gradprism.routing.routes import Routes
from gradprism.runtime.files import write_jsonl

READER = Reader("NeMo RL", masks="split", assistant_last=True)


def export_nemo_rl(routes: Routes, folder: Path, *, rows: str = "auto") -> list[str]:
    """Writes `sft.jsonl` and `rl.jsonl`; returns warnings. `rows` is `turns` for a row per turn in any set.

    SFT: `messages` and `tools`; where some turns are not to be trained on, a row for each turn that is, which is its last. RL:
    `responses_create_params` (`input` and `tools`), and `env`, `task_id`, `task` (JSON text) for the environment.
    """
    sft, rl = SftRows.read(routes, READER, rows), RlRows(routes)
    if routes.routing.n_sft:
        write_jsonl(folder / "sft.jsonl", map(sft_json, sft))
    if routes.routing.n_rl:
        write_jsonl(folder / "rl.jsonl", map(_rl_row, rl))
    free = ["use_preserving_dataset: true must be set, or keys of other rows' tools and calls are added as null"]
    return [
        *sft.warnings("sft.only_unmask_final: true"),
        *(free if sft.tools or sft.calls else []),
        *rl.warnings(),
        *empty_sides(routes),
    ]


def _rl_row(row: RlRow) -> dict[str, object]:
    parameters: dict[str, object] = {"input": [item for message in row.rl.prompt for item in _items(message)]}
    if row.rl.tools:
        parameters["tools"] = [{"type": "function", **tool.get("function", tool)} for tool in row.rl.tools]
    return {"responses_create_params": parameters, "id": row.rl.id, "env": row.env, "task_id": row.task_id, "task": row.task}


def _items(message: Mapping[str, Any]) -> Iterator[dict[str, object]]:
    """A message as items of a Responses input: reasoning, text and calls apart."""
    if message["role"] == "tool":
        yield {"type": "function_call_output", "call_id": message.get("tool_call_id", ""), "output": message["content"]}
        return
    calls = message.get("tool_calls", ())
    if message.get("reasoning_content"):
        yield {"type": "reasoning", "summary": [{"type": "summary_text", "text": message["reasoning_content"]}]}
    if message["content"] or not calls:
        yield {"role": message["role"], "content": message["content"]}
    for call in calls:
        function = call["function"]
        arguments = json_text(function["arguments"])
        yield {"type": "function_call", "call_id": call.get("id", ""), "name": function["name"], "arguments": arguments}
