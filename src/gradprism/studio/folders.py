"""The folders that the studio shows: found below the roots that were named, known by ids that say nothing of a path.

Nothing outside of the roots is read: a link that leads out of them is left out, and told.
"""

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gradprism.runtime.errors import ConfigError, DataError, GradprismError, MissingFileError
from gradprism.runtime.files import is_temporary, read_json
from gradprism.runtime.folders import MANIFEST

Kind = Literal["probe", "route", "run", "results", "training", "evaluation"]
ROUTING, RESULTS, CONFIG, STAGES = "routing.json", "results.json", "config.json", "stages"
# The files of each kind that its pages are made of: by their sizes, times and inodes a change is seen.
_FILES: dict[Kind, tuple[str, ...]] = {
    "probe": (MANIFEST, "corpus.jsonl", "rendered.arrow", "norms-*", "losses-*"),
    "route": (ROUTING, "routes.parquet", "sft.jsonl", "rl.jsonl", "audit.json"),
    "run": (CONFIG, RESULTS, "ledger.jsonl"),
    "results": (RESULTS, CONFIG),
    "training": (MANIFEST, "log.jsonl", "summary.json"),
    "evaluation": (MANIFEST, "episodes.jsonl", "summary.json"),
}
# Also those of a run's stages: what is done, what runs, and how far it is.
_OF_STAGES = (f"{STAGES}/*/stage.json", "running/*.json", f"{STAGES}/*/*.jsonl", f"{STAGES}/*/evaluation/episodes.jsonl")
# By which key of a manifest a folder is known, and by which files where the manifest is broken.
_IDENTITIES: dict[str, Kind] = {"units": "probe", "command": "training", "tasks_sha256": "evaluation"}
_MARKS: tuple[tuple[str, Kind], ...] = (("norms-", "probe"), ("episodes.jsonl", "evaluation"), ("log.jsonl", "training"))
# Below these there is nothing to show, or much that is not.
_SKIPPED = frozenset({"checkpoints", "adapter", "running", "node_modules", "__pycache__"})
_LEAVES = ("probe", "route", "evaluation", "results")
_DEEPEST, _MOST = 12, 20_000


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and what to do."""

    message: str
    hint: str = ""

    @classmethod
    def of(cls, error: Exception) -> "Problem":
        """Of an error of this package, whose line says both."""
        message, _, hint = str(error).rpartition("; ")
        return cls(message, hint) if message else cls(hint, "give the command again that wrote it")


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that was found: `path` is where it is, `name` its place below its root, `shown` how a command line names it."""

    id: str
    kind: Kind
    path: Path
    root: Path
    name: str
    shown: str
    parent: str | None = None

    def version(self) -> str:
        """Hash of the names, sizes, times and inodes of its files; raises `MissingFileError`, and `DataError` for a link that leads out."""
        told = [f"{path.name} {about.st_size} {about.st_mtime_ns} {about.st_ino}" for path, about in self._files()]
        return hashlib.sha256(os.fsencode("\n".join(told))).hexdigest()[:16]

    def modified(self) -> float:
        """When one of its files was last written, in seconds since 1970."""
        return max((about.st_mtime for _, about in self._files()), default=0.0)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        try:
            paths = sorted({path for pattern in _FILES[self.kind] for path in self.path.glob(pattern)})
            if self.kind == "run":
                paths += sorted({path for pattern in _OF_STAGES for path in self.path.glob(pattern)})
            if not self.path.is_dir():
                raise MissingFileError(f"{self.shown}: is gone; look at the list of folders again")
            for path in paths:
                if is_temporary(path.name):
                    continue
                check_within(path, self.root, self.shown)
                with contextlib.suppress(FileNotFoundError):  # renamed in this moment
                    yield path, path.stat()
        except OSError as error:
            if isinstance(error, GradprismError):
                raise
            raise DataError(f"{self.shown}: cannot be read ({error.strerror or error}); try again once it can") from None

    def below(self, *parts: str) -> Path:
        """A file within; raises `DataError` where it is a link that leads out of the root."""
        path = self.path.joinpath(*parts)
        check_within(path, self.root, self.shown)
        return path


def check_within(path: Path, root: Path, shown: str) -> None:
    """Raises `DataError` where `path` is, by way of a link, not within `root`."""
    try:
        within = path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # of links in a circle
        raise DataError(f"{shown}: {path.name} is a link that leads nowhere; delete it") from None
    if not within:
        raise DataError(f"{shown}: {path.name} is a link that leads out of {root.name}; name the folder that it leads to as well")


@dataclass
class Tree:
    """The folders below `roots`; asked for again, it looks again."""

    roots: Sequence[str]
    problems: list[Problem] = field(default_factory=list)
    _found: dict[str, Folder] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for root in self.roots:
            if not is_text(f"{root}{Path(root).resolve()}"):
                raise ConfigError(f"{root!a}: its name is not UTF-8; give the folder another one")
            if not Path(root).expanduser().is_dir():
                raise MissingFileError(
                    f"{root}: no such folder; name probe, route, run or results folders, or a folder that holds some"
                )

    def scan(self) -> list[Folder]:
        """All folders, in the order of the roots and by name."""
        found, problems = list[Folder](), list[Problem]()
        for number, given in enumerate(self.roots):
            root = Path(given).expanduser().resolve()
            walk = _Walk(number, given, root, problems)
            walk.enter(root, "", None, 0)
            found += walk.found
            if not walk.found:
                problems.append(
                    Problem(f"{given}: holds no folder that the studio shows", "name one that a gradprism command wrote")
                )
        unique = {folder.path: folder for folder in reversed(found)}  # a root may lie in another
        kept = [folder for folder in found if unique[folder.path] is folder]
        with self._lock:
            self.problems, self._found = problems, {folder.id: folder for folder in kept}
        return kept

    def folder(self, id: str) -> Folder:
        """The folder of an id; raises `MissingFileError`."""
        if id not in self._found:
            self.scan()
        with self._lock:
            if id not in self._found:
                raise MissingFileError(f"{id[:40]!r}: no folder has this id; look at the list of folders again")
            return self._found[id]

    def all(self) -> list[Folder]:
        """Those of the last scan."""
        with self._lock:
            return list(self._found.values())


@dataclass
class _Walk:
    """The search below one root."""

    number: int
    given: str
    root: Path
    problems: list[Problem]
    found: list[Folder] = field(default_factory=list)
    seen: set[Path] = field(default_factory=set)

    def enter(self, path: Path, name: str, parent: str | None, depth: int) -> None:
        if depth > _DEEPEST or len(self.seen) > _MOST or path.resolve() in self.seen:  # the last: links may lead round in a circle
            return
        self.seen.add(path.resolve())
        if len(self.seen) > _MOST:
            self.problems.append(
                Problem(f"{self.given}: more than {_MOST} folders, and the rest is left out", "name fewer of them")
            )
            return
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            self.problems.append(Problem(f"{self._shown(name)}: cannot be read ({error.strerror})", "give yourself access to it"))
            return
        kind = _kind(path, [entry.name for entry in entries], self.root)
        if kind is not None:
            id = hashlib.sha256(f"{self.number}/{self.root.name}/{name}".encode()).hexdigest()[:12]
            self.found.append(Folder(id, kind, path, self.root, name or self.root.name, self._shown(name), parent))
            if kind in _LEAVES:
                return
            parent = id if kind == "run" else parent
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _SKIPPED or not _is_folder(entry):
                continue
            if not is_text(entry.name):
                told = Problem(
                    f"{self._shown(name)}: the name of a folder in it, {entry.name!a}, is not UTF-8", "give it another name"
                )
                self.problems.append(told)
                continue
            below = f"{name}/{entry.name}" if name else entry.name
            if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(self.root):
                told = Problem(
                    f"{self._shown(below)}: is a link that leads out of {self.given}", "name the folder that it leads to"
                )
                self.problems.append(told)
                continue
            self.enter(Path(entry.path), below, parent, depth + 1)

    def _shown(self, name: str) -> str:
        return str(Path(self.given) / name) if name else self.given


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_text(name: str) -> bool:
    """Whether a file's name can be told: it need not be UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(path: Path, names: Sequence[str], root: Path) -> Kind | None:
    if ROUTING in names or "routes.parquet" in names:
        return "route"
    if MANIFEST in names:
        with contextlib.suppress(GradprismError, OSError):
            check_within(path / MANIFEST, root, str(path))
            manifest = read_json(path / MANIFEST)
            if isinstance(manifest, dict) and (known := [key for key in _IDENTITIES if key in manifest]):
                return _IDENTITIES[known[0]]
        return next((kind for mark, kind in _MARKS if any(name.startswith(mark) for name in names)), None)
    if STAGES in names and CONFIG in names:
        return "run"
    return "results" if RESULTS in names else None


def is_locked(folder: Path, lock: str) -> bool:
    """Whether a command holds the lock file `lock` of a folder at this moment."""
    try:
        with open(folder / lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
