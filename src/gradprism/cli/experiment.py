"""`gradprism experiment`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import gradprism as gp
from gradprism.cli import options as o
from gradprism.cli.help import Command, Group, new_app
from gradprism.cli.run import print_job
from gradprism.environments.pool import default_workers
from gradprism.experiments.experiment import Job
from gradprism.experiments.folders import GAIN, check_holds_gain, is_being_run
from gradprism.experiments.gain import gain_status, measure_gain, read_gain
from gradprism.experiments.results import Power
from gradprism.reporting.blocks import check_page, fill_file
from gradprism.reporting.checks import power_lines, power_tables
from gradprism.reporting.document import show
from gradprism.reporting.gain_page import fill_gain_blocks, write_gain_page
from gradprism.reporting.pages import fill_page, print_status, tables_are_current, write_tables
from gradprism.runtime.errors import ConfigError, DataError
from gradprism.runtime.progress import tell

Config = Annotated[Path, typer.Argument(help="TOML file, for example configs/alfworld-mini.toml.")]
Groups = Annotated[list[str] | None, typer.Option("--group", help="Only arms of this group. May be repeated.")]
Arms = Annotated[list[str] | None, typer.Option("--arm", help="Only this arm, and those of --group. May be repeated.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Stages at once; default one per core.")]


class _RunByDefault(Group):
    """`experiment CONFIG` is `experiment run CONFIG`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = new_app(_RunByDefault)


@app.command("run", cls=Command)
def run(
    config: Config,
    set_: o.Overrides = None,
    jobs: Jobs = None,
    group: Groups = None,
    arm: Arms = None,
    results: Annotated[Path | None, typer.Option(help="Folder of results.json, tables and figures; default results/NAME.")] = None,
    extend: Annotated[
        bool, typer.Option("--extend", help="Keep the runs that results.json already has, and make only those that it lacks.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Give up the runs of results.json that were not made here.")] = False,
    fresh: o.Fresh = False,
    dry_run: o.DryRun = False,
    as_json: o.AsJson = False,
) -> None:
    """Trains and evaluates every arm with every seed; finished stages are reused, and a killed run goes on with the same command."""
    job = _job(config, set_, jobs, results, group, arm, extend, replace, fresh)
    if dry_run:
        print_job(job, as_json)
        return
    found = gp.experiment(
        job.config,
        results=job.out,
        jobs=job.jobs,
        groups=job.groups,
        arms=job.arms,
        extend=extend,
        replace=replace,
        fresh=fresh,
    )
    if as_json:
        o.print_json(found.model_dump(mode="json", exclude_defaults=True))
        return
    tell((job.out / "tables.md").read_text(encoding="utf-8"))


def _job(
    config: Path,
    overrides: list[str] | None,
    jobs: int | None,
    results: Path | None,
    groups: list[str] | None,
    arms: list[str] | None,
    *flags: bool,
) -> Job:
    resolved = gp.load_config(config, overrides or [])
    out = results or Path("results") / resolved.name
    return Job(resolved, out, jobs or default_workers(), tuple(groups or ()), tuple(arms or ()), *flags)


@app.command("status", cls=Command)
def status(
    config: Config,
    set_: o.Overrides = None,
    jobs: Jobs = None,
    group: Groups = None,
    arm: Arms = None,
    results: Annotated[Path | None, typer.Option(help="Folder of results.json; default results/NAME.")] = None,
    extend: Annotated[bool, typer.Option("--extend", help="As it was run.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="As it was run.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Shows what is done, running and pending, and the time left; the same as a dry run."""
    job = _job(config, set_, jobs, results, group, arm, extend, replace)
    # A run that is in progress was not refused, whatever its options were.
    print_job(job, as_json, as_run=not is_being_run(job.config.folder))


@app.command("power", cls=Command)
def power(
    config: Config,
    set_: o.Overrides = None,
    seed_sd: Annotated[
        float | None, typer.Option(min=0, max=100, help="Points by which an arm's success varies over training seeds.")
    ] = None,
    task_sd: Annotated[
        float | None, typer.Option(min=0, max=100, help="Points by which the difference of two arms varies over tasks.")
    ] = None,
    success: Annotated[float | None, typer.Option(min=0, max=100, help="Success around which arms lie, in percent.")] = None,
) -> None:
    """Shows the difference that each claim could detect, before anything is run; assumptions default to those of `[power]`."""
    resolved = gp.load_config(config, set_ or [])
    given = {"seed_sd": seed_sd, "task_sd": task_sd, "success": success}
    assumed = (resolved.power or Power()).model_copy(update={k: v / 100 for k, v in given.items() if v is not None})
    tell(power_lines(assumed))
    of_claims, by_seeds = power_tables(resolved, assumed)
    if resolved.claims:
        show("Detectable difference of each claim, points", of_claims, Console())
    show("By the number of training seeds, points", by_seeds, Console())


@app.command("gain", cls=Command)
def gain(
    config: Config,
    set_: o.Overrides = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Stages at once, each in a process; default one after another in this.")
    ] = None,
    results: Annotated[Path | None, typer.Option(help="Folder of gain.json and its page; default results/NAME.")] = None,
    dry_run: o.DryRun = False,
) -> None:
    """Trains on each of many groups of similar trajectories alone, by SFT and by RL, and shows which scores predict the gain.

    Finished stages are reused, and a killed run goes on with the same command.
    """
    resolved = gp.load_config(config, set_ or [])
    out = results or Path("results") / resolved.name
    check_holds_gain(out)  # before a page is written
    if dry_run:
        print_status(str(resolved.folder), gain_status(resolved, jobs or 1), jobs or 1, Console())
        return
    try:
        found = measure_gain(resolved, out, jobs)
    finally:
        if (out / GAIN).is_file():
            page = write_gain_page(out)
    if found is None:
        raise DataError(f"{resolved.folder}: fewer than 5 groups are measured, too few to correlate with anything")
    tell(page.read_text(encoding="utf-8"))


@app.command("gain-page", cls=Command)
def gain_page(
    folder: Annotated[Path, typer.Argument(help="Results folder, for example results/gain-webshop.")],
    page: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Also fill this Markdown file's blocks of that folder. May be repeated."),
    ] = None,
) -> None:
    """Writes the page of measured gains again, from gain.json."""
    for path in page or ():  # before anything is written
        check_page(path)
    tell(str(write_gain_page(folder)))
    measured, name = read_gain(folder), folder.resolve().name
    for path in page or ():
        fill_file(path, lambda text, path=path: fill_gain_blocks(text, measured, str(path), name))
        tell(str(path))


@app.command("tables", cls=Command)
def tables(
    folder: Annotated[Path, typer.Argument(help="Results folder, for example results/alfworld-mini.")],
    page: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Also fill this Markdown file's blocks of that folder. May be repeated."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail where a table or figure is out of date.")] = False,
) -> None:
    """Rebuilds every table and figure from results.json."""
    if check and page:
        raise ConfigError("--page: --check looks only at the folder's own files; leave one of them out")
    if check:
        if stale := tables_are_current(folder):
            raise DataError(f"{folder}: out of date: {', '.join(stale)}; run gradprism experiment tables {folder}")
        tell(f"{folder}: up to date")
        return
    for path in page or ():  # before anything is written
        check_page(path)
    for path in write_tables(folder):
        tell(str(path))
    for path in page or ():
        fill_page(folder, path)
        tell(str(path))
