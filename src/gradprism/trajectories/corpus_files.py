"""Corpus files to raw records: JSONL, JSON and Parquet, plain or compressed with gzip, xz or zstd.

What a file is, its bytes say; its name is not trusted. JSONL is streamed: one record is in memory at a time.
"""

import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow
import pyarrow.parquet

from gradprism.runtime.errors import DataError, MissingFileError, one_line

# An escaped UTF-16 surrogate: half a character unless the other half follows.
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class Record(NamedTuple):
    """One record of a file. `number` is its line (JSONL) or its position (JSON list, Parquet), both from 1."""

    number: int
    place: str
    value: Any
    bytes_read: int  # how far into the file, as stored, the reader is


def iter_records(path: Path) -> Iterator[Record]:
    """Yields every record of one file.

    Raises `MissingFileError`, and `DataError` for a folder, a file without records, broken compression, text that is not UTF-8 and
    broken JSON, each with the file and, where there is one, the line.
    """
    check_path(path)
    line = found = 0
    try:
        with open(path, "rb") as raw:
            opener = next((opener for magic, opener in _COMPRESSIONS if raw.peek(6).startswith(magic)), None)
            with io.BufferedReader(opener(raw) if opener else raw) as stream:
                if stream.peek(4)[:4] == b"PAR1":
                    # Parquet needs to seek, which a decompressor cannot do at a bearable price.
                    records = _parquet_records(path, io.BytesIO(stream.read()) if opener else path)
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
    size = path.stat().st_size
    try:
        file = pyarrow.parquet.ParquetFile(source)
        number, rows = 0, file.metadata.num_rows
        for batch in file.iter_batches(batch_size=256):
            for value in batch.to_pylist():
                number += 1
                yield Record(number, f"{path}:row {number}", value, size * number // rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({one_line(error)}); write it again") from None


def _text_records(path: Path, raw: IO[bytes], stream: IO[bytes]) -> Iterator[Record]:
    numbered = ((number, line) for number, line in enumerate(stream, 1) if line.strip(b"\xef\xbb\xbf \t\r\n"))
    for number, line in numbered:
        text = _decode(line, path, number)
        if number == 1:
            text = text.removeprefix("\ufeff")
        if text.lstrip().startswith("[") or (_is_open_object(text) and not _says_jsonl(path)):
            yield from _document_records(path, number, text + _decode(stream.read(), path, number + 1))
            return
        yield Record(number, f"{path}:{number}", _parse(text.rstrip(), path, number), raw.tell())
        break
    for number, line in numbered:
        yield Record(number, f"{path}:{number}", _parse(_decode(line.rstrip(), path, number), path, number), raw.tell())


def _document_records(path: Path, first_line: int, text: str) -> Iterator[Record]:
    """The records of one JSON document: the elements of a list, or the one object."""
    value = _parse(text, path, first_line)
    size = path.stat().st_size
    for number, element in enumerate(value if isinstance(value, list) else [value], 1):
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
