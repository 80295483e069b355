"""`gradprism experiment`: every arm with every seed, then what came of it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradprism.environments.pool import default_workers
from gradprism.experiments.arms import ExperimentConfig, Plan, plan
from gradprism.experiments.config import load_config
from gradprism.experiments.gather import RESULTS, gather, reusable
from gradprism.experiments.schedule import run_jobs, summary
from gradprism.runtime.errors import ConfigError, FolderInUseError, MissingFileError
from gradprism.runtime.files import atomic_write, read_json, write_json


def run_experiment(
    file: Path,
    overrides: Sequence[str],
    jobs: int | None,
    groups: Sequence[str] | None,
    results: Path | None,
    extend: bool,
    replace: bool,
) -> tuple[Path, dict[str, Any]]:
    """Runs what is not done and writes `results.json`, tables and figures; the results folder, and the results.

    What is done when a stage fails is written all the same. Raises `FolderInUseError` where the results folder holds runs that this
    would lose, unless it is to `replace` them.
    """
    config, planned, out, earlier = _prepare(file, overrides, results, extend)
    wanted = _wanted(planned, groups, earlier)
    if not replace:
        _check_nothing_is_lost(planned, out, earlier)
    if wanted:
        _write_config(config.folder / "config.json", config.model_dump())
    try:
        run_jobs(planned.graph, wanted, planned.labels, jobs or default_workers(), config.threads)
    except FolderInUseError:  # another command runs it, and will write the results
        raise
    except BaseException:
        _write_results(config, planned, out, earlier)
        raise
    return out, _write_results(config, planned, out, earlier)


def _write_results(config: ExperimentConfig, planned: Plan, out: Path, earlier: dict[str, Any] | None) -> dict[str, Any]:
    """Gathers and writes what is done, where anything is."""
    from gradprism.reporting.experiment_pages import write_tables

    found = gather(config, planned, earlier)
    if earlier and found["stages"] == earlier["stages"]:  # nothing was made
        found["created"] = earlier["created"]
    if any(arm["runs"] for arm in found["arms"]):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / RESULTS, found)
        _write_config(out / "config.json", _portable(config, out))
        write_tables(out)
    return found


def _check_nothing_is_lost(planned: Plan, out: Path, earlier: dict[str, Any] | None) -> None:
    """Raises `FolderInUseError` where `out` has runs that are neither in the run folder nor kept by `--extend`."""
    if not (out / RESULTS).is_file():
        return
    kept = set(reusable(planned, earlier or {})) | {run.evaluation for run in planned.runs if planned.graph.is_done(run.evaluation)}
    there = [run.get("evaluation") for arm in _read_results(out)["arms"] for run in arm["runs"]]
    if lost := [name for name in there if name not in kept]:
        why = "are of other settings" if earlier is not None else "were not made here; give --extend to keep them"
        raise FolderInUseError(
            f"{out / RESULTS}: {len(lost)} of its {len(there)} runs {why}; choose another --results, or --replace to give them up"
        )


def _write_config(path: Path, values: dict[str, Any]) -> None:
    """As JSON in the order of the configuration, where the first of the evaluation's splits is the main one."""
    with atomic_write(path) as file:
        file.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _portable(config: ExperimentConfig, out: Path) -> dict[str, Any]:
    """The configuration with paths relative to `out`, so that it replays the experiment from another checkout."""

    def relative(path: str) -> str:
        return os.path.relpath(path, out.resolve()) if Path(path).is_absolute() else path

    values = config.model_dump()
    values["model"]["path"] = relative(config.model.path)
    if config.model.chat_template:
        values["model"]["chat_template"] = relative(config.model.chat_template)
    values["corpus"]["files"] = [relative(file) for file in config.corpus.files]
    return values


def describe_experiment(
    file: Path, overrides: Sequence[str], jobs: int | None, groups: Sequence[str] | None, results: Path | None, extend: bool
) -> dict[str, Any]:
    """What is done, running and owed; trains nothing."""
    config, planned, out, earlier = _prepare(file, overrides, results, extend)
    jobs = jobs or default_workers()
    wanted = _wanted(planned, groups, earlier)
    return {"folder": str(config.folder), "results": str(out), "jobs": jobs, **summary(planned.graph, wanted, planned.labels, jobs)}


def _prepare(
    file: Path, overrides: Sequence[str], results: Path | None, extend: bool
) -> tuple[ExperimentConfig, Plan, Path, dict[str, Any] | None]:
    config = load_config(file, overrides, ExperimentConfig)
    out = results or Path("results") / config.name
    if extend and not (out / RESULTS).is_file():
        raise MissingFileError(f"{out / RESULTS}: no such file, so there is nothing to extend")
    return config, plan(config), out, _read_results(out) if extend else None


def _read_results(out: Path) -> dict[str, Any]:
    """The `results.json` of a folder, checked; raises `DataError` naming what is wrong."""
    from gradprism.reporting.experiment_results import Experiment

    results = read_json(out / RESULTS)
    Experiment(results, str(out / RESULTS))
    return results


def _wanted(planned: Plan, groups: Sequence[str] | None, earlier: dict[str, Any] | None) -> list[str]:
    """The evaluations of the groups' arms that earlier results lack, and the audit's probes."""
    known = {run.arm.group for run in planned.runs}
    if unknown := set(groups or ()) - known:
        raise ConfigError(f"--group {sorted(unknown)[0]}: no arm is in it; choose from {', '.join(sorted(known))}")
    there = reusable(planned, earlier or {})
    runs = [run for run in planned.runs if (not groups or run.arm.group in groups) and run.evaluation not in there]
    # Audits that results have, with all probes that are asked for, need none of them again.
    known = set((earlier or {}).get("stages", {})) if (earlier or {}).get("audits") else set()
    audits = [] if known >= set(planned.audits.values()) else list(planned.audits.values())
    return [run.evaluation for run in runs] + audits
