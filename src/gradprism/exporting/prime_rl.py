"""A route as prime-rl reads it: a folder of chats for its SFT trainer, and tasks for a taskset of verifiers."""

from pathlib import Path

import pyarrow as pa

from gradprism.exporting.chats import FLAT_MESSAGE, flat, write_rl
from gradprism.exporting.rl_rows import RlRows, empty_sides
from gradprism.exporting.sft_rows import Reader, SftRow, SftRows
from gradprism.exporting.tables import Kind, json_text, write_parquet
from gradprism.routing.routes import Routes

READER = Reader("prime-rl", masks="none")


def export_prime_rl(routes: Routes, folder: Path) -> list[str]:
    """Writes `sft/train.parquet` and `rl.jsonl`; returns warnings.

    `tools` and the arguments of calls are JSON text, which prime-rl decodes. Its loss mask knows roles, not turns: raises `DataError` for
    a trajectory with turns that are not to be trained on.
    """
    sft, rl = SftRows.read(routes, READER), RlRows(routes)
    columns: dict[str, Kind] = {"id": pa.string(), "messages": pa.list_(FLAT_MESSAGE)}
    columns |= {"tools": pa.string()} if sft.tools else {}
    write_parquet(folder / "sft" / "train.parquet", {**columns, "task": pa.string()}, map(_row, sft))
    write_rl(folder / "rl.jsonl", rl)
    return [*sft.warnings(), *rl.warnings(), *empty_sides(routes)]


def _row(row: SftRow) -> dict[str, object]:
    trajectory = row.trajectory
    return {
        "id": row.id,
        "messages": [flat(message.to_chat()) for message in row.messages],
        "tools": json_text([dict(tool) for tool in trajectory.tools]) if trajectory.tools else None,
        "task": json_text(trajectory.task),
    }
