"""Probe folders behind a URL (`s3://…`, `memory://…`: whatever fsspec opens), by way of a local copy.

All work is done in the copy, with the same code as in a folder of this machine; what is written is then put to the URL, where a file
appears whole. So every process of a run has a copy of its own, and the URL is where they meet.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import fsspec

from gradprism.runtime.errors import ConfigError, DataError, MissingDependencyError, WriteError
from gradprism.runtime.folders import MANIFEST


def is_url(folder: object) -> bool:
    """True for a folder that is named by a URL."""
    return "://" in str(folder)


class Mirror:
    """A local copy, in `folder`, of the probe folder at `url`; it lives as long as this object."""

    def __init__(self, url: str, patterns: Iterable[str]) -> None:
        """`patterns` are those of a probe folder's own files. Raises `ConfigError` or `MissingDependencyError` for a URL of no use."""
        try:
            self._fs, self._root = fsspec.url_to_fs(url)
        except ImportError as error:
            raise MissingDependencyError(f"{url}: {error}") from None
        except ValueError as error:
            raise ConfigError(f"{url}: no URL that fsspec knows ({error})") from None
        self.url, self._patterns = url, tuple(patterns)
        self._temporary = tempfile.TemporaryDirectory(prefix="gradprism-")
        self.folder = Path(self._temporary.name) / "probe"
        self._pulled: set[str] = set()

    def pull(self) -> None:
        """Brings what is at the URL and not yet here. Of files that are no probe's only the names come, by which they are refused."""
        try:
            found = {Path(entry["name"]).name: entry["size"] for entry in self._fs.ls(self._root, detail=True, refresh=True)}
        except FileNotFoundError:
            return
        except Exception as error:  # each file system has exceptions of its own
            raise DataError(f"{self.url}: cannot be read ({' '.join(str(error).split())[:200]})") from error
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, size in found.items():
            local = self.folder / name
            if not self._is_own(name):
                local.touch()
            elif not (self._is_shard(name) and local.exists() and local.stat().st_size == size):
                self._fs.get_file(self._remote(name), str(local))
                self._pulled.add(name)

    def push(self, *paths: Path) -> None:
        """Puts files of the copy to the URL; raises `WriteError`."""
        with self._writing():
            self._fs.makedirs(self._root, exist_ok=True)
            for path in paths:
                self._fs.pipe_file(self._remote(path.name), path.read_bytes())

    def push_all(self) -> None:
        """Puts the copy's own files there but shards, and deletes there what was deleted here; to be called by one process."""
        here = {path.name for path in self.folder.iterdir() if self._is_own(path.name)}
        for name in sorted(self._pulled - here):
            with self._writing(), contextlib.suppress(FileNotFoundError):  # another process was faster
                self._fs.rm_file(self._remote(name))
        self._pulled &= here
        # The manifest last: by it a folder is known.
        rest = sorted((name for name in here if not self._is_shard(name)), key=lambda name: name == MANIFEST)
        self.push(*(self.folder / name for name in rest))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each file system has exceptions of its own
            raise WriteError(f"{self.url}: cannot be written ({error}); name a folder that can be written") from error

    def _remote(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _is_own(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._patterns)

    def _is_shard(self, name: str) -> bool:
        return name.endswith(".parquet")
