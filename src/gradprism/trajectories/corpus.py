"""Corpora: where trajectories come from, read as they are asked for, and the one form in which they are written."""

import json
import re
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gradprism.runtime.errors import ConfigError, DataError, GradprismError
from gradprism.runtime.files import atomic_write, sha256_file, write_jsonl
from gradprism.runtime.progress import Progress, say
from gradprism.trajectories.corpus_files import Record, iter_records, without_padding
from gradprism.trajectories.corpus_paths import expand, stems
from gradprism.trajectories.formats import FORMATS, not_recognised, parse_record, recognise
from gradprism.trajectories.mapping import FieldMap, Names
from gradprism.trajectories.reading import Notes
from gradprism.trajectories.record import ChatMessage, Message, Trajectory

if TYPE_CHECKING:
    from datasets import Dataset

Records = Iterable[Trajectory | Mapping[str, Any]]
Sources = str | Path | Sequence[str | Path] | Records  # of trajectories
OnBad = Literal["fail", "skip"]  # what is done where a record cannot be used
SKIPPED = "skipped.jsonl"  # the records that were left out, beside what was made of the others


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file of a corpus and the hex SHA-256 of its bytes."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that was left out: its id (empty where that is not known), its place and why."""

    id: str
    source: str
    reason: str


def _in_order(skipped: Skipped) -> list[tuple[int, str]]:
    """By place, numbers in it by their value."""
    return [(int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", skipped.source)]


@dataclass(slots=True)
class Account:
    """What the last pass through a corpus met: what nothing uses, and the records that were left out.

    Who uses the trajectories adds those that it cannot use by `skip`.
    """

    notes: Notes = field(default_factory=Notes)
    skipped: list[Skipped] = field(default_factory=list)
    said: bool = False

    def begin(self) -> None:
        """Forgets the pass before."""
        self.notes, self.skipped = Notes(), []

    def skip(self, id: str, source: str, error: GradprismError) -> None:
        """Adds a record that was left out; the place is not said twice."""
        reason = str(error).removeprefix(f"{source}: ").removeprefix(f"trajectory {id!r}: ")
        # In order, though some are found out while later ones are being read.
        insort(self.skipped, Skipped(id, source, reason), key=_in_order)

    def say_notes(self) -> None:
        """Prints once, however often a corpus is gone through, what nothing uses."""
        if not self.said:
            self.said = True
            for line in self.notes.lines():
                say(line)


@dataclass(frozen=True)
class Corpus(Iterable[Trajectory]):
    """Trajectories of files, or of `records` in memory; may be gone through any number of times, and files are streamed.

    `format` names the format of every record, None where each record's keys tell it; `limit` is how many trajectories are taken
    from the beginning, None for all; `mapping` has own names of fields and roles. A record that cannot be read, or whose id came
    before, raises `DataError` with file and line, or with `on_bad` of `skip` is left out and counted in `account`. Of the trajectories
    that went by, only ids and places are remembered.
    """

    paths: tuple[Path, ...] = ()
    records: Records = field(default=(), repr=False)
    format: str | None = None
    limit: int | None = None
    mapping: FieldMap | None = None
    on_bad: OnBad = "fail"
    account: Account = field(default_factory=Account, repr=False, compare=False)

    @cached_property
    def files(self) -> tuple[CorpusFile, ...]:
        """The files and their hashes, by which a probe knows its corpus without reading it; empty for a corpus in memory.

        Raises `DataError` for what can be read only once, such as a pipe.
        """
        for path in self.paths:
            if not path.is_file():
                raise DataError(f"{path}: is no regular file; write what comes from it to one first")
        return tuple(CorpusFile(str(path), sha256_file(path)) for path in self.paths)

    def read_as(self) -> dict[str, Any]:
        """How the files are read, for a manifest: what is at its default is left out."""
        told = {"mapping": self.mapping and self.mapping.to_json(), "on_bad": None if self.on_bad == "fail" else self.on_bad}
        return {"format": self.format, "limit": self.limit, **{key: value for key, value in told.items() if value}}

    def __iter__(self) -> Iterator[Trajectory]:
        self.account.begin()
        yield from islice(self._distinct(), self.limit)
        self.account.say_notes()

    def _distinct(self) -> Iterator[Trajectory]:
        places: dict[str, str] = {}
        for place, trajectory in self._of_files() if self.paths else self._in_memory():
            if trajectory.id in places:
                taken = f"{place}: id {trajectory.id!r} is taken by {places[trajectory.id]}; give every record its own"
                self._refuse(DataError(taken), place, trajectory.id)
                continue
            places[trajectory.id] = place
            yield trajectory

    def _refuse(self, error: DataError, place: str, id: str = "") -> None:
        if self.on_bad == "fail":
            raise error
        self.account.skip(id, place, error)

    def _in_memory(self) -> Iterator[tuple[str, Trajectory]]:
        features = getattr(self.records, "features", None)  # of a Hugging Face data set
        values = self.records if features is None else (_row(row, features) for row in self.records)
        records = (Record(number, f"record {number}", value, 0) for number, value in enumerate(values, 1))
        with Progress("reading", len(self.records) if isinstance(self.records, Sized) else 0) as progress:
            for record, trajectory in self._parse(records, "record", "the records"):
                yield trajectory.source or record.place, trajectory
                progress.advance()

    def _of_files(self) -> Iterator[tuple[str, Trajectory]]:
        sizes = [path.stat().st_size for path in self.paths]
        with Progress("reading (KiB)", sum(sizes) // 1024) as progress:
            for index, (path, stem) in enumerate(zip(self.paths, stems(self.paths), strict=True)):
                for record, trajectory in self._parse(iter_records(path, keep_bad=True), stem, str(path)):
                    yield record.place, trajectory
                    if steps := (sum(sizes[:index]) + record.bytes_read) // 1024 - progress.done:
                        progress.advance(steps)

    def _parse(self, records: Iterable[Record], stem: str, file: str) -> Iterator[tuple[Record, Trajectory]]:
        """The trajectory of each record, in its own format where none is given; one that is not recognised, in that of those before."""
        format, names, found = self.format, list(FORMATS), self.account.notes.formats.setdefault(file, Counter())
        for record in records:
            try:
                if isinstance(record.value, Trajectory):
                    _check(record.value, record.place)
                    yield record, record.value
                    continue
                value = self._mapped(record)
                if self.format is None:
                    format = _recognised(value, names, record.place, format)
                assert format is not None
                trajectory = parse_record(value, format, record.place, f"{stem}-{record.number}", self.account.notes)
                found[format] += 1
            except DataError as error:
                self._refuse(error, record.place, _id_of(record.value))
            else:
                yield record, trajectory

    def _mapped(self, record: Record) -> Mapping[str, Any]:
        value = record.value
        if isinstance(value, DataError):
            raise value
        if not isinstance(value, Mapping):
            raise DataError(f"{record.place}: expected a JSON object, found {type(value).__name__}")
        try:
            return value if self.mapping is None else self.mapping.apply(value)
        except DataError as error:
            raise DataError(f"{record.place}: {error}") from None


def load_corpus(
    source: "Sources | Dataset",
    *,
    format: str | None = None,
    limit: int | None = None,
    mapping: Names | None = None,
    on_bad: OnBad = "fail",
) -> Corpus:
    """The trajectories of files, globs or folders, of a Hugging Face `Dataset`, or of an iterable of `Trajectory` or records (JSON
    objects).

    Files are JSONL, JSON, Parquet or Arrow, plain or compressed with gzip, xz or zstd, or inspect_ai's `.eval`. Each record is read in the
    format that its keys tell, unless `format` names one of `formats.FORMATS`; where one file has several, they are named. A record
    without an id is called `<file>-<line>`. Of an iterator, which can be gone through once, the values are kept.

    `mapping` has own names of fields and roles, such as `{"turns": "dialog", "speaker": "who", "role.agent": "assistant"}`
    (`docs/formats.md`). `on_bad`: `fail` raises for the first record that cannot be used; `skip` leaves such out (`Corpus.account`).

    Raises `MissingFileError` and, for a folder without a corpus, `DataError` at once; `ConfigError` for an unknown format, name or
    choice, or a dataset of several splits.
    """
    if format is not None:
        FORMATS[format]
    if limit is not None and limit < 0:
        raise ConfigError(f"limit {limit}: must be 0 or more, or None for all")
    if on_bad not in ("fail", "skip"):
        raise ConfigError(f"on_bad {on_bad!r}: choose fail or skip")
    names = None if mapping is None else FieldMap.of(mapping)
    if isinstance(source, str | Path):
        source = [source]
    if isinstance(source, Mapping):
        raise ConfigError(f"the corpus is a mapping of {', '.join(map(str, source))}; choose one of them")
    items: Any = list(source) if iter(source) is source else source
    if isinstance(items, Sequence) and items and all(isinstance(item, str | Path) for item in items):
        return Corpus(expand(items), (), format, limit, names, on_bad)
    return Corpus((), items, format, limit, names, on_bad)


def as_corpus(trajectories: Corpus | Sources) -> Corpus:
    """The corpus itself, or one of what `load_corpus` takes; an iterator is not kept, so that corpus can be gone through once."""
    if isinstance(trajectories, Corpus):
        return trajectories
    return Corpus(records=trajectories) if isinstance(trajectories, Iterator) else load_corpus(trajectories)


def write_skipped(path: Path, corpora: Iterable[Corpus], tell: bool = True) -> None:
    """Writes the records that were left out, one a line, and (`tell`) says so; nothing where there are none."""
    skipped = [asdict(one) for corpus in corpora for one in corpus.account.skipped]
    if skipped:
        write_jsonl(path, skipped)
    if skipped and tell:
        say(f"{len(skipped)} records left out; {path} says why")


def canonical_line(trajectory: Trajectory) -> bytes:
    """The trajectory in the `messages` format as one line of JSON: equal trajectories give equal bytes."""
    record: dict[str, Any] = {"id": trajectory.id, "messages": [weighted_chat(message) for message in trajectory.messages]}
    if trajectory.tools:
        record["tools"] = [dict(tool) for tool in trajectory.tools]
    if trajectory.task:
        record["task"] = json.loads(json.dumps(trajectory.task, sort_keys=True))
    if trajectory.weight != 1:
        record["weight"] = trajectory.weight
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


def _recognised(value: Mapping[str, Any], names: Sequence[str], place: str, before: str | None) -> str:
    try:
        format = recognise(value, names) or before
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    if format is None:
        raise DataError(f"{place}: {not_recognised(value)}")
    return format


def _row(row: Any, features: Mapping[str, Any]) -> Any:
    """A row of a data set without the nulls that pad its objects, which those of the type Json do not have."""
    return {key: value if "Json(" in repr(features.get(key)) else without_padding(value) for key, value in row.items()}


def _id_of(value: Any) -> str:
    given = value.get("id") if isinstance(value, Mapping) else value.id if isinstance(value, Trajectory) else None
    return str(given) if isinstance(given, str | int) else ""


def _check(trajectory: Trajectory, place: str) -> None:
    """Raises `DataError` for a trajectory of the user's own making that could not be read back from a file."""
    try:
        parse_record(json.loads(canonical_line(trajectory)), "messages", place, "")
    except DataError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{place}: trajectory {trajectory.id!r} cannot be written as JSON ({error})") from None
