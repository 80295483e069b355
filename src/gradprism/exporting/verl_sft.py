"""The SFT set as verl's `MultiTurnSFTDataset` reads it, and a subclass of that for what it cannot be told otherwise."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from gradprism.exporting.sft_rows import Reader, SftRow, SftRows
from gradprism.exporting.tables import Kind, json_text, write_parquet
from gradprism.routing.routes import Routes
from gradprism.trajectories.record import ChatMessage, Message

READER = Reader("verl", masks="flags")
MESSAGE = [("role", pa.string()), ("content", pa.string())]
DATASET_FILE = "gradprism_verl.py"


def write_verl_sft(routes: Routes, folder: Path) -> Iterator[str]:
    """Writes `sft.parquet`, and `gradprism_verl.py` where its data set is needed; gives warnings.

    Messages have `loss_mask` only in a set with assistant turns that are not trained on; then each has. In a set with tools, calls,
    reasoning or names, `messages` and `tools` are JSON text: Arrow would give each of them the keys of all others.
    """
    rows = SftRows.read(routes, READER)
    rich = any(m.keys() - {"role", "content"} for t in routes.sets.sft() for m in t.chat()) or rows.tools > 0

    def row(of: SftRow) -> dict[str, object]:
        messages = [_message(message, rows) for message in of.messages]
        made = {"messages": json_text(messages) if rich else messages, "id": of.id, "task": json_text(of.trajectory.task)}
        return {**made, "tools": json_text([dict(tool) for tool in of.trajectory.tools])} if of.trajectory.tools else made

    message = pa.struct([*MESSAGE, ("loss_mask", pa.int64())] if rows.masked else MESSAGE)
    columns: dict[str, Kind] = {"messages": pa.string() if rich else pa.list_(message), "id": pa.string(), "task": pa.string()}
    write_parquet(folder / "sft.parquet", {**columns, "tools": pa.string()} if rows.tools else columns, map(row, rows))
    if rich or rows.masked:
        shutil.copyfile(Path(__file__).with_name("verl_reader.py"), folder / DATASET_FILE)
    named = f"data.custom_cls.path names {DATASET_FILE} (docs/verl.md)"
    if rich:
        yield f"the SFT set has tools, calls, reasoning or names: verl reads it if {named}, and fails without"
    if rows.reasoning:
        yield (
            f"{rows.reasoning} turns have reasoning; verl renders each message alone, where templates such as Qwen3's leave it out: keep "
            "data.ignore_input_ids_mismatch=False, which stops at that"
        )
    if rows.masked:
        yield (
            f"{rows.masked} assistant turns are not to be trained on (loss_mask 0), but verl trains on every assistant turn unless {named}"
        )


def _message(message: Message, rows: SftRows) -> ChatMessage:
    chat = message.to_chat()
    return {**chat, "loss_mask": int(message.role == "assistant" and message.train)} if rows.masked else chat
