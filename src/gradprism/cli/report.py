"""`gradprism report`: the tables and the HTML page of a run or an experiment."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that holds results.json.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="HTML file to write; DIR/report.html if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.")] = False,
) -> None:
    """Write a report as one HTML file that needs no network, and print its tables."""
    from rich.console import Console

    from gradprism.cli.options import print_json
    from gradprism.experiments.results import read_results
    from gradprism.reporting.pages import print_tables, write_report

    path = write_report(folder, out)
    if as_json:
        print_json(read_results(folder).model_dump(mode="json", exclude_defaults=True))
        return
    print_tables(folder, Console())
    typer.echo(f"report: {path}")
