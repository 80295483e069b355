"""ALFWorld's own games in the layout of `alfworld-download`: `json_2.1.1/<split>/<task>/<trial>/game.tw-pddl`.

Of a game file only the problem and the goal's sentence are taken. The domain and the grammar in it are of an older version, whose text
and actions differ; all games are played with those of the installed package.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path

from gradprism.environments.alfworld.generator import TASK_TYPES, Game
from gradprism.runtime.errors import ConfigError, DataError, GradprismError, MissingFileError
from gradprism.runtime.files import cache_folder, parse_json, read_json, sha256_file, sha256_json, write_json

SPLITS = ("train", "valid_train", "valid_seen", "valid_unseen")
# Games that `list_official` finds in a whole download.
PUBLISHED = {"train": 3554, "valid_train": 200, "valid_seen": 140, "valid_unseen": 134}
GAME_FILE = "game.tw-pddl"
PREFIX = "official"
HELP = "run alfworld-download, then give its folder with --data-dir or in ALFWORLD_DATA"
_GOAL = re.compile(r'Your task is to: ([^"\\]+)')


def games_folder(data_dir: str) -> Path:
    """The folder that holds the splits, below `data_dir` or, if that is empty, `$ALFWORLD_DATA`; raises `MissingFileError`."""
    given = data_dir or os.environ.get("ALFWORLD_DATA", "")
    if not given:
        raise MissingFileError(f"ALFWorld's official games: no folder is named; {HELP}")
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; {HELP}")
    for candidate in (folder, folder / "json_2.1.1", folder / "json_2.1.2_tw-pddl"):
        if any((candidate / split).is_dir() for split in SPLITS):
            return candidate
    raise MissingFileError(f"{folder}: holds none of the folders {list(SPLITS)}, nor json_2.1.1 with them; {HELP}")


def list_official(folder: Path, split: str) -> list[str]:
    """Ids of the solvable games of a split, `official/<split>/<task>/<trial>`, task types in turn, by name within a type.

    Raises `MissingFileError` for an absent split and `DataError` for a split without games or with a broken one.
    """
    root = folder / split
    if not root.is_dir():
        there = [name for name in SPLITS if (folder / name).is_dir()]
        raise MissingFileError(f"{root}: no such split; there are {there}; {HELP}")
    by_type: dict[str, list[str]] = {task_type: [] for task_type in TASK_TYPES}
    for path in (key for key, (_, _, solvable, _) in _index(root).items() if solvable):
        task, trial = path.split("/")
        task_type = task.partition("-")[0]
        # Nobody's agent is asked for these: the library leaves them out as well.
        if task_type in by_type and "movable" not in task and "Sliced" not in task:
            by_type[task_type].append(f"{PREFIX}/{split}/{task}/{trial}")
    games = [name for turn in zip_longest(*by_type.values()) for name in turn if name is not None]
    if not games:
        raise DataError(f"{root}: holds no solvable {GAME_FILE}; the download is not complete: {HELP}")
    return games


def missing_games(folder: Path, split: str) -> str:
    """A sentence where a split has fewer or more games than the published one; empty where it has as many."""
    there, published = len(list_official(folder, split)), PUBLISHED[split]
    return (
        ""
        if there == published
        else f"{folder / split}: holds {there} of the {published} published games; figures are not comparable"
    )


def load_official(folder: Path, name: str) -> Game:
    """The game of an id; raises `ConfigError` for one that is not in `folder` and `DataError` for a broken file."""
    path = game_path(folder, name)
    try:
        content = parse_json(path.read_bytes())
        problem, grammar = content["pddl_problem"], content["grammar"]
        goal = _GOAL.search(grammar)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a game ({type(error).__name__}: {error}); the download is not complete: {HELP}") from None
    if goal is None or not isinstance(problem, str) or "(define (problem" not in problem:
        raise DataError(f"{path}: not a game: its problem or its goal is missing; the download is not complete: {HELP}")
    return Game(name, path.parent.parent.name.partition("-")[0], goal[1].strip().rstrip("."), problem)


def contents(folder: Path, names: Sequence[str] | None = None) -> str:
    """Hash of what is in the files of these games, or of all, wherever they lie; raises `ConfigError` for one that does not exist."""
    if names is not None:
        return sha256_json({name: sha256_file(game_path(folder, name)) for name in names})
    there = [split for split in SPLITS if (folder / split).is_dir()]
    return sha256_json({f"{split}/{key}": sha for split in there for key, (*_, sha) in _index(folder / split).items()})


def game_path(folder: Path, name: str) -> Path:
    """The file of an id; raises `ConfigError` where it does not exist."""
    path = Path(folder, *parse_official(name)[1:], GAME_FILE)
    if not path.is_file():
        raise ConfigError(f"game {name!r}: {path} does not exist; {HELP}")
    return path


def parse_official(name: str) -> tuple[str, str, str, str]:
    """Prefix, split, task and trial of an official game's id; raises `ConfigError`."""
    parts = name.split("/")
    # Ids come from files of all kinds and name a path, which must stay below the folder.
    if len(parts) != 4 or parts[0] != PREFIX or any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
        raise ConfigError(f"game {name!r}: expected {PREFIX}/SPLIT/TASK/TRIAL, as `json_2.1.1` names its folders")
    return parts[0], parts[1], parts[2], parts[3]


@cache
def _index(root: Path) -> dict[str, tuple[int, int, bool, str]]:
    """Size, time, whether it is solvable, and hash of each game below a split's folder, by `<task>/<trial>`, sorted.

    What is known of a file is kept in the cache folder for as long as its size and time stay the same: listing a split then costs a look
    at each file instead of reading hundreds of megabytes.
    """
    cached = cache_folder() / "alfworld" / f"games-{sha256_json(str(root.resolve()))[:16]}.json"
    try:
        known = read_json(cached)
    except (GradprismError, OSError):
        known = {}
    seen: dict[str, tuple[int, int, bool, str]] = {}
    for path in sorted(root.glob(f"*/*/{GAME_FILE}")):
        status = path.stat()
        size, time, key = status.st_size, status.st_mtime_ns, f"{path.parent.parent.name}/{path.parent.name}"
        entry = known.get(key) if isinstance(known, dict) else None
        if not (isinstance(entry, list) and [type(part) for part in entry] == [int, int, bool, str] and entry[:2] == [size, time]):
            entry = [size, time, *_read(path)]
        seen[key] = size, time, entry[2], entry[3]
    if {key: list(entry) for key, entry in seen.items()} != known:
        with contextlib.suppress(GradprismError, OSError):  # a cache that cannot be written costs time alone
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_json(cached, seen)
    return seen


def _read(path: Path) -> tuple[bool, str]:
    """Whether a game is solvable, and its file's hash; one that says nothing was never checked and does not count, as in the library.

    It is read whole: one that was cut anywhere is broken, and must not count as a game less.
    """
    try:
        raw = path.read_bytes()
        content = parse_json(raw)
        return isinstance(content, dict) and content.get("solvable") is True, hashlib.sha256(raw).hexdigest()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); the download is not complete: {HELP}") from None
