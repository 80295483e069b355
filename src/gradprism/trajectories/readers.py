"""Corpora to trajectories, and back."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from gradprism.runtime.errors import ConfigError, DataError
from gradprism.runtime.files import atomic_write
from gradprism.runtime.progress import Progress
from gradprism.trajectories.corpus_files import check_path, iter_records
from gradprism.trajectories.formats import FORMATS, parse_record, recognise, to_record
from gradprism.trajectories.record import Trajectory

_ENDINGS = (".gz", ".xz", ".zst", ".jsonl", ".ndjson", ".json", ".parquet")


def iter_trajectories(paths: Sequence[Path], format: str | None = None) -> Iterator[Trajectory]:
    """The trajectories of `paths`, in order, read as they are asked for; of those before, only ids and places are remembered.

    Each file's format is that of its first record (`formats.recognise`) unless `format` names one. A record without `id` or
    `item_id` is called `<file>-<line>`. Raises `MissingFileError`, `ConfigError` for an unknown `format`, and `DataError` for
    whatever is wrong in a file, duplicate ids across all files among it.
    """
    if format is not None and format not in FORMATS:
        raise ConfigError(f"format {format!r} is not known; choose one of {', '.join(FORMATS)}")
    paths = [Path(path) for path in paths]
    for path in paths:
        check_path(path)
    return _read(paths, format)


def _read(paths: Sequence[Path], format: str | None) -> Iterator[Trajectory]:
    sizes = [path.stat().st_size for path in paths]
    places: dict[str, str] = {}
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
                first = places.setdefault(trajectory.id, record.place)
                if first is not record.place:
                    raise DataError(f"{record.place}: id {trajectory.id!r} is taken by {first}; give every record its own")
                yield trajectory
                if steps := (sum(sizes[:index]) + record.bytes_read) // 1024 - progress.done:
                    progress.advance(steps)


def read_trajectories(paths: Sequence[Path], format: str | None = None) -> list[Trajectory]:
    """The trajectories of `iter_trajectories`, all in memory; takes and raises what it does."""
    return list(iter_trajectories(paths, format))


def canonical_line(trajectory: Trajectory) -> bytes:
    """The trajectory in the `messages` format as one line of JSON: equal trajectories give equal bytes."""
    record = to_record(trajectory)
    if trajectory.task:
        record["task"] = json.loads(json.dumps(trajectory.task, sort_keys=True))
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def write_messages_jsonl(path: Path, trajectories: Iterable[Trajectory]) -> None:
    """Writes the `messages` format, one trajectory a line; `read_trajectories` reads equal trajectories back."""
    with atomic_write(path, "wb") as file:
        file.writelines(map(canonical_line, trajectories))


def _stem(path: Path) -> str:
    name = path.name
    while (ending := Path(name).suffix) in _ENDINGS:
        name = name.removesuffix(ending)
    return name
