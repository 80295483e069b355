"""`run` and `experiment`: an experiment and its pages."""

from collections.abc import Sequence
from pathlib import Path

from gradprism.environments.pool import default_workers
from gradprism.experiments.config import ExperimentConfig, load_config
from gradprism.experiments.experiment import Job, run_job
from gradprism.experiments.results import RESULTS, Results, has_results
from gradprism.reporting.pages import write_tables
from gradprism.studio.api import write_report


def run(config: ExperimentConfig | Path | str, *, fresh: bool = False) -> Results:
    """Runs a configuration (or the file that holds it) in this process: probe, route, SFT, RL, evaluations.

    Writes `results.json` and `report.html` into the run folder, and returns the results. Finished stages are reused, and a changed value
    redoes only what depends on it; `fresh` makes again what other code made. Raises `ConfigError` for settings that cannot work, before
    anything is paid for.
    """
    config = config if isinstance(config, ExperimentConfig) else load_config(config)
    results = run_job(Job(config, config.folder, replace=True, fresh=fresh))
    write_report(config.folder, models=config.model.path)
    return results


def experiment(
    config: ExperimentConfig | Path | str,
    *,
    results: Path | str | None = None,
    jobs: int | None = None,
    groups: Sequence[str] = (),
    arms: Sequence[str] = (),
    extend: bool = False,
    replace: bool = False,
    fresh: bool = False,
) -> Results:
    """Trains and evaluates every arm with every seed, `jobs` stages at once (default one per core), each in a process of its own.

    Writes `results.json`, `tables.md` and figures into the folder `results` (default `results/NAME`), and returns the results. Goes on
    after a kill. `groups`, `arms`, `extend`, `replace` and `fresh`: see `Job`. Raises `StageError` where a stage failed, and
    `FolderInUseError` where runs of other settings would be lost.
    """
    config = config if isinstance(config, ExperimentConfig) else load_config(config)
    out = Path(results or Path("results") / config.name)
    before = _version(out)
    try:
        return run_job(Job(config, out, jobs or default_workers(), tuple(groups), tuple(arms), extend, replace, fresh))
    finally:
        if _version(out) != before:  # also where a stage failed, but not for a folder that is refused
            write_tables(out)


def _version(folder: Path) -> tuple[int, int] | None:
    """Tells one `results.json` of a folder from the next, which takes its place; None where there is none."""
    if not has_results(folder):
        return None
    found = (folder / RESULTS).stat()
    return found.st_ino, found.st_mtime_ns
