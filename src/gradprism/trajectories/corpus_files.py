"""Corpus files to raw records: JSONL, JSON, Parquet and Arrow, plain or compressed with gzip, xz or zstd, and inspect_ai's `.eval`.

What a file is, its bytes say; its name is not trusted. JSONL is streamed: one record is in memory at a time.
"""

import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from gradprism.runtime.errors import DataError, MissingFileError, one_line
from gradprism.trajectories.agent_formats import unpacked

_KINDS_READ = "JSONL, JSON, Parquet, Arrow and .eval are read, plain or with gzip, xz or zstd; convert it to one of them"
# An escaped UTF-16 surrogate: half a character unless the other half follows.
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class Record(NamedTuple):
    """One record of a file. `number` is its line (JSONL) or its position (JSON list, Parquet), both from 1.

    `value` is a `DataError` for one that cannot be read, where such are asked for.
    """

    number: int
    place: str
    value: Any
    bytes_read: int  # how far into the file, as stored, the reader is


def iter_records(path: Path, keep_bad: bool = False) -> Iterator[Record]:
    """Yields every record of one file; with `keep_bad` also those that cannot be read, as errors.

    Raises `MissingFileError`, and `DataError` for a folder, a file without records, broken compression, and, unless they are kept,
    text that is not UTF-8 and broken JSON, each with the file and, where there is one, the line.
    """
    for record in _records(path):
        if isinstance(record.value, DataError) and not keep_bad:
            raise record.value
        yield record


def _records(path: Path) -> Iterator[Record]:
    check_path(path)
    line = found = 0
    try:
        with open(path, "rb") as raw:
            opener = next((opener for magic, opener in _COMPRESSIONS if raw.peek(6).startswith(magic)), None)
            with io.BufferedReader(opener(raw) if opener else raw) as stream:
                read = next((read for magic, read in _BINARY if stream.peek(8).startswith(magic)), None)
                if read is not None:
                    # These need to seek, which a decompressor cannot do at a bearable price.
                    records = read(path, io.BytesIO(stream.read()) if opener else path)
                else:
                    records = _text_records(path, raw, stream)
                for record in records:
                    line, found = record.number, found + 1
                    yield record
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # without a number: from a decompressor
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        raise DataError(
            f"{path}: compressed data broken or cut short after line {line} ({error}); fetch or write the file again"
        ) from None
    if not found:
        raise DataError(f"{path}: holds no records; give a file with at least one trajectory")


def check_path(path: Path) -> None:
    """Raises `MissingFileError` where there is nothing at `path` and `DataError` where there is a folder."""
    if not path.exists():
        raise MissingFileError(f"{path}: no such file")
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name the files in it")


_COMPRESSIONS: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda raw: gzip.GzipFile(fileobj=raw)),
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
    (b"\x28\xb5\x2f\xfd", lambda raw: pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd")),
)


def _parquet_records(path: Path, source: Any) -> Iterator[Record]:
    try:
        file = pyarrow.parquet.ParquetFile(source)
        yield from _rows(path, file.iter_batches(batch_size=256), file.metadata.num_rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({one_line(error)}); write it again") from None


def _arrow_records(path: Path, source: Any) -> Iterator[Record]:
    """Arrow's stream format, in which Hugging Face keeps data sets, or its file format."""
    try:
        with pyarrow.memory_map(str(source)) if isinstance(source, Path) else pyarrow.input_stream(source) as opened:
            if opened.read(6) == b"ARROW1":
                file = pyarrow.ipc.open_file(opened)
                yield from _rows(path, (file.get_batch(index) for index in range(file.num_record_batches)), None)
            else:
                opened.seek(0)
                yield from _rows(path, pyarrow.ipc.open_stream(opened), None)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Arrow file ({one_line(error)}); write it again") from None


def _rows(path: Path, batches: Iterable[Any], rows: int | None) -> Iterator[Record]:
    size, number = path.stat().st_size, 0
    for batch in batches:
        batch.validate(full=True)  # broken offsets are no error of Arrow's readers, and reading by them may end the process
        for value in batch.to_pylist():
            number += 1
            yield Record(number, f"{path}:row {number}", without_padding(value), size * number // rows if rows else size)


def without_padding(value: Any) -> Any:
    """A row without the nulls in its objects: columns have the keys of all rows, and null stands for a key that a row does not have."""
    if isinstance(value, dict):
        return {key: without_padding(part) for key, part in value.items() if part is not None}
    return [without_padding(part) for part in value] if isinstance(value, list) else value


def _zip_records(path: Path, source: Any) -> Iterator[Record]:
    """The samples of an inspect_ai log in its `.eval` form: a zip file with a JSON document for each sample."""
    try:
        with zipfile.ZipFile(source) as archive:
            names = sorted(name for name in archive.namelist() if name.startswith("samples/") and name.endswith(".json"))
            if not names:
                raise DataError(f"{path}: is a zip file and no log of inspect_ai; unpack it, and name the files in it")
            header = next((name for name in ("header.json", "_journal/start.json") if name in archive.namelist()), None)
            start = _parse(archive.read(header).decode("utf-8"), Path(f"{path}:{header}"), 1) if header else {}
            about = start.get("eval", {}) if isinstance(start, dict) else {}
            for number, name in enumerate(names, 1):
                place = f"{path}:{name}"
                sample = _parse(archive.read(name).decode("utf-8"), Path(place), 1)
                value = unpacked({"eval": about, "samples": [sample]})[0]
                yield Record(number, place, value, path.stat().st_size * number // len(names))
    # RuntimeError is zipfile's, for a password and for a compression that it does not read.
    except (zipfile.BadZipFile, RuntimeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable log ({one_line(error)}); convert it by `inspect log convert --to json`") from None


_BINARY: tuple[tuple[bytes, Callable[[Path, Any], Iterator[Record]]], ...] = (
    (b"PAR1", _parquet_records),
    (b"ARROW1", _arrow_records),
    (b"\xff\xff\xff\xff", _arrow_records),
    (b"PK\x03\x04", _zip_records),
)


def _text_records(path: Path, raw: IO[bytes], stream: IO[bytes]) -> Iterator[Record]:
    numbered = ((number, line) for number, line in enumerate(stream, 1) if line.strip(b"\xef\xbb\xbf \t\r\n"))
    for number, line in numbered:
        text = line.decode("utf-8", "replace").removeprefix("\ufeff")
        if text.lstrip().startswith("[") or (_is_open_object(text) and not _says_jsonl(path)):
            yield from _document_records(path, number, line + stream.read())
            return
        first = _line_record(path, number, line, raw.tell())
        if isinstance(first.value, DataError) and _is_other_kind(line, text):
            first = first._replace(value=DataError(f"{path}:{number}: begins with {text.strip()[:20]!r}; {_KINDS_READ}"))
        # A document of many records may stand in one line.
        values = unpacked(first.value) if isinstance(first.value, dict) else [first.value]
        if len(values) != 1 or values[0] is not first.value:
            yield from (Record(k, f"{path}:record {k}", value, first.bytes_read) for k, value in enumerate(values, 1))
        else:
            yield first
        break
    for number, line in numbered:
        yield _line_record(path, number, line, raw.tell())


def _is_other_kind(line: bytes, text: str) -> bool:
    """Whether a first line that cannot be read is that of another kind of file (CSV, YAML, plain text, bzip2), not of broken JSON."""
    return line.startswith(b"BZh") or ("\ufffd" not in text and not text.lstrip().startswith(("{", "[")))


def _line_record(path: Path, number: int, line: bytes, bytes_read: int) -> Record:
    try:
        text = _decode(line.rstrip(), path, number)
        value = _parse(text.removeprefix("\ufeff") if number == 1 else text, path, number)
    except DataError as error:
        value = error
    return Record(number, f"{path}:{number}", value, bytes_read)


def _document_records(path: Path, first_line: int, data: bytes) -> Iterator[Record]:
    """The records of one JSON document."""
    size = path.stat().st_size
    try:
        values = unpacked(_parse(_decode(data, path, first_line).removeprefix("\ufeff"), path, first_line))
    except DataError as error:
        yield Record(1, str(path), error, size)
        return
    for number, element in enumerate(values, 1):
        yield Record(number, f"{path}:record {number}", element, size)


def _says_jsonl(path: Path) -> bool:
    return any(suffix in (".jsonl", ".ndjson") for suffix in path.suffixes)


def _is_open_object(text: str) -> bool:
    """Whether a first line is the beginning of an object that goes on in the next lines, as in indented JSON."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return text.lstrip().startswith("{") and error.pos >= len(text.rstrip())
    except (ValueError, RecursionError):
        return False
    return False


def _decode(data: bytes, path: Path, first_line: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise DataError(f"{path}:{line}: not valid UTF-8 ({error.reason}); convert the file to UTF-8") from None


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"{path}:{line}: broken JSON ({error.msg} at column {error.colno}); repair or delete it") from None
    except UnicodeEncodeError:
        raise DataError(f"{path}:{first_line}: a \\ud8xx escape without its second half is not text; repair or delete it") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{first_line}: unusable JSON ({one_line(error)}); repair or delete it") from None
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value, write null")
