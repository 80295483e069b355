"""What `--data` names: files, globs of them, folders of them, and Hugging Face data sets as `save_to_disk` writes them."""

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

from gradprism.runtime.errors import DataError, MissingFileError
from gradprism.runtime.files import parse_json
from gradprism.runtime.progress import say

_COMPRESSED = (".gz", ".xz", ".zst")
_KINDS = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".traj", ".eval")
_NO_CORPUS = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "config.json"}
ENDINGS = (*_COMPRESSED, *_KINDS)


def expand(sources: Iterable[str | Path]) -> tuple[Path, ...]:
    """The files that `sources` stand for, in their order; those of a folder or a glob sorted by name.

    Raises `MissingFileError` where there is nothing, and `DataError` for a folder without a corpus or with several splits.
    """
    return tuple(path for source in sources for path in _expand(Path(source).expanduser()))


def _expand(source: Path) -> Iterator[Path]:
    if source.is_dir():
        yield from _of_folder(source)
    elif source.exists():
        yield source
    elif glob.has_magic(str(source)):
        names = glob.glob(str(source), recursive=True)  # noqa: PTH207 # a pattern may be absolute, which Path.glob refuses
        found = sorted(Path(name) for name in names if not Path(name).is_dir())
        if not found:
            raise MissingFileError(f"{source}: no file of such a name")
        yield from found
    else:
        raise MissingFileError(f"{source}: no such file")


def _of_folder(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        raise DataError(f"{folder}: holds the splits {splits}; name one of them, as {folder}/SPLIT")
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return _of_data_set(folder)
    every = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path, folder))
    found = [path for path in every if path.name not in _NO_CORPUS and _kind(path) in _KINDS]
    if not found:
        raise DataError(f"{folder}: is a folder without a corpus; looked for {', '.join(_KINDS)}, plain or compressed")
    others = [path.name for path in every if path not in set(found)]
    left = f"; left out: {', '.join(others[:5])}{' …' if len(others) > 5 else ''}" if others else ""
    say(f"{folder}: {len(found)} file{'s' if len(found) > 1 else ''}{left}")
    return found


def _of_data_set(folder: Path) -> list[Path]:
    """The Arrow files of a data set on disk, in the order of its rows."""
    try:
        state = parse_json((folder / "state.json").read_bytes())
        files = [folder / part["filename"] for part in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}/state.json: is not that of a data set on disk ({error}); save it again") from None
    for path in files:
        if not path.is_file():
            raise MissingFileError(f"{path}: no such file, though state.json names it; save the data set again")
    return files


def _kind(path: Path) -> str:
    name = path.name
    while Path(name).suffix in _COMPRESSED:
        name = Path(name).stem
    return Path(name).suffix


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)


def stems(paths: Iterable[Path]) -> list[str]:
    """A name for each file, without endings; with its folder's where two would be alike."""
    paths = list(paths)
    names = [_stem(path) for path in paths]
    made = [f"{path.parent.name}/{name}" if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]
    return made if len(set(made)) == len(made) else [f"{name}-{number}" for number, name in enumerate(names, 1)]


def _stem(path: Path) -> str:
    name = path.name
    while (ending := Path(name).suffix) in ENDINGS:
        name = name.removesuffix(ending)
    return name
