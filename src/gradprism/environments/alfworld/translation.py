"""Planning tasks of games, translated from PDDL once and kept on disk.

TextWorld has each game translated by `fast_downward`, half a second of pure computation on two texts. Its result is kept below the
user's cache folder under a hash of both texts and the versions of the libraries; an entry that cannot be read counts as absent.
"""

import contextlib
import functools
import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fast_downward
import zstandard
from fast_downward.translate.pddl.conditions import Atom

from gradprism.runtime.errors import WriteError
from gradprism.runtime.files import atomic_write, cache_folder, parse_json, sha256_json

MOST_ENTRIES = 20_000  # of about 10 kB; the oldest go first
_translate: Any = fast_downward.pddl2sas  # said to give text; it gives the task as well


@functools.lru_cache(maxsize=64)
def translate(domain: str, problem: str) -> tuple[Any, str]:
    """The parts of a planning task that TextWorld reads (`actions`, `types`, `objects`, `init`), and the task in SAS format."""
    key = sha256_json([_versions(), domain, problem])
    path = cache_folder() / "alfworld" / "games" / key[:2] / f"{key}.zst"
    try:
        stored = parse_json(zstandard.decompress(path.read_bytes()))
        return _task(stored), stored["sas"]
    except (OSError, ValueError, KeyError, TypeError, zstandard.ZstdError):
        pass
    argv = sys.argv  # the translator overwrites it
    try:
        task, sas = _translate(domain, problem)
    finally:
        sys.argv = argv
    stored = {
        "actions": [[a.name, [[p.name, p.type_name] for p in a.parameters]] for a in task.actions],
        "types": [[t.name, t.supertype_names] for t in task.types],
        "objects": [[o.name, o.type_name] for o in task.objects],
        # Beside atoms there are numbers: costs and distances, which TextWorld drops.
        "init": [[atom.predicate, list(atom.args)] for atom in task.init if isinstance(atom, Atom) and atom.predicate != "="],
        "sas": sas,
    }
    with contextlib.suppress(WriteError):  # a disk that is full or read-only costs time, not the game
        with atomic_write(path, "wb") as file:
            file.write(zstandard.compress(json.dumps(stored).encode(), 6))
        if key.startswith("000"):
            _prune(path.parent.parent)
    return _task(stored), sas


def _task(stored: dict[str, Any]) -> Any:
    return SimpleNamespace(
        actions=[
            SimpleNamespace(name=name, parameters=[SimpleNamespace(name=n, type_name=t) for n, t in parameters])
            for name, parameters in stored["actions"]
        ],
        types=[SimpleNamespace(name=name, supertype_names=names) for name, names in stored["types"]],
        objects=[SimpleNamespace(name=name, type_name=kind) for name, kind in stored["objects"]],
        init=[Atom(predicate, arguments) for predicate, arguments in stored["init"]],
    )


@functools.cache
def _versions() -> list[str]:
    return [f"{name} {version(name)}" for name in ("alfworld", "textworld", "fast-downward-textworld")]


def _prune(folder: Path) -> None:
    entries = sorted(folder.glob("*/*.zst"), key=lambda path: path.stat().st_mtime)
    for path in entries[:-MOST_ENTRIES]:
        path.unlink(missing_ok=True)
