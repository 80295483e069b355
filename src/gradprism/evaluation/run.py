"""Plays a fixed list of tasks and writes every episode down, batch by batch, so that a run that is cut short goes on where it was."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Environment, Task
from gradprism.evaluation.agents import Agent, ModelAgent, ScriptedAgent
from gradprism.evaluation.config import EvaluationConfig
from gradprism.evaluation.summary import SuccessRow, headline, summarise
from gradprism.models import ModelSpec, tokenizer_source
from gradprism.rollouts.episode import Episode
from gradprism.runtime.errors import DataError
from gradprism.runtime.files import read_jsonl, sha256_json, write_json, write_jsonl, writing
from gradprism.runtime.folders import FolderKind, OnExisting, exclusive_lock
from gradprism.runtime.progress import Progress
from gradprism.runtime.usage import Usage
from gradprism.trajectories.rendering import load_tokenizer

EPISODES, BATCHES, SUMMARY = "episodes.jsonl", "batches.jsonl", "summary.json"
FOLDER = FolderKind("evaluation", identity="tasks_sha256", own=(SUMMARY, BATCHES, EPISODES))
_LOCK = ".evaluation.tmp"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation's `rows`, what all its attempts used, its `episodes` in the order of tasks, and how many engines had to be replaced.

    Episodes that an earlier attempt wrote have no tokens.
    """

    rows: tuple[SuccessRow, ...]
    usage: Usage
    episodes: tuple[Episode, ...]
    worker_restarts: int = 0

    @property
    def headline(self) -> str:
        """Success of each split in one line."""
        return headline(self.rows)

    def to_json(self) -> dict[str, Any]:
        """Rows and usage: `summary.json`."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        return {"rows": rows, "usage": self.usage.to_json(), "worker_restarts": self.worker_restarts}


@dataclass(slots=True)
class _Record:
    """The episodes and costs of the batches so far, in memory and, with a folder, in its files."""

    folder: Path | None = None
    episodes: list[Episode] = field(default_factory=list)
    costs: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, episodes: Sequence[Episode], cost: Mapping[str, Any]) -> None:
        """Adds a batch. It counts once its costs are written, which come last."""
        self.episodes += episodes
        self.costs.append(cost)
        if self.folder is not None:
            _append(self.folder / EPISODES, [episode.to_json() for episode in episodes])
            _append(self.folder / BATCHES, [cost])


def evaluate(
    agent: Agent | Any,
    environment: Environment,
    config: EvaluationConfig = EvaluationConfig(),
    *,
    out: Path | str | None = None,
    workers: int | None = None,
    on_existing: OnExisting = "resume",
) -> Evaluation:
    """Plays every task of `config`: greedily, unless it sets a temperature.

    `agent` is an `Agent`, `"expert"`, `"random"`, or a model by its folder, hub id or `ModelSpec`. Tasks are played in batches of
    `config.in_flight`, each with a seed of its own, so that a batch depends on nothing before it. With `out` each batch is written as it
    ends: `episodes.jsonl` has the transcripts in the order of tasks, `summary.json` the rows; the same call goes on after a kill.

    Raises `FolderInUseError` where `out` holds something else or another evaluation (the keys that differ are named), or is being
    written to; `ConfigError` for unknown splits or task types; `DataError` for a folder whose files do not fit together.
    """
    tasks = [task for split, n in config.splits.items() for task in environment.tasks(split, n, config.start, config.task_type)]
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
        for index, progress in _pending(record, batches, len(tasks)):
            clock, cpu, restarts = time.perf_counter(), time.process_time(), pool.restarts
            seed = int(sha256_json([config.seed, index])[:8], 16)
            episodes, costs = player.play(environment, pool, batches[index], config, seed, progress)
            seconds = {"wall_seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - cpu}
            record.add(episodes, {**dataclasses.asdict(costs), **seconds, "worker_restarts": pool.restarts - restarts})
        evaluation = _evaluation(record)
        if out is not None:
            write_json(out / SUMMARY, evaluation.to_json())
    return evaluation


def as_agent(agent: Agent | Any) -> Agent:
    """The agent that `evaluate` was given, by whatever name."""
    if agent in ("expert", "random"):
        return ScriptedAgent(agent)  # pyright: ignore[reportArgumentType]
    if isinstance(agent, str | Path):
        agent = ModelSpec(str(agent))
    if isinstance(agent, ModelSpec):
        return ModelAgent(agent.load(), load_tokenizer(tokenizer_source(agent.path), agent.chat_template))
    return agent


def _pending(record: _Record, batches: Sequence[Sequence[Task]], total: int) -> Iterator[tuple[int, Any]]:
    """The numbers of the batches that are still to be played, each with what tells the progress of an episode."""
    won = sum(episode.success for episode in record.episodes)
    with Progress("episodes", total) as progress:
        if record.episodes:
            progress.advance(len(record.episodes), f"{won} won")

        def on_done(episode: Episode) -> None:
            nonlocal won
            won += episode.success
            progress.advance(1, f"{won} won")

        for index in range(len(record.costs), len(batches)):
            yield index, on_done


def _evaluation(record: _Record) -> Evaluation:
    totals = {name: sum(cost[name] for cost in record.costs) for name in record.costs[0]}
    usage = Usage(
        tokens_forward=totals["tokens_read"],
        tokens_generated=totals["tokens_generated"],
        environment_steps=totals["environment_steps"],
        wall_seconds=totals["wall_seconds"],
        cpu_seconds=totals["cpu_seconds"],
    )
    return Evaluation(tuple(summarise(record.episodes)), usage, tuple(record.episodes), totals["worker_restarts"])


def _manifest(agent: Agent, environment: Environment, config: EvaluationConfig, tasks: Sequence[Task]) -> dict[str, Any]:
    # Options set an environment apart from others of its name; where its data lies does not.
    options = {f.name: getattr(environment, f.name) for f in dataclasses.fields(environment) if f.name != "data_dir"}  # pyright: ignore[reportArgumentType] # each is a dataclass
    return {
        "agent": dict(agent.description()),
        "environment": {**options, "name": environment.name},
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


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
