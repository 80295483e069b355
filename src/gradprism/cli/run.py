"""`gradprism run`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gradprism.cli.options import AsJson, DryRun, Overrides, print_json
from gradprism.experiments.config import load_config
from gradprism.experiments.pipeline import describe, run_pipeline
from gradprism.reporting.tables import print_tables
from gradprism.runtime import progress


def command(
    config: Annotated[Path, typer.Argument(help="TOML file, for example configs/quickstart.toml.")],
    set_: Overrides = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Finished stages are reused, and a changed value redoes only what depends on it."""
    run_and_print(config, set_, dry_run, as_json)


def run_and_print(config: Path, overrides: Sequence[str] | None, dry_run: bool, as_json: bool) -> None:
    """Runs a configuration and prints its tables; with `dry_run` only says what would run."""
    progress.set_quiet(as_json)
    resolved = load_config(config, overrides or [])
    if dry_run:
        print_json(describe(resolved))
        return
    results = run_pipeline(resolved)
    if as_json:
        print_json(results)
        return
    print_tables(results, Console())
    print(f"\nreport: {resolved.folder / 'report.html'}")
