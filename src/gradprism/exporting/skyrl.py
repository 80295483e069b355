"""A route as SkyRL reads it: a folder of chats for its SFT trainer, and tasks for `PromptDataset` with the class that plays them."""

from pathlib import Path

import pyarrow as pa

from gradprism.exporting.chats import CHAT, write_sft
from gradprism.exporting.rl_rows import RlRows, empty_sides
from gradprism.exporting.sft_rows import Reader, SftRows
from gradprism.exporting.tables import Kind, write_parquet
from gradprism.routing.routes import Routes

READER = Reader("SkyRL", masks="split", assistant_last=True)
_RL: dict[str, Kind] = {
    "prompt": CHAT,
    **dict.fromkeys(("env_class", "data_source", "id", "task_id", "task"), pa.string()),
    "reward_spec": pa.struct([("method", pa.string()), ("ground_truth", pa.string())]),
}


def export_skyrl(routes: Routes, folder: Path, *, rows: str = "auto") -> list[str]:
    """Writes `sft/train.parquet` and `rl.parquet`; returns warnings. `rows` is `turns` for a row per turn in any set.

    SFT: `messages` and `tools`; where some turns are not to be trained on, a row for each turn that is, which is its last. RL: `prompt`,
    `env_class`, and what the environment is given as extras: `task_id`, `task` (JSON text), `reward_spec`, `tools`.
    """
    sft, rl = SftRows.read(routes, READER, rows), RlRows(routes)
    write_sft(folder / "sft" / "train.parquet", sft)
    n_tools = sum(bool(task.tools) for task in routes.sets.rl())
    tasks = (
        {
            **row.to_json(),
            "env_class": row.env,
            "data_source": row.env,
            "reward_spec": {"method": "rule", "ground_truth": row.task_id},
        }
        for row in rl
    )
    write_parquet(folder / "rl.parquet", {**_RL, "tools": CHAT} if n_tools else _RL, tasks)
    if not sft.split and routes.routing.n_sft:
        all_turns = ["train_on_what=all_assistant_messages must be set: SkyRL's default trains on a row's last turn alone"]
    else:
        all_turns = []
    return [
        *sft.warnings("train_on_what=last_assistant_message, SkyRL's default"),
        *all_turns,
        *rl.warnings(),
        *empty_sides(routes),
    ]
