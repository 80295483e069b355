"""`gradprism report`: the tables and the HTML page of a finished run."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Run folder that holds results.json.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="HTML file to write; DIR/report.html if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables' rows as JSON on stdout.")] = False,
) -> None:
    """Write a run's report as one HTML file that needs no network, and print its tables."""
    import json

    from rich.console import Console

    from gradprism.reporting.html import summary, write_report
    from gradprism.reporting.tables import cost_rows, evaluation_rows, print_tables, read_results

    results = read_results(folder)
    path = out or folder / "report.html"
    write_report(results, path)
    if as_json:
        rows = {
            "report": str(path),
            "summary": summary(results),
            "evaluation": evaluation_rows(results),
            "costs": cost_rows(results),
        }
        typer.echo(json.dumps(rows))
        return
    print_tables(results, Console())
    typer.echo(f"report: {path}")
