"""Documents of text, tables and figures, written as Markdown, as HTML or to a terminal.

Whatever comes from data is escaped here, and nowhere else: a name is never markup, and steers no terminal.
"""

import html
import re
from collections.abc import Mapping, Sequence
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
    """Rows of text; the first `names` columns hold names and stand to the left, all others numbers."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1


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


# The browser itself refuses every request and every script.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
h1, li, p { overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .55rem; text-align: right; border-bottom: 1px solid #e6e6e6; vertical-align: top; }
th.name, td.name { text-align: left; }
svg { max-width: 100%; height: auto; }
figcaption { color: #666; font-size: .9rem; }
""".strip()


def page(title: str, blocks: Sequence[Block], figures: Mapping[str, str]) -> str:
    """One HTML file that asks the network for nothing and runs nothing; `figures` are SVG texts by their names."""
    body = "\n".join(_html(block, figures) for block in blocks if block)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)} · gradprism</title>\n<style>\n{_STYLE}\n</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _text(text: str) -> str:
    return html.escape(printable(text))


def _html(block: Block, figures: Mapping[str, str]) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_text(block.text)}</h{block.level}>"
    if isinstance(block, Figure):
        svg = figures[block.name]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
        return f"<figure>{svg}<figcaption>{_text(block.caption)}</figcaption></figure>"
    if isinstance(block, str):
        lines = [_inline(line) for line in block.splitlines() if line]
        if all(line.startswith("- ") for line in lines):
            return f"<ul>{''.join(f'<li>{line[2:]}</li>' for line in lines)}</ul>"
        return f"<p>{'<br>'.join(lines)}</p>"

    def row(tag: str, cells: Sequence[str]) -> str:
        shown = [
            f'<{tag} class="name">{_text(cell)}</{tag}>' if i < block.names else f"<{tag}>{_inline(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        ]
        return f"<tr>{''.join(shown)}</tr>"

    rows = "\n".join(row("td", cells) for cells in block.rows)
    return f"<div><table><thead>{row('th', block.headings)}</thead><tbody>\n{rows}\n</tbody></table></div>"


def _inline(text: str) -> str:
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", _text(text))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", re.sub(r"\*([^*\s][^*]*)\*", r"<em>\1</em>", text))


def show(title: str, table: Table, console: Console) -> None:
    """Prints a table without its empty columns; headings stand a word per line, so that a column is no wider than its figures need."""
    kept = [i for i in range(len(table.headings)) if i < table.names or any(row[i] not in ("-", "–") for row in table.rows)]
    table = Table([table.headings[i] for i in kept], [[row[i] for i in kept] for row in table.rows], table.names)
    close = (0, 1, 0, 0) if len(table.headings) < 9 else 0
    said = Text(printable(title)) if title else None
    shown = RichTable(title=said, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=close)
    for i, heading in enumerate(table.headings):
        words = Text("\n".join(map(printable, heading.split())))
        shown.add_column(words, justify="left" if i < table.names else "right", overflow="fold", vertical="bottom")
    for row in table.rows:
        # Text, not str: a name such as "[red]" is data, never markup.
        shown.add_row(*(Text(printable(cell.replace("**", ""))) for cell in row))
    console.print(shown)
