"""Corpora to trajectories, and back."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from gradprism.errors import ConfigError, DataError
from gradprism.files import write_jsonl
from gradprism.progress import Progress
from gradprism.trajectories.corpus_files import iter_records
from gradprism.trajectories.formats import FORMATS, parse_record, recognise, to_record
from gradprism.trajectories.record import Trajectory

_ENDINGS = (".gz", ".xz", ".zst", ".jsonl", ".ndjson", ".json", ".parquet")


def read_trajectories(paths: Sequence[Path], format: str | None = None) -> list[Trajectory]:
    """Reads every trajectory of `paths`, in order.

    Each file's format is that of its first record (`formats.recognise`) unless `format` names one. A record without `id` or
    `item_id` is called `<file>-<line>`. Raises `MissingFileError`, `ConfigError` for an unknown `format`, and `DataError` for
    whatever is wrong in a file, duplicate ids across all files among it.
    """
    if format is not None and format not in FORMATS:
        raise ConfigError(f"format {format!r} is not known; choose one of {', '.join(FORMATS)}")
    paths = [Path(path) for path in paths]
    sizes = [path.stat().st_size if path.exists() else 0 for path in paths]
    trajectories: dict[str, Trajectory] = {}
    with Progress("reading (KiB)", sum(sizes) // 1024) as progress:
        for index, path in enumerate(paths):
            file_format = format
            for record in iter_records(path):
                if not isinstance(record.value, dict):
                    raise DataError(f"{record.place}: expected a JSON object, found {type(record.value).__name__}")
                if file_format is None:
                    file_format = recognise(record.value)
                if file_format is None:
                    raise DataError(
                        f"{record.place}: format not recognised; keys seen: {', '.join(record.value) or 'none'}; "
                        f"known formats: {', '.join(FORMATS)}"
                    )
                trajectory = parse_record(record.value, file_format, record.place, f"{_stem(path)}-{record.number}")
                first = trajectories.setdefault(trajectory.id, trajectory)
                if first is not trajectory:
                    raise DataError(f"{record.place}: id {trajectory.id!r} is taken by {first.source}; give every record its own")
                if steps := (sum(sizes[:index]) + record.bytes_read) // 1024 - progress.done:
                    progress.advance(steps)
    return list(trajectories.values())


def write_messages_jsonl(path: Path, trajectories: Iterable[Trajectory]) -> None:
    """Writes the `messages` format, one trajectory a line; `read_trajectories` reads equal trajectories back."""
    write_jsonl(path, map(to_record, trajectories))


def _stem(path: Path) -> str:
    name = path.name
    while (ending := Path(name).suffix) in _ENDINGS:
        name = name.removesuffix(ending)
    return name
