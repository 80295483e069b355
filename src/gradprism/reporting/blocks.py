"""Markers in Markdown pages between which numbers and tables of results are filled in, so that none is typed."""

import re
from collections.abc import Callable, Collection
from pathlib import Path

from gradprism.runtime.errors import DataError, MissingFileError, one_line
from gradprism.runtime.files import atomic_write

_BLOCK = re.compile(r"<!-- gradprism: (.*?) -->.*?(<!-- /gradprism -->|(?=<!-- gradprism: )|\Z)", re.DOTALL)


def fill(text: str, told: Callable[[str], str], source: str, prefix: str = "", others: Collection[str] = ()) -> str:
    """`text` with what `told` says of NAME between each `<!-- gradprism: NAME -->` and `<!-- /gradprism -->`; with a prefix, only of
    blocks "PREFIX NAME". Blocks whose first word is one of `others` are left as they are.

    Raises `DataError` with the file `source` for a block that does not end before the next, and for a marker that does not end in its line.
    """
    begin = f"{prefix} " if prefix else ""

    def filled(block: re.Match[str]) -> str:
        name = block[1]
        if "\n" in name or "-->" in name or "<!--" in name:
            begun = name.split("-->")[0].split("\n")[0]
            raise DataError(f"{source}: the marker of block {begun!r} does not end; end it with ' -->'")
        if not block[2]:
            raise DataError(f"{source}: block {name!r} does not end; add <!-- /gradprism -->")
        if not name.startswith(begin) or name.partition(" ")[0] in others:
            return block[0]
        body = told(name.removeprefix(begin))
        body = f"\n\n{body.strip()}\n\n" if "\n" in body else body  # as Markdown wants of a table
        return f"<!-- gradprism: {name} -->{body}<!-- /gradprism -->"

    return _BLOCK.sub(filled, text)


def read_page(path: Path) -> str:
    """The text of a page; raises `DataError` where it is no UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({one_line(error)}); save it as that") from None


def check_page(path: Path) -> None:
    """Raises `MissingFileError` where there is no page to fill."""
    if not path.is_file():
        raise MissingFileError(f"{path}: is a folder; name a page in it" if path.is_dir() else f"{path}: no such file")


def fill_file(path: Path, filled: Callable[[str], str]) -> None:
    """Writes a page again where `filled` changes its text; raises `MissingFileError` where there is none."""
    check_page(path)
    text = read_page(path)
    if (new := filled(text)) != text:
        with atomic_write(path) as file:
            file.write(new)
