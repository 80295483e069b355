"""Documents of text, tables and figures, written as Markdown or to a terminal.

Whatever comes from data is escaped here, and nowhere else: a name is never markup, and steers no terminal.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from gradprism.runtime.progress import printable


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the document's title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Table:
    """Rows of text; the first `names` columns hold names and stand to the left, all others numbers. A terminal without room for all shows
    no column whose heading is `spare`.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1
    spare: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """The figure in the file `name`.svg."""

    name: str
    caption: str


Block = (
    Heading | Table | Figure | str
)  # text: a paragraph, or lines that begin with "- "; `code`, **strong** and *emphasis* are marked up


def markdown(blocks: Sequence[Block]) -> str:
    """GitHub-flavoured Markdown."""
    return "\n\n".join(_markdown(block).strip("\n") for block in blocks if block) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_no_tag(block.text)}"
    if isinstance(block, Figure):
        return f"![{block.caption}]({block.name}.svg)"
    if isinstance(block, str):
        return "\n".join(map(_no_tag, block.splitlines()))
    lines = [list(map(_escape, block.headings)), [":--" if i < block.names else "--:" for i in range(len(block.headings))]]
    lines += [[_escape(cell) if i < block.names else cell for i, cell in enumerate(row)] for row in block.rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _no_tag(text: str) -> str:
    """Text that may be marked up, in which names open no tag and no comment."""
    return printable(text).replace("<", r"\<")


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", printable(text))


_NAMES = (22, 12)  # characters that names and other words are broken into lines of where there is little room, and very little
_NUMBER = len("100.0 [100.0, 100.0]")  # longer cells hold words


def show(title: str, table: Table, console: Console) -> None:
    """Prints a table without its empty columns; headings stand a word per line, so that a column is no wider than its figures need, and
    slashes without spaces: a table of ten columns is to fit into 80 characters. Names are broken into lines first, then the spare columns
    are left out, which a line says, and only where there is no room for the rest are numbers broken too; nothing is cut off.
    """
    kept = [i for i in range(len(table.headings)) if i < table.names or any(row[i] not in ("-", "–") for row in table.rows)]
    no_room = [i for i in kept if table.headings[i] in table.spare]
    if not no_room or _least_width(table, kept, _NAMES[0]) <= console.width:
        no_room = []
    if title:
        console.print(Text(printable(title), "bold"))
    console.print(_rich(table, [i for i in kept if i not in no_room], console.width))
    if no_room:
        console.print(Text(printable(f"No room here for {', '.join(table.headings[i] for i in no_room)}.")))
    console.print()


def _least_width(table: Table, columns: Sequence[int], name: int) -> int:
    """Of the table whose numbers are whole and whose names are broken into lines of `name` characters."""
    widths = [_width(table, i) for i in columns]
    least = [width if _is_number(table, i) else min(width, name) for i, width in zip(columns, widths, strict=True)]
    return sum(least) + _gap(table) * (len(columns) - 1)


def _rich(table: Table, columns: Sequence[int], room: int) -> RichTable:
    shown = RichTable(box=box.SIMPLE_HEAD, padding=(0, _gap(table) - 1, 0, 0))
    shown.pad_edge = shown.show_edge = False
    fits = _least_width(table, columns, _NAMES[1]) <= room
    for i in columns:
        width = _width(table, i) if fits and _is_number(table, i) else None
        side = "left" if i < table.names else "right"
        shown.add_column(Text(_heading(table, i)), justify=side, overflow="fold", vertical="bottom", width=width)
    for row in table.rows:
        # Text, not str: a name such as "[red]" is data, never markup.
        shown.add_row(*(Text(_cell(row[i])) for i in columns))
    return shown


def _gap(table: Table) -> int:
    return 2 if len(table.headings) < 9 else 1


def _is_number(table: Table, column: int) -> bool:
    return column >= table.names and all(len(_cell(row[column])) <= _NUMBER for row in table.rows)


def _width(table: Table, column: int) -> int:
    texts = [*_heading(table, column).splitlines(), *(_cell(row[column]) for row in table.rows)]
    return max(map(cell_len, texts), default=1)


def _heading(table: Table, column: int) -> str:
    return "\n".join(map(printable, table.headings[column].replace(" / ", "/ ").split()))


def _cell(text: str) -> str:
    return printable(text.replace("**", "").replace(" / ", "/"))
