"""Output folders: what one holds, who may write into it, and what becomes of what was there before.

Every command that writes a folder claims it here, so that what one survives (a kill, a second job, a full disk, another result in the
way) all survive alike.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from gradprism.runtime.errors import ConfigError, FolderInUseError
from gradprism.runtime.files import (
    STALE_SECONDS,
    is_temporary,
    read_json,
    remove_stale_temporaries,
    umask,
    write_json,
    writing,
)

OnExisting = Literal["resume", "replace", "fail"]  # what a command does with an output folder that holds an earlier result
Manifest = Mapping[str, Any]  # JSON: everything that a result depends on
MANIFEST = "manifest.json"
_CLAIM = ".claim.tmp"


@dataclass(frozen=True, slots=True)
class FolderKind:
    """A kind of output folder: how its `manifest.json` is known, and what a new claim may find, keep, replace or refuse.

    `what`: its name in messages, such as "probe". `identity`: a key that every manifest of the kind has, and no other's.
    `own`: patterns of the files, besides the manifest, that `replace` deletes, in this order. `free`: keys of the manifest, dotted
    where they are nested, that may differ between two attempts because no result depends on them.
    """

    what: str
    identity: str
    own: tuple[str, ...] = ()
    free: frozenset[str] = frozenset()

    def check(self, out: Path, on_existing: OnExisting) -> Manifest | None:
        """The manifest of what `out` already holds; None for no folder or an empty one. To be asked before anything expensive is loaded.

        Raises `FolderInUseError` for a folder that holds anything else, and for any folder in use with `fail`; `ConfigError` for an
        unknown choice; `DataError` for a broken manifest.
        """
        out = Path(out)
        check_choice(on_existing, ("resume", "replace", "fail"))
        if out.exists() and not out.is_dir():
            raise FolderInUseError(f"{out}: exists and is not a folder; choose another --out")
        names = [path.name for path in out.iterdir() if not is_temporary(path.name)] if out.is_dir() else []
        if not names:
            return None
        if on_existing == "fail":
            raise FolderInUseError(f"{out}: is not empty; choose another --out, or --on-existing resume or replace")
        manifest = read_json(out / MANIFEST) if MANIFEST in names else None
        if not (isinstance(manifest, dict) and self.identity in manifest):
            raise FolderInUseError(f"{out}: is in use and holds no {self.what}; choose another --out")
        return manifest

    def refuse_differences(self, out: Path, old: Manifest, new: Manifest, unless: frozenset[str] = frozenset()) -> None:
        """Raises `FolderInUseError`, naming the keys and both values, where `new` is another result than `old`; `unless` may differ."""
        if changes := differences(flat(old), flat(plain(new)), self.free | unless):
            raise FolderInUseError(f"{out}: holds another {self.what} ({changes}); choose another --out, or --on-existing replace")

    def claim(self, out: Path, manifest: Manifest, on_existing: OnExisting) -> bool:
        """Makes `out` the folder of `manifest`; whether it goes on with what is there. Raises as `check` and `refuse_differences` do.

        Of several processes that claim a folder at once, one does so after the other.
        """
        out, manifest = Path(out), plain(manifest)
        self.check(out, on_existing)  # before a lock is written into a folder of something else
        with exclusive_lock(out, _CLAIM, wait=True):
            old = self.check(out, on_existing)
            resumes = old is not None and on_existing == "resume"
            if old is not None and resumes:
                self.refuse_differences(out, old, manifest)
            with writing(out):
                for pattern in () if resumes else self.own:
                    for path in out.glob(pattern):
                        remove(path)
            # The old manifest goes last: killed in between, this is an unfinished folder of the old result.
            write_json(out / MANIFEST, manifest)
            remove_stale_temporaries(out)
        return resumes


def remove(path: Path) -> None:
    """Deletes a file or a folder; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def plain(manifest: Manifest) -> dict[str, Any]:
    """The manifest as JSON gives it back: tuples are lists, keys are text."""
    return json.loads(json.dumps(manifest))


def flat(manifest: Manifest, prefix: str = "") -> dict[str, Any]:
    """A manifest with its nested tables under dotted keys."""
    out: dict[str, Any] = {}
    for key, value in manifest.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return out


def check_choice(on_existing: str, choices: tuple[str, ...]) -> None:
    """Raises `ConfigError` where `on_existing` is none of `choices`."""
    if on_existing not in choices:
        raise ConfigError(f"--on-existing {on_existing}: choose {', '.join(choices[:-1])} or {choices[-1]}")


@contextlib.contextmanager
def exclusive_lock(folder: Path, lock: str, doing: str = "is in use", *, wait: bool = False) -> Iterator[None]:
    """A block in which no other process holds the file `lock` of `folder`, which is made if need be; `doing` as in "is being trained".

    Raises `FolderInUseError` where one does, or with `wait` waits for its end. On a file system without locks nothing is held.
    """
    path = folder / lock
    with _locked(folder, path, doing, wait) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()  # where nothing came of it


def _locked(folder: Path, path: Path, doing: str, wait: bool) -> IO[str]:
    while True:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 # the caller closes it
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read().strip() or "another process"
            raise FolderInUseError(f"{folder}: {doing} by {holder}; let it end first") from None
        except OSError:
            return file
        # Its last holder may have deleted the file between our opening and locking it: then another may hold its successor.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


@contextlib.contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """Where the block fails, removes `folder` and those above it that were not there before it, unless something is in them."""
    missing = [path for path in (Path(folder), *Path(folder).parents) if not path.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()
        raise


def claim_output_folder(path: Path, otherwise: str = "delete it first") -> Path:
    """Creates `path`, or accepts it when it is an empty folder; raises `FolderInUseError`, which says what to do `otherwise`."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FolderInUseError(f"{path}: exists and is not a folder; choose another --out")
    if path.is_dir() and any(path.iterdir()):
        raise FolderInUseError(f"{path}: is not empty; choose another --out, or {otherwise}")
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def atomic_folder(out: Path, on_existing: OnExisting, marker: str, what: str) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well, and is deleted when it does not.

    `on_existing` "replace" replaces only a folder that holds the file `marker`, by which a `what` is known. What commands left beside
    `out` that were killed is removed. Raises `FolderInUseError`, also where another command has written `out` meanwhile.
    """
    check_choice(on_existing, ("replace", "fail"))
    out = Path(out).expanduser().resolve()  # what is renamed over must be no link and not `.`
    replaces = on_existing == "replace" and (out / marker).is_file()
    if on_existing == "replace" and not replaces and out.is_dir() and any(out.iterdir()):
        raise FolderInUseError(f"{out}: is in use and no {what} (no {marker}); choose another --out")
    with removed_on_failure(out), writing(out):
        if not replaces:
            claim_output_folder(out, f"--on-existing replace where it holds a {what}")
        _remove_stale_folders(out)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp"))
        try:
            with _alive(temporary):
                yield temporary
                temporary.chmod(0o777 & ~umask())  # also where a folder was copied into it, with its mode
                if replaces:
                    _exchange(temporary, out)
                else:
                    _take_place(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _take_place(temporary: Path, out: Path) -> None:
    """Renames a folder over an empty one."""
    try:
        temporary.rename(out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise FolderInUseError(f"{out}: another command has written it meanwhile; choose another --out") from None


def _exchange(temporary: Path, out: Path) -> None:
    """Exchanges two folders at once, so that a kill leaves the old or the new one; in two steps on file systems that cannot."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if swap is None or swap(here, os.fsencode(temporary), here, os.fsencode(out), exchange):
        old = temporary.with_suffix(".old")
        out.rename(old)
        temporary.rename(out)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _alive(folder: Path) -> Iterator[None]:
    """A block during which the folder is known as that of a living process, for `_remove_stale_folders`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _remove_stale_folders(out: Path) -> None:
    """Deletes the temporary folders beside `out` of commands that were killed."""
    for path in out.parent.iterdir():
        left = re.fullmatch(re.escape(f".{out.name}.") + r"\w{8}\.(tmp|old)", path.name)
        if not left or path.is_symlink():
            continue
        with contextlib.suppress(OSError):  # gone by now, locked, or another's
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(path)
            finally:
                os.close(descriptor)


def differences(old: Manifest, new: Manifest, but: frozenset[str] = frozenset()) -> str:
    """`key: old → new; …` for the keys in which two manifests differ; empty where they agree.

    Keys in `but` are left out, and so is what is nested below them.
    """
    keys = [key for key in sorted(old.keys() | new.keys()) if not any(key == free or key.startswith(f"{free}.") for free in but)]
    return "; ".join(f"{key}: {_short(old.get(key))} → {_short(new.get(key))}" for key in keys if old.get(key) != new.get(key))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
