"""Plays a fixed list of tasks and writes every episode down, batch by batch, so that a run that is cut short goes on where it was."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, Literal

from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Environment, Task
from gradprism.evaluation.agents import Agent
from gradprism.evaluation.config import EvaluationConfig
from gradprism.evaluation.summary import summarise
from gradprism.rollouts.episodes import Episode
from gradprism.runtime.errors import ConfigError, DataError, FolderInUseError
from gradprism.runtime.files import is_temporary, read_json, sha256_json, write_json, write_jsonl, writing
from gradprism.runtime.folders import differences
from gradprism.runtime.progress import Progress

OnExisting = Literal["resume", "replace", "fail"]
MANIFEST, EPISODES, BATCHES, SUMMARY = "manifest.json", "episodes.jsonl", "batches.jsonl", "summary.json"


def evaluate(
    agent: Agent,
    environment: Environment,
    config: EvaluationConfig,
    out: Path,
    *,
    workers: int | None = None,
    on_existing: OnExisting = "resume",
) -> dict[str, Any]:
    """Plays every task of `config` and writes `episodes.jsonl` (transcripts, in task order) and `summary.json` into `out`.

    Tasks are played in batches of `in_flight`, each with a seed of its own, so that what a batch gives depends on nothing before it.
    Returns the summary: `rows` as `summarise` gives them, and what it cost over all attempts. Raises `FolderInUseError` where `out`
    holds something else, or another evaluation: the keys that differ are named.
    """
    tasks = [task for split, n in config.splits.items() for task in environment.tasks(split, n, config.start, config.task_type)]
    manifest = {
        "agent": agent.description,
        "environment": {"name": environment.name, **_options(environment)},
        "tasks_sha256": sha256_json([task.reference() for task in tasks]),
        "config": config.model_dump(),
    }
    batches = [tasks[i : i + config.in_flight] for i in range(0, len(tasks), config.in_flight)]
    costs, transcripts = _claim(Path(out), manifest, on_existing, batches)
    with SessionPool(environment, workers) as pool, Progress("episodes", len(tasks)) as progress:
        won = sum(t["success"] for t in transcripts)
        if transcripts:
            progress.advance(len(transcripts), f"{won} won")

        def on_done(episode: Episode) -> None:
            nonlocal won
            won += episode.success
            progress.advance(1, f"{won} won")

        for index in range(len(costs), len(batches)):
            clock, restarts = time.perf_counter(), pool.restarts
            seed = int(sha256_json([config.seed, index])[:8], 16)
            episodes, statistics = agent.play(environment, pool, batches[index], config, seed, on_done)
            transcripts += [episode.transcript() for episode in episodes]
            seconds = {"wall_seconds": time.perf_counter() - clock, "worker_restarts": pool.restarts - restarts}
            costs.append({"episodes": len(episodes), **dataclasses.asdict(statistics), **seconds})
            # The batch counts once its costs are written, which come last.
            _append(out / EPISODES, transcripts[-len(episodes) :])
            _append(out / BATCHES, costs[-1:])
    totals = {key: sum(cost[key] for cost in costs) for key in costs[0]}
    totals["tokens_forward"] = totals.pop("tokens_read")
    summary = {"rows": summarise(transcripts), **totals}
    write_json(out / SUMMARY, summary)
    return summary


def check_output(folder: Path, on_existing: OnExisting) -> None:
    """Raises `FolderInUseError` where an evaluation could not be written to `folder` whatever it is, before anything dear is loaded."""
    if on_existing not in ("resume", "replace", "fail"):
        raise ConfigError(f"--on-existing {on_existing}: choose resume, replace or fail")
    if folder.exists() and not folder.is_dir():
        raise FolderInUseError(f"{folder}: exists and is not a folder; choose another --out")
    names = [p.name for p in folder.iterdir() if not is_temporary(p.name)] if folder.is_dir() else []
    if names and on_existing == "fail":
        raise FolderInUseError(f"{folder}: is not empty; choose another --out, or --on-existing resume or replace")
    if names and not (MANIFEST in names and "tasks_sha256" in read_json(folder / MANIFEST)):
        raise FolderInUseError(f"{folder}: is in use and no evaluation; choose another --out")


def _claim(
    out: Path, manifest: dict[str, Any], on_existing: OnExisting, batches: list[list[Task]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Makes the folder this evaluation's; the costs of its finished batches and their transcripts."""
    check_output(out, on_existing)
    path, costs, transcripts = out / MANIFEST, [], []
    if path.is_file() and on_existing == "resume":
        changes = differences(read_json(path), json.loads(json.dumps(manifest)))
        if changes:
            raise FolderInUseError(f"{out}: holds another evaluation ({changes}); choose another --out, or --on-existing replace")
        costs, transcripts = _read(out / BATCHES)[: len(batches)], _read(out / EPISODES)
    else:
        with writing(out):
            for name in (EPISODES, BATCHES, SUMMARY):
                (out / name).unlink(missing_ok=True)
        write_json(path, manifest)
    finished = sum(len(batch) for batch in batches[: len(costs)])
    if [t["id"] for t in transcripts[:finished]] != [task.id for batch in batches[: len(costs)] for task in batch]:
        raise DataError(f"{out / EPISODES}: is not what {BATCHES} tells of; give --on-existing replace")
    # What a run that was cut short wrote of its last batch is played again.
    if costs:
        write_jsonl(out / EPISODES, transcripts[:finished])
        write_jsonl(out / BATCHES, costs)
    else:
        (out / EPISODES).unlink(missing_ok=True)
    return costs, transcripts[:finished]


def _read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that may end in a torn one."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            rows.append(json.loads(line) if line.endswith(b"\n") else None)
        except ValueError:
            rows.append(None)
        if rows[-1] is None:
            return rows[:-1]
    return rows


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def _options(environment: Any) -> dict[str, Any]:
    """What sets an environment apart from others of its name; where its data lies does not."""
    return {f.name: getattr(environment, f.name) for f in dataclasses.fields(environment) if f.name not in ("name", "data_dir")}
