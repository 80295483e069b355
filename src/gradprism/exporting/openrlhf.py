"""A route as OpenRLHF reads it: chats for `train_sft`, prompts with the task as label for `train_ppo_ray`."""

from pathlib import Path

import pyarrow as pa

from gradprism.exporting.chats import CHAT, write_sft
from gradprism.exporting.rl_rows import RlRows, empty_sides
from gradprism.exporting.sft_rows import Reader, SftRows
from gradprism.exporting.tables import write_parquet
from gradprism.routing.routes import Routes

READER = Reader("OpenRLHF", masks="split", tools=False, assistant_last=True)


def export_openrlhf(routes: Routes, folder: Path, *, rows: str = "auto") -> list[str]:
    """Writes `sft.parquet` and `rl.parquet`; returns warnings. `rows` is `turns` for a row per turn in any set.

    SFT: `messages` for `--data.multiturn`; where some turns are not to be trained on, `input` and `output` with a row for each turn that
    is (a column `prompt` would clash with one that OpenRLHF makes). RL: `prompt`, `label` (the task's reference as JSON text, which
    rewards and agents are given) and `datasource` (the environment).
    """
    sft, rl = SftRows.read(routes, READER, rows), RlRows(routes)
    write_sft(folder / "sft.parquet", sft, ("input", "output"))
    columns = {"id": pa.string(), "prompt": CHAT, **dict.fromkeys(("label", "datasource"), pa.string())}
    n_tools = sum(bool(task.tools) for task in routes.sets.rl())
    tasks = ({**row.to_json(), "label": row.task, "datasource": row.env or "default"} for row in rl)
    write_parquet(folder / "rl.parquet", {**columns, "tools": CHAT} if n_tools else columns, tasks)
    tools = ["OpenRLHF renders prompts without tools; the column `tools` of rl.parquet is for your own agent"] if n_tools else []
    without = "--data.input_key input --data.output_key output, without --data.multiturn"
    return [*sft.warnings(without), *rl.warnings(), *tools, *empty_sides(routes)]
