"""Plays a fixed list of tasks and writes every episode down, batch by batch, so that a run that is cut short goes on where it was."""

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Environment, Task
from gradprism.environments.registry import as_environment
from gradprism.evaluation.agents import Agent, ModelAgent, ScriptedAgent
from gradprism.evaluation.config import EvaluationConfig
from gradprism.evaluation.summary import SuccessRow, headline, summarise
from gradprism.rollouts.episode import Episode
from gradprism.rollouts.player import model_and_tokenizer
from gradprism.runtime.errors import DataError
from gradprism.runtime.files import append_jsonl, read_jsonl, sha256_json, write_json, write_jsonl, writing
from gradprism.runtime.folders import FolderKind, OnExisting, exclusive_lock
from gradprism.runtime.progress import Progress
from gradprism.runtime.usage import Usage

EPISODES, BATCHES, SUMMARY = "episodes.jsonl", "batches.jsonl", "summary.json"
FOLDER = FolderKind("evaluation", identity="tasks_sha256", own=(SUMMARY, BATCHES, EPISODES))
_LOCK = ".evaluation.tmp"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation's `rows`, what all its attempts used, its `episodes` in the order of tasks, and how many engines had to be replaced.

    `remarks` are the environment's about these tasks (`Environment.remarks`). Episodes that an earlier attempt wrote have no tokens.
    """

    rows: tuple[SuccessRow, ...]
    usage: Usage
    episodes: tuple[Episode, ...]
    worker_restarts: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """Success of each split in one line."""
        return headline(self.rows)

    def to_json(self) -> dict[str, Any]:
        """Rows and usage: `summary.json`."""
        rows = [asdict(row) for row in self.rows]
        return {"rows": rows, "usage": self.usage.to_json(), "worker_restarts": self.worker_restarts, "remarks": self.remarks}


@dataclass(slots=True)
class _Record:
    """The batches so far in memory and, with a folder, in its files; a line of `batches.jsonl` is a batch's usage and restarts."""

    folder: Path | None = None
    episodes: list[Episode] = field(default_factory=list)
    batches: list[dict[str, float]] = field(default_factory=list)

    def add(self, episodes: Sequence[Episode], used: Usage, restarts: int) -> None:
        """Adds a batch. It counts once its costs are written, which come last."""
        self.episodes += episodes
        self.batches.append({**used.to_json(), "worker_restarts": restarts})
        if self.folder is not None:
            path = self.folder / EPISODES
            with writing(path), open(path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(e.to_json(), ensure_ascii=False, allow_nan=False) + "\n" for e in episodes)
            append_jsonl(self.folder / BATCHES, self.batches[-1])

    def evaluation(self, remarks: Sequence[str]) -> Evaluation:
        """All of it summed up."""
        usage = sum(map(Usage.from_json, self.batches), Usage())
        restarts = sum(int(batch["worker_restarts"]) for batch in self.batches)
        return Evaluation(tuple(summarise(self.episodes)), usage, tuple(self.episodes), restarts, tuple(remarks))


def evaluate(
    agent: Agent | Any,
    environment: Environment | str,
    config: EvaluationConfig = EvaluationConfig(),
    *,
    out: Path | str | None = None,
    workers: int | None = None,
    on_existing: OnExisting = "resume",
    remarks: Sequence[str] = (),
) -> Evaluation:
    """Plays every task of `config`, `config.attempts` times: greedily, unless it sets a temperature.

    `agent` is an `Agent`, `"expert"`, `"random"`, or a model: loaded, or by its folder, hub id or `ModelSpec`; `environment` may be the
    name of one. Tasks are played in batches of `config.in_flight`, each with a seed of its own, so that a batch depends on nothing before
    it. With `out` each batch is written as it ends: `episodes.jsonl` has the transcripts in the order of tasks, `summary.json` the rows;
    the same call goes on after a kill. `remarks` are the caller's own, kept beside those of the environment.

    Raises `FolderInUseError` where `out` holds something else or another evaluation (the keys that differ are named), or is being
    written to; `ConfigError` for unknown splits or task types; `DataError` for a folder whose files do not fit together.
    """
    environment = as_environment(environment)
    chosen = [task for split, n in config.splits.items() for task in environment.tasks(split, n, config.start, config.task_type)]
    tasks = [task for task in chosen for _ in range(config.attempts)]
    batches = [tasks[i : i + config.in_flight] for i in range(0, len(tasks), config.in_flight)]
    if out is not None:
        out = Path(out).expanduser()
        FOLDER.check(out, on_existing)  # before a model is loaded
    player = as_agent(agent)
    with contextlib.ExitStack() as stack:
        record = _Record()
        if out is not None:
            stack.enter_context(exclusive_lock(out, _LOCK, "is being evaluated into"))
            record = _claim(out, _manifest(player, environment, config, tasks), on_existing, batches)
        pool = stack.enter_context(SessionPool(environment, workers))
        progress = stack.enter_context(Progress("episodes", len(tasks)))
        progress.begin(len(tasks), len(record.episodes))
        won = sum(episode.success for episode in record.episodes)

        def on_done(episode: Episode) -> None:
            nonlocal won
            won += episode.success
            progress.advance(1, f"{won} won")

        for index in range(len(record.batches), len(batches)):
            clock, cpu, restarts = time.perf_counter(), time.process_time(), pool.restarts
            seed = int(sha256_json([config.seed, index])[:8], 16)
            episodes, used = player.play(environment, pool, batches[index], config, seed, on_done)
            used = replace(used, wall_seconds=time.perf_counter() - clock, cpu_seconds=time.process_time() - cpu)
            record.add(episodes, used, pool.restarts - restarts)
        evaluation = record.evaluation([*environment.remarks(tasks), *remarks])
        if out is not None:
            write_json(out / SUMMARY, evaluation.to_json())
    return evaluation


def as_agent(agent: Agent | Any) -> Agent:
    """The agent that `evaluate` was given, by whatever name."""
    if agent in ("expert", "random"):
        return ScriptedAgent(agent)  # pyright: ignore[reportArgumentType]
    return agent if hasattr(agent, "play") else ModelAgent(*model_and_tokenizer(agent))


def _manifest(agent: Agent, environment: Environment, config: EvaluationConfig, tasks: Sequence[Task]) -> dict[str, Any]:
    return {
        "agent": dict(agent.description()),
        "environment": environment.identity(tasks),
        "tasks_sha256": sha256_json([task.reference() for task in tasks]),
        "config": config.model_dump(),
    }


def _claim(out: Path, manifest: Mapping[str, Any], on_existing: OnExisting, batches: Sequence[Sequence[Task]]) -> _Record:
    """Makes the folder this evaluation's; the batches that it holds. What a run wrote of its last, unfinished batch is played again."""
    if not FOLDER.claim(out, manifest, on_existing):
        return _Record(out)
    costs = read_jsonl(out / BATCHES, stop_at_torn=True)[: len(batches)]
    finished = [task.id for batch in batches[: len(costs)] for task in batch]
    transcripts = read_jsonl(out / EPISODES, stop_at_torn=True)[: len(finished)]
    try:
        episodes = [Episode.from_json(transcript) for transcript in transcripts]
        fits = [episode.task.id for episode in episodes] == finished
    except (KeyError, TypeError, ValueError):
        episodes, fits = [], False
    if not fits:
        raise DataError(f"{out / EPISODES}: does not hold the episodes that {BATCHES} tells of; give --on-existing replace")
    write_jsonl(out / EPISODES, transcripts)
    write_jsonl(out / BATCHES, costs)
    return _Record(out, episodes, costs)
