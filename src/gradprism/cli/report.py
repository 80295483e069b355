"""`gradprism report`: the tables and the HTML page of a run or an experiment."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import gradprism as gp
from gradprism.cli import options as o
from gradprism.reporting.pages import print_tables
from gradprism.runtime.progress import tell
from gradprism.studio.api import write_report


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that holds results.json.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="HTML file to write; DIR/report.html if not given.")] = None,
    as_json: o.AsJson = False,
) -> None:
    """Write the studio's pages of a folder as one HTML file that needs no network, and print its tables."""
    path = write_report(folder, out)
    if as_json:
        o.print_json(gp.read_results(folder).model_dump(mode="json", exclude_defaults=True))
        return
    print_tables(folder, Console())
    tell(f"report: {path}")
