"""The pages of an experiment's results: the tables and figures of a folder, and the blocks that other Markdown pages show of them."""

import re
from collections.abc import Callable
from pathlib import Path

from gradprism.reporting.experiment_cost_tables import cost_table, training_table
from gradprism.reporting.experiment_figures import FIGURES, draw_figures, drawn_by, has_figure, matplotlib_version
from gradprism.reporting.experiment_numbers import percent, points, times
from gradprism.reporting.experiment_results import Experiment, read_experiment
from gradprism.reporting.experiment_tables import claims_table, detectable_text, main_table, regime_text, tables_text
from gradprism.reporting.tables import printable
from gradprism.runtime.errors import DataError, MissingFileError
from gradprism.runtime.files import atomic_write

TABLES, README = "tables.md", "README.md"

# --- blocks of a README that are written here

_BEGIN, _END = "<!-- gradprism: ", "<!-- /gradprism -->"
_TABLE_BLOCKS: dict[str, Callable[[Experiment], str]] = {
    "main": main_table,
    "claims": claims_table,
    "regime": regime_text,
    "cost": cost_table,
    "training": training_table,
}


def replace_block(text: str, name: str, table: str) -> str:
    """`text` with `table` between `<!-- gradprism: NAME -->` and `<!-- /gradprism -->`, wherever they stand.

    Text of several lines is set apart by blank lines, as Markdown wants of a table; a single line stays within its own. Raises
    `DataError` where the markers are missing.
    """
    body = f"\n\n{table.strip()}\n\n" if "\n" in table else table
    begin = f"{_BEGIN}{name} -->"
    new, n = re.subn(f"{re.escape(begin)}.*?{re.escape(_END)}", lambda _: f"{begin}{body}{_END}", text, flags=re.DOTALL)
    if not n:
        raise DataError(f"no block {name!r}: put {begin} and {_END} where it is to stand")
    return new


def fill_blocks(text: str, experiment: Experiment, source: str, prefix: str = "") -> str:
    """`text` with all its blocks filled in; `source` is the file that errors name.

    Blocks are `main`, `claims`, `regime`, `cost`, `training`, and within a line `success ARM [SPLIT]`, `score ARM [SPLIT]`, `speedup ARM`,
    `difference ARM ARM [SPLIT]`, `speedup-flops ARM`, `detectable`. With a prefix, only blocks whose names begin with it are filled
    ("PREFIX success gini"), so that one file can show several experiments. (A line that begins with a marker is HTML to Markdown:
    begin it with a word.)

    Raises `DataError` for a block that is none of these, an unknown arm or split, or a block that does not end before the next.
    """
    begin = f"{prefix} " if prefix else ""
    for part in text.split(_BEGIN)[1:]:
        if _END not in part:
            raise DataError(f"{source}: block {part.partition(' -->')[0]!r} does not end; add {_END}")
    names = [part.partition(" -->")[0] for part in text.split(_BEGIN)[1:]]
    for name in dict.fromkeys(name for name in names if name.startswith(begin)):
        text = replace_block(text, name, _block(name.removeprefix(begin), experiment, source))
    return text


def _block(name: str, experiment: Experiment, source: str) -> str:
    what, *words = name.split() or [""]
    if what in _TABLE_BLOCKS and not words:
        return _TABLE_BLOCKS[what](experiment)
    n_arms = {"success": 1, "score": 1, "difference": 2, "speedup": 1, "speedup-flops": 1, "detectable": 0}.get(what)
    n_splits = int(what in ("success", "score", "difference"))
    if n_arms is None or not n_arms <= len(words) <= n_arms + n_splits:
        raise DataError(f"{source}: no block is called {printable(name)!r}; see `fill_blocks` for those that are")
    arms, split = words[:n_arms], next(iter(words[n_arms:]), None)
    for word, known in [*((arm, list(experiment.arms)) for arm in arms), *([(split, experiment.splits)] if split else [])]:
        if word not in known:
            raise DataError(
                f"{source}: block {printable(name)!r}: no {printable(word)!r} in results.json; it has {', '.join(known)}"
            )
    if what == "success":
        return percent(experiment.mean(arms[0], split), " %")
    if what == "score":
        return percent(experiment.mean(arms[0], split, "score"))
    if what == "difference":
        return points(experiment.difference(arms[0], arms[1], split), " points")
    if what == "detectable":
        return detectable_text(experiment)
    return times(experiment.speedup(arms[0], "flops" if what == "speedup-flops" else "wall_seconds"))


# --- files


def _texts(folder: Path, experiment: Experiment) -> dict[str, str]:
    """File name to what it is to hold, figures apart."""
    texts = {TABLES: tables_text(experiment)}
    readme = Path(folder) / README
    if readme.is_file():
        texts[README] = fill_blocks(readme.read_text(encoding="utf-8"), experiment, str(readme))
    return texts


def write_tables(folder: Path) -> list[Path]:
    """Writes `tables.md` and the figures (SVG) of `folder`/results.json beside it, and fills the blocks of its README.md, if it has one.

    Returns what was written. Figures that the results no longer have are deleted. Raises `MissingFileError` or
    `DataError`.
    """
    folder, experiment = Path(folder), read_experiment(folder)
    files = {**_texts(folder, experiment), **draw_figures(experiment)}
    for name, content in files.items():
        with atomic_write(folder / name) as file:
            file.write(content)
    for name in FIGURES:
        if f"{name}.svg" not in files:
            (folder / f"{name}.svg").unlink(missing_ok=True)
    return [folder / name for name in files]


def fill_page(folder: Path, page: Path) -> None:
    """Fills the blocks of a Markdown page elsewhere that name the results of `folder`: `<!-- gradprism: FOLDER success gini -->`."""
    if not page.is_file():
        raise MissingFileError(f"{page}: no such file")
    text = page.read_text(encoding="utf-8")
    filled = fill_blocks(text, read_experiment(folder), str(page), prefix=Path(folder).resolve().name)
    if filled != text:
        with atomic_write(page) as file:
            file.write(filled)


def tables_are_current(folder: Path) -> list[str]:
    """Names of the files that `write_tables` would change; writes nothing.

    Matplotlib draws the same picture in other bytes from version to version: a figure that another version drew is only looked for.
    """
    folder, experiment = Path(folder), read_experiment(folder)
    held = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir() if path.suffix in (".md", ".svg")}
    stale = [name for name, text in _texts(folder, experiment).items() if held.get(name) != text]
    version, figures = matplotlib_version(), draw_figures(experiment)
    for name in FIGURES:
        file = f"{name}.svg"
        differs = file in figures and drawn_by(held.get(file, "")) == version and held[file] != figures[file]
        if differs or (file in held) != has_figure(experiment, name):
            stale.append(file)
    return stale
