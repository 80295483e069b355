"""A route as TRL's trainers read it: `SFTTrainer` conversations with tools, and prompts with the task's columns for `GRPOTrainer`."""

from pathlib import Path

import pyarrow as pa

from gradprism.exporting.chats import CHAT, write_sft
from gradprism.exporting.rl_rows import RlRows, empty_sides
from gradprism.exporting.sft_rows import Reader, SftRows
from gradprism.exporting.tables import write_parquet
from gradprism.routing.routes import Routes

READER = Reader("TRL", masks="split")


def export_trl(routes: Routes, folder: Path, *, rows: str = "auto") -> list[str]:
    """Writes `sft.parquet` and `rl.parquet`; returns warnings. `rows` is `turns` for a row per turn in any set.

    SFT: `messages` and `tools`, for `assistant_only_loss`; where some turns are not to be trained on, `prompt` and `completion` with a row
    for each turn that is. RL: `prompt`, and the columns that GRPO hands to rewards and to an environment's `reset`: `environment`, its name
    in `environment_factory`, `task_id` and `task` (JSON text).
    """
    sft, rl = SftRows.read(routes, READER, rows), RlRows(routes)
    write_sft(folder / "sft.parquet", sft, ("prompt", "completion"))
    columns = {"id": pa.string(), "prompt": CHAT, **dict.fromkeys(("environment", "task_id", "task"), pa.string())}
    tasks = ({**row.to_json(), "environment": row.env} for row in rl)
    n_tools = sum(bool(task.tools) for task in routes.sets.rl())
    write_parquet(folder / "rl.parquet", {**columns, "tools": CHAT} if n_tools else columns, tasks)
    tools = ["GRPOTrainer takes tools as Python functions; the column `tools` of rl.parquet only says which"] if n_tools else []
    return [*sft.warnings("completion_only_loss=True, TRL's default for such rows"), *rl.warnings(), *tools, *empty_sides(routes)]
