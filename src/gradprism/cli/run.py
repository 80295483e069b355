"""`gradprism run`, and what a dry run of any experiment prints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import gradprism as gp
from gradprism.cli.options import AsJson, DryRun, Fresh, Overrides, print_json
from gradprism.experiments.experiment import Job, job_status
from gradprism.reporting.pages import print_status, print_tables
from gradprism.runtime.progress import tell
from gradprism.studio.api import REPORT


def command(
    config: Annotated[Path, typer.Argument(help="TOML file, for example configs/quickstart.toml.")],
    set_: Overrides = None,
    fresh: Fresh = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Finished stages are reused, and a changed value redoes only what depends on it."""
    run_and_print(config, set_, dry_run, as_json, fresh)


def run_and_print(config: Path, overrides: Sequence[str] | None, dry_run: bool, as_json: bool, fresh: bool = False) -> None:
    """Runs a configuration and prints its tables; with `dry_run` only says what would run."""
    resolved = gp.load_config(config, overrides or [])
    if dry_run:
        print_job(Job(resolved, resolved.folder, replace=True, fresh=fresh), as_json)
        return
    results = gp.run(resolved, fresh=fresh)
    if as_json:
        print_json(results.model_dump(mode="json", exclude_defaults=True))
        return
    print_tables(resolved.folder, Console())
    tell(f"\nreport: {resolved.folder / REPORT}")


def print_job(job: Job, as_json: bool, as_run: bool = True) -> None:
    """What of a job is done, running and pending, and the time that is left; as JSON also its configuration.

    `as_run`: refuse what a run of it would refuse.
    """
    state, folder = job_status(job, as_run=as_run), job.config.folder
    if as_json:
        about = {"folder": str(folder), "results": str(job.out), "jobs": job.jobs, "config": job.config.model_dump(mode="json")}
        print_json(about | state.model_dump(mode="json"))
        return
    print_status(str(folder), state, job.jobs or 1, Console())
