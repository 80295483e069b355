"""`gradprism run`."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    config: Annotated[Path, typer.Argument(help="TOML file, for example configs/quickstart.toml.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a value: section.key=value. May be repeated.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and what would run, then stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON and no progress.")] = False,
) -> None:
    """Runs the pipeline; finished stages are reused, and a changed value redoes only what depends on it."""
    from gradprism.cli.options import print_json
    from gradprism.experiments.config import load_config
    from gradprism.experiments.pipeline import describe, run_pipeline
    from gradprism.runtime import progress

    progress.set_quiet(as_json)
    resolved = load_config(config, set_ or [])
    if dry_run:
        print_json(describe(resolved))
        return
    results = run_pipeline(resolved)
    if as_json:
        print_json(results)
        return
    from rich.console import Console

    from gradprism.reporting.tables import print_tables

    print_tables(results, Console())
    print(f"\nreport: {resolved.folder / 'report.html'}")
