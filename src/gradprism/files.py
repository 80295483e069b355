"""Files that are never half written, and the hashes that say what is in them."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from gradprism.errors import DataError, FolderInUseError, MissingFileError


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path` and renames it over `path` on success; on failure `path` is as it was."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        # mkstemp makes the file private (0600); artefacts are shared like any other file.
        umask = os.umask(0)
        os.umask(umask)
        os.fchmod(descriptor, 0o666 & ~umask)
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8", newline=None if "b" in mode else "\n") as file:
            yield file
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys; NaN and infinities are refused (`ValueError`)."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Writes one compact JSON value a line."""
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def append_jsonl(path: Path, row: Any) -> None:
    """Adds one line in a single write; a reader may find the last line torn after a crash, never an earlier one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file; raises `MissingFileError` or `DataError` with the path."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, expected a JSON file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None


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


def claim_output_folder(path: Path) -> Path:
    """Creates `path`, or accepts it when it is an empty folder; raises `FolderInUseError` otherwise."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FolderInUseError(f"{path}: exists and is not a folder; choose another --out")
    if path.is_dir() and any(path.iterdir()):
        raise FolderInUseError(f"{path}: is not empty; choose another --out, or delete it first")
    path.mkdir(parents=True, exist_ok=True)
    return path
