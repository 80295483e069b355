"""A route as Hugging Face datasets on disk, for `datasets.load_from_disk`: the splits `sft` and `rl`."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from gradprism.exporting.chats import CHAT
from gradprism.exporting.rl_rows import RlRows, empty_sides
from gradprism.exporting.tables import Kind, json_text, write_parquet
from gradprism.routing.routes import Routes
from gradprism.trajectories.corpus import weighted_chat

_TEXTS: dict[str, Kind] = dict.fromkeys(("env", "task_id", "task"), pa.string())


def export_datasets(routes: Routes, folder: Path) -> list[str]:
    """Writes a `DatasetDict`; returns warnings.

    `sft` has `id`, `messages`, `tools`, `task` (JSON text); a message has `train` false where it is not to be trained on and `weight`
    where that is neither 0 nor 1. `rl` has `id`, `prompt`, `tools`, `env`, `task_id`, `task`. `load_corpus` reads the same trajectories,
    except for nulls in a call's arguments, which it takes for keys that Arrow added.
    """
    rl = RlRows(routes)
    sft_rows = (
        {
            "id": t.id,
            "messages": [weighted_chat(message) for message in t.messages],
            "tools": [dict(tool) for tool in t.tools] or None,
            "task": json_text(t.task),
            "weight": t.weight,
        }
        for t in routes.sets.sft()
    )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        weight: dict[str, Kind] = {"weight": pa.float64()} if routes.routing.weights else {}
        sides = {
            "sft": ({"id": pa.string(), "messages": CHAT, "tools": CHAT, "task": pa.string(), **weight}, sft_rows),
            "rl": ({"id": pa.string(), "prompt": CHAT, "tools": CHAT, **_TEXTS, **weight}, (row.to_json() for row in rl)),
        }
        paths = {name: Path(scratch) / f"{name}.parquet" for name in sides}
        written = [name for name, (columns, rows) in sides.items() if write_parquet(paths[name], columns, rows)]
        _save({name: paths[name] for name in written}, scratch, folder)
    return [*rl.warnings(), *empty_sides(routes)]


def _save(splits: Mapping[str, Path], cache: str, folder: Path) -> None:
    """Saves Parquet files as the splits of a `DatasetDict`, without the library's progress bars."""
    import datasets  # takes a second

    quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        read = {name: datasets.Dataset.from_parquet(str(path), cache_dir=cache) for name, path in splits.items()}
        datasets.DatasetDict(read).save_to_disk(str(folder))  # type: ignore[arg-type]
    finally:
        if not quiet:
            datasets.enable_progress_bars()
