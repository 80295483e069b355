"""Files that are never half written, and the hashes that say what is in them."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from gradprism.runtime.errors import DataError, GradprismError, MissingFileError, WriteError, one_line

# A temporary file without a living writer is deleted once it is so many seconds old: its writer needs a moment to lock it.
STALE_SECONDS = 30


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an `OSError` of the block, which writes `path`, into a `WriteError` that names it."""
    try:
        yield
    except OSError as error:
        if isinstance(error, GradprismError):
            raise
        raise WriteError(
            f"{path}: cannot be written ({error.strerror or error}); make room, or name a folder that can be written"
        ) from error


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path` and renames it over `path` on success; on failure `path` is as it was.

    Raises `WriteError` for whatever the operating system refuses.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(
                descriptor, mode, encoding=None if "b" in mode else "utf-8", newline=None if "b" in mode else "\n"
            ) as file:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(descriptor, fcntl.LOCK_SH)  # says that the writer lives
                # mkstemp makes the file private (0600); artefacts are shared like any other file.
                os.fchmod(descriptor, 0o666 & ~umask())
                yield file
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def is_temporary(name: str) -> bool:
    """Whether `atomic_write` calls its temporary files so: a process that was killed while writing leaves one behind."""
    return name.startswith(".") and name.endswith(".tmp")


def remove_stale_temporaries(folder: Path) -> None:
    """Deletes the temporary files in `folder` whose writers were killed; those of living writers, here or elsewhere, stay."""
    for path in Path(folder).iterdir():
        if is_temporary(path.name):
            with contextlib.suppress(OSError), open(path, "rb") as file:  # gone by now, or locked
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()


def write_json(path: Path, value: Any, *, sort_keys: bool = True) -> None:
    """Writes `value` as indented JSON with lists of numbers on one line; NaN and infinities are refused (`ValueError`)."""
    text = json.dumps(value, indent=2, sort_keys=sort_keys, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        file.write(_NUMBERS.sub(lambda match: " ".join(match[0].split()).replace("[ ", "[").replace(" ]", "]"), text) + "\n")


# In JSON a line feed is never part of a string, so none is taken for a list.
_NUMBERS = re.compile(r"\[\n *-?\d[\d.eE+-]*(?:,\n *-?\d[\d.eE+-]*)*\n *\]")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Writes one compact JSON value per line."""
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def append_jsonl(path: Path, row: Any) -> None:
    """Adds one line in a single write; after a crash a reader may find a torn line, and whole ones before and behind it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            torn = file.read(1) not in (b"", b"\n")
            file.write((b"\n" if torn else b"") + json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def read_jsonl(path: Path, *, stop_at_torn: bool = False) -> list[Any]:
    """The values of a file that `append_jsonl` wrote; none where there is no file.

    A line that a crash has torn is passed over or, with `stop_at_torn`, ends the list: what follows it came later.
    """
    try:
        lines = Path(path).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            if not line.endswith(b"\n"):
                raise ValueError("torn")
            rows.append(parse_json(line))
        except ValueError:
            if stop_at_torn:
                break
    return rows


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text in UTF-8; raises `ValueError` for anything else, and for an escape that is half a character."""
    if isinstance(text, bytes):
        text = text.decode()  # by itself the json module guesses encodings, and lets halves of characters pass
    try:
        value = json.loads(text)
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("a \\ud8xx escape without its second half is not text") from None
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text; raises `ValueError` for anything else."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


# An escaped UTF-16 surrogate: half a character unless the other half follows.
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path) -> Any:
    """Reads a JSON file; raises `MissingFileError` or `DataError` with the path."""
    try:
        return parse_json(Path(path).read_bytes())
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, expected a JSON file") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({one_line(error)})") from None


def cache_folder() -> Path:
    """The user's folder for what can be made again: `$XDG_CACHE_HOME/gradprism`, else `~/.cache/gradprism`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradprism"


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON-serialisable value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def sha256_folder(folder: Path) -> str:
    """Hex SHA-256 over the names and contents of all files below `folder`."""
    names = sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())
    return sha256_json([[name, sha256_file(Path(folder) / name)] for name in names])


def umask() -> int:
    """The process's file mode mask."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
