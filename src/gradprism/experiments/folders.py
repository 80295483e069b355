"""Whose a folder is: an experiment's run or its results, or measured gains, of which none is written over another."""

import fcntl
from pathlib import Path

from gradprism.experiments.results import RESULTS
from gradprism.experiments.stage import STAGES
from gradprism.runtime.errors import FolderInUseError
from gradprism.runtime.files import is_temporary, read_json

CONFIG, GAIN, LOCK = "config.json", "gain.json", ".experiment.tmp"
README = "README.md"  # of a results folder, written by hand


def check_holds_run(folder: Path, otherwise: str) -> None:
    """Raises `FolderInUseError`, which says to choose another `otherwise`, for a folder of anything but a run or its results.

    The `config.json` of a model, or the one that replays measured gains, would be overwritten.
    """
    names = _names(folder, otherwise)
    if GAIN in names:
        raise FolderInUseError(f"{folder}: holds measured gains ({GAIN}), whose {CONFIG} would be lost; choose another {otherwise}")
    if not names - {README} or names & {RESULTS, STAGES}:
        return
    config = read_json(folder / CONFIG) if CONFIG in names else None
    if not (isinstance(config, dict) and "corpus" in config):
        raise FolderInUseError(f"{folder}: is in use and holds no run; choose another {otherwise}")


def check_holds_gain(folder: Path) -> None:
    """Raises `FolderInUseError` for a folder of anything but measured gains, above all for the results of an experiment."""
    names = _names(folder, "--results")
    if RESULTS in names:
        raise FolderInUseError(
            f"{folder}: holds the results of an experiment ({RESULTS}), whose {CONFIG} and {README} would be lost; choose another "
            "--results"
        )
    if names - {README} and GAIN not in names:
        raise FolderInUseError(f"{folder}: is in use and holds no {GAIN}; choose another --results")


def _names(folder: Path, otherwise: str) -> set[str]:
    """What lies in a folder, if it is there, but for temporary files."""
    if folder.exists() and not folder.is_dir():
        raise FolderInUseError(f"{folder}: exists and is not a folder; choose another {otherwise}")
    return {path.name for path in folder.iterdir() if not is_temporary(path.name)} if folder.is_dir() else set()


def is_being_run(folder: Path) -> bool:
    """Whether a command is at the experiment of a run folder now; it is asked without waiting, and nothing is written."""
    try:
        with open(folder / LOCK, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks
        return False
    return False
