"""Tables and numbers of audits as plain text."""

from collections.abc import Iterator, Sequence


def number(value: float | None) -> str:
    """With two digits; a dash for none."""
    return "–" if value is None else f"{value:.2f}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table between empty ones, the first column left-aligned."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    yield ""
    for first, *others in (headings, *rows):
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield "  ".join((first.ljust(widths[0]), *cells)).rstrip()
    yield ""
