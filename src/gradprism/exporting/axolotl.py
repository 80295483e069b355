"""A route as Axolotl reads it: a dataset of type `chat_template` with a flag on each turn, and tasks for a GRPO transform."""

from pathlib import Path

import pyarrow as pa

from gradprism.exporting.chats import FLAT_MESSAGE, flat, write_rl
from gradprism.exporting.rl_rows import RlRows, empty_sides
from gradprism.exporting.sft_rows import Reader, SftRow, SftRows
from gradprism.exporting.tables import json_text, write_parquet
from gradprism.routing.routes import Routes

READER = Reader("Axolotl", masks="flags")
_COLUMNS = {
    "id": pa.string(),
    "messages": pa.list_(pa.struct([*FLAT_MESSAGE, ("train", pa.bool_())])),
    "tools": pa.string(),
    "task": pa.string(),
}


def export_axolotl(routes: Routes, folder: Path) -> list[str]:
    """Writes `sft.parquet` and `rl.jsonl`; returns warnings.

    A message has `train` for `message_field_training`: whether it is an assistant turn to train on. `tools` and the arguments of calls are
    JSON text, which Axolotl decodes; so no key is added to them.
    """
    sft, rl = SftRows.read(routes, READER), RlRows(routes)
    write_parquet(
        folder / "sft.parquet", _COLUMNS if sft.tools else {k: v for k, v in _COLUMNS.items() if k != "tools"}, map(_row, sft)
    )
    write_rl(folder / "rl.jsonl", rl)
    masked = (
        [
            f"{sft.masked} assistant turns are not to be trained on: message_field_training: train must be set, or Axolotl trains on them"
        ]
        if sft.masked
        else []
    )
    return [*masked, *sft.warnings(), *rl.warnings(), *empty_sides(routes)]


def _row(row: SftRow) -> dict[str, object]:
    trajectory = row.trajectory
    return {
        "id": row.id,
        "messages": [{**flat(m.to_chat()), "train": m.role == "assistant" and m.train} for m in row.messages],
        "tools": json_text([dict(tool) for tool in trajectory.tools]) if trajectory.tools else None,
        "task": json_text(trajectory.task),
    }
