"""Documents of text, tables and figures, written as Markdown or to a terminal.

Whatever comes from data is escaped here, and nowhere else: a name is never markup, and steers no terminal.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
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
        return f"{'#' * block.level} {printable(block.text)}"
    if isinstance(block, Figure):
        return f"![{block.caption}]({block.name}.svg)"
    if isinstance(block, str):
        return "\n".join(map(printable, block.splitlines()))
    lines = [list(map(_escape, block.headings)), [":--" if i < block.names else "--:" for i in range(len(block.headings))]]
    lines += [[_escape(cell) if i < block.names else cell for i, cell in enumerate(row)] for row in block.rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", printable(text))


def show(title: str, table: Table, console: Console) -> None:
    """Prints a table without its empty columns; headings stand a word per line, so that a column is no wider than its figures need, and
    slashes without spaces: a table of ten columns is to fit into 80 characters. Of one that does not, the spare columns are left out.
    """
    kept = [i for i in range(len(table.headings)) if i < table.names or any(row[i] not in ("-", "–") for row in table.rows)]
    shown = _rich(title, table, kept)
    no_room = [table.headings[i] for i in kept if table.headings[i] in table.spare]
    if no_room and console.measure(shown, options=console.options.update(max_width=10_000)).maximum > console.width:
        shown = _rich(title, table, [i for i in kept if table.headings[i] not in no_room])
    else:
        no_room = []
    console.print(shown)
    if no_room:
        console.print(Text(printable(f"No room here for {', '.join(no_room)}.")))
    console.print()


_NUMBER = len("100.0 [100.0, 100.0]")  # is not broken into lines while there are words to break


def _rich(title: str, table: Table, columns: Sequence[int]) -> RichTable:
    close = (0, 1, 0, 0) if len(table.headings) < 9 else 0
    said = Text(printable(title)) if title else None
    shown = RichTable(title=said, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=close)
    shown.pad_edge = shown.show_edge = False
    for i in columns:
        words = Text("\n".join(map(printable, table.headings[i].replace(" / ", "/ ").split())))
        side, is_number = ("left", False) if i < table.names else ("right", max(len(row[i]) for row in table.rows) <= _NUMBER)
        shown.add_column(words, justify=side, overflow="fold", vertical="bottom", no_wrap=is_number)
    for row in table.rows:
        # Text, not str: a name such as "[red]" is data, never markup.
        shown.add_row(*(Text(printable(row[i].replace("**", "").replace(" / ", "/"))) for i in columns))
    return shown
