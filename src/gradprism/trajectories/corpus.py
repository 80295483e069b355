"""Corpora: where trajectories come from, read as they are asked for, and the one form in which they are written."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradprism.runtime.errors import ConfigError, DataError
from gradprism.runtime.files import atomic_write, sha256_file
from gradprism.runtime.progress import Progress
from gradprism.trajectories.corpus_files import Record, check_path, iter_records
from gradprism.trajectories.formats import FORMATS, parse_record, recognise
from gradprism.trajectories.record import ChatMessage, Message, Trajectory

if TYPE_CHECKING:
    from datasets import Dataset

Records = Iterable[Trajectory | Mapping[str, Any]]
Sources = str | Path | Sequence[str | Path] | Records  # of trajectories
_ENDINGS = (".gz", ".xz", ".zst", ".jsonl", ".ndjson", ".json", ".parquet")


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file of a corpus and the hex SHA-256 of its bytes."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Corpus(Iterable[Trajectory]):
    """Trajectories of files, or of `records` in memory; may be gone through any number of times, and files are streamed.

    `format` names the format of every record, None where each file's first record tells it; `limit` is how many trajectories are taken
    from the beginning, None for all. Iterating raises `DataError` with file and line for whatever is wrong in a record, ids that come
    twice among it; of the trajectories that went by, only ids and places are remembered.
    """

    paths: tuple[Path, ...] = ()
    records: Records = field(default=(), repr=False)
    format: str | None = None
    limit: int | None = None

    @cached_property
    def files(self) -> tuple[CorpusFile, ...]:
        """The files and their hashes, by which a probe knows its corpus without reading it; empty for a corpus in memory.

        Raises `DataError` for what can be read only once, such as a pipe.
        """
        for path in self.paths:
            if not path.is_file():
                raise DataError(f"{path}: is no regular file; write what comes from it to one first")
        return tuple(CorpusFile(str(path), sha256_file(path)) for path in self.paths)

    def __iter__(self) -> Iterator[Trajectory]:
        return islice(self._distinct(), self.limit)

    def _distinct(self) -> Iterator[Trajectory]:
        places: dict[str, str] = {}
        for place, trajectory in self._of_files() if self.paths else self._in_memory():
            if trajectory.id in places:
                raise DataError(f"{place}: id {trajectory.id!r} is taken by {places[trajectory.id]}; give every record its own")
            places[trajectory.id] = place
            yield trajectory

    def _in_memory(self) -> Iterator[tuple[str, Trajectory]]:
        records = (Record(number, f"record {number}", value, 0) for number, value in enumerate(self.records, 1))
        with Progress("reading", len(self.records) if isinstance(self.records, Sized) else 0) as progress:
            for record, trajectory in _parse(records, self.format):
                yield trajectory.source or record.place, trajectory
                progress.advance()

    def _of_files(self) -> Iterator[tuple[str, Trajectory]]:
        sizes = [path.stat().st_size for path in self.paths]
        with Progress("reading (KiB)", sum(sizes) // 1024) as progress:
            for index, path in enumerate(self.paths):
                for record, trajectory in _parse(iter_records(path), self.format, _stem(path)):
                    yield record.place, trajectory
                    if steps := (sum(sizes[:index]) + record.bytes_read) // 1024 - progress.done:
                        progress.advance(steps)


def load_corpus(source: "Sources | Dataset", *, format: str | None = None, limit: int | None = None) -> Corpus:
    """The trajectories of one or more files, of a Hugging Face `Dataset`, or of an iterable of `Trajectory` or records (JSON objects).

    Files are JSONL, JSON or Parquet, plain or compressed with gzip, xz or zstd. Each file's format is that of its first record, unless
    `format` names one of `formats.FORMATS`. A record without `id` or `item_id` is called `<file>-<line>`. Of an iterator, which can be
    gone through once, the values are kept.

    Raises `MissingFileError` and, for a folder, `DataError` at once; `ConfigError` for an unknown format or a dataset of several splits.
    """
    if format is not None:
        FORMATS[format]
    if isinstance(source, str | Path):
        source = [source]
    if isinstance(source, Mapping):
        raise ConfigError(f"the corpus is a mapping of {', '.join(map(str, source))}; choose one of them")
    items: Any = list(source) if iter(source) is source else source
    if isinstance(items, Sequence) and items and all(isinstance(item, str | Path) for item in items):
        paths = tuple(Path(item).expanduser() for item in items)
        for path in paths:
            check_path(path)
        return Corpus(paths, (), format, limit)
    return Corpus((), items, format, limit)


def as_corpus(trajectories: Corpus | Sources) -> Corpus:
    """The corpus itself, or one of what `load_corpus` takes; an iterator is not kept, so that corpus can be gone through once."""
    if isinstance(trajectories, Corpus):
        return trajectories
    return Corpus(records=trajectories) if isinstance(trajectories, Iterator) else load_corpus(trajectories)


def canonical_line(trajectory: Trajectory) -> bytes:
    """The trajectory in the `messages` format as one line of JSON: equal trajectories give equal bytes."""
    record: dict[str, Any] = {"id": trajectory.id, "messages": [weighted_chat(message) for message in trajectory.messages]}
    if trajectory.tools:
        record["tools"] = [dict(tool) for tool in trajectory.tools]
    if trajectory.task:
        record["task"] = json.loads(json.dumps(trajectory.task, sort_keys=True))
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def weighted_chat(message: Message) -> ChatMessage:
    """A turn in the `messages` format: `train` false for one that is not to be trained on, `weight` for another weight than 1."""
    if message.weight == 1:
        return message.to_chat()
    return {**message.to_chat(), **({"train": False} if message.weight == 0 else {"weight": message.weight})}


def write_messages_jsonl(path: Path, trajectories: Iterable[Trajectory]) -> None:
    """Writes the `messages` format, one trajectory per line; `load_corpus` reads equal trajectories back."""
    with atomic_write(path, "wb") as file:
        file.writelines(map(canonical_line, trajectories))


def _parse(records: Iterable[Record], format: str | None, stem: str = "record") -> Iterator[tuple[Record, Trajectory]]:
    """The trajectory of each record; the first record tells the format where `format` is None."""
    for record in records:
        value = record.value
        if isinstance(value, Trajectory):
            _check(value, record.place)
            yield record, value
            continue
        if not isinstance(value, Mapping):
            raise DataError(f"{record.place}: expected a JSON object, found {type(value).__name__}")
        format = format or recognise(value)
        if format is None:
            raise DataError(
                f"{record.place}: format not recognised; keys seen: {', '.join(map(str, value)) or 'none'}; "
                f"known formats: {', '.join(FORMATS)}"
            )
        yield record, parse_record(value, format, record.place, f"{stem}-{record.number}")


def _check(trajectory: Trajectory, place: str) -> None:
    """Raises `DataError` for a trajectory of the user's own making that could not be read back from a file."""
    try:
        parse_record(json.loads(canonical_line(trajectory)), "messages", place, "")
    except DataError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{place}: trajectory {trajectory.id!r} cannot be written as JSON ({error})") from None


def _stem(path: Path) -> str:
    name = path.name
    while (ending := Path(name).suffix) in _ENDINGS:
        name = name.removesuffix(ending)
    return name
