"""Plays a fixed list of tasks and writes every episode down, batch by batch, so that a run that is cut short goes on where it was."""

import contextlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gradprism.environments.pool import SessionPool, default_workers
from gradprism.environments.protocol import Environment, Task
from gradprism.environments.registry import as_environment
from gradprism.evaluation.agents import Agent, ModelAgent, ScriptedAgent, Seeds
from gradprism.evaluation.config import EvaluationConfig, PlayConfig
from gradprism.evaluation.summary import SuccessRow, headline, summarise
from gradprism.models import ModelSpec, resolve_device
from gradprism.rollouts.episode import Episode
from gradprism.rollouts.player import model_and_tokenizer
from gradprism.runtime.errors import ConfigError, DataError
from gradprism.runtime.files import append_jsonl, read_json, read_jsonl, sha256_json, write_json, write_jsonl, writing
from gradprism.runtime.folders import FolderKind, OnExisting, exclusive_lock, remove
from gradprism.runtime.progress import Progress, quiet
from gradprism.runtime.ranks import Ranks, processes_here
from gradprism.runtime.usage import Usage

EPISODES, BATCHES, SUMMARY = "episodes.jsonl", "batches.jsonl", "summary.json"
FOLDER = FolderKind("evaluation", identity="tasks_sha256", own=(SUMMARY, BATCHES, EPISODES, "batch-*.json"))
_LOCK = ".evaluation.tmp"
_ALIKE = 64  # successive tasks that share a seed of random play: as many as a batch has by default, with which published figures were made
_calls = itertools.count()  # every process makes the same calls, so a number of its own tells one from the other


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
class _Batch:
    """The episodes of a batch, their `transcripts`, and its costs: usage and restarts, a line of `batches.jsonl`."""

    episodes: Sequence[Episode]
    transcripts: Sequence[Mapping[str, Any]]
    costs: Mapping[str, float]

    @classmethod
    def of(cls, transcripts: Sequence[Mapping[str, Any]], costs: Mapping[str, float], tasks: Sequence[Task]) -> "_Batch | None":
        """That of files; None where it is not of these tasks."""
        try:
            episodes = [Episode.from_json(transcript) for transcript in transcripts]
        except (KeyError, TypeError, ValueError):
            return None
        return cls(episodes, transcripts, costs) if [e.task.id for e in episodes] == [task.id for task in tasks] else None


@dataclass(slots=True)
class _Record:
    """The batches so far in memory and, with a folder, in its files.

    Several processes each leave a batch that is done in a file of its own (`part`); the first one moves them, in order, to where a single
    process writes them at once.
    """

    folder: Path | None = None
    batches: list[_Batch] = field(default_factory=list)

    @property
    def episodes(self) -> list[Episode]:
        return [episode for batch in self.batches for episode in batch.episodes]

    def add(self, batch: _Batch) -> None:
        """Adds a batch. It counts once its costs are written, which come last."""
        self.batches.append(batch)
        if self.folder is not None:
            path = self.folder / EPISODES
            with writing(path), open(path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in batch.transcripts)
            append_jsonl(self.folder / BATCHES, batch.costs)

    def part(self, index: int) -> Path | None:
        """Where another process leaves a batch."""
        return None if self.folder is None else self.folder / f"batch-{index:06d}.json"

    def leave(self, index: int, batch: _Batch) -> None:
        """Leaves a batch for the first process to take."""
        path = self.part(index)
        assert path is not None, "processes share a folder"
        write_json(path, {"costs": batch.costs, "episodes": batch.transcripts}, sort_keys=False)

    def take(self, tasks: Sequence[Task]) -> bool:
        """Adds the next batch, of these tasks, where a process has left it."""
        path = self.part(len(self.batches))
        if path is None or not path.is_file():
            return False
        left = read_json(path)
        batch = _Batch.of(left["episodes"], left["costs"], tasks) if isinstance(left, dict) and len(left) == 2 else None
        if batch is not None:
            self.add(batch)
        remove(path)
        return batch is not None

    def evaluation(self, remarks: Sequence[str]) -> Evaluation:
        """All of it summed up."""
        usage = sum((Usage.from_json(batch.costs) for batch in self.batches), Usage())
        restarts = sum(int(batch.costs["worker_restarts"]) for batch in self.batches)
        return Evaluation(tuple(summarise(self.episodes)), usage, tuple(self.episodes), restarts, tuple(remarks))


def evaluate(
    agent: Agent | Any,
    environment: Environment | str,
    config: PlayConfig = EvaluationConfig(),
    *,
    tasks: Sequence[Task] | None = None,
    out: Path | str | None = None,
    workers: int | None = None,
    on_existing: OnExisting = "resume",
    remarks: Sequence[str] = (),
    together: bool = False,
) -> Evaluation:
    """Plays every task of `config`, or the `tasks` given, `config.attempts` times: a model greedily, unless it sets a temperature.

    `agent` is an `Agent`, `"expert"`, `"random"`, or a model: loaded, or by its folder, hub id or `ModelSpec`; `environment` may be the
    name of one. Tasks are played in batches of `config.in_flight`, each with a seed of its own, so that a batch depends on nothing before
    it; what random play does depends on seed, task, attempt and in which 64 of the list the task is, whatever the batches. With `out` each
    batch is written as it ends: `episodes.jsonl` has the transcripts in the order of tasks, `summary.json` the rows; the same call goes on
    after a kill. `remarks` are the caller's own, kept beside those of the environment.

    `together`: where `torchrun` or `accelerate launch` has started several processes, which all make this call, each plays the next
    batch that no other has taken, and the first one puts them together in `out`: the same episodes as a single process plays.

    Raises `FolderInUseError` where `out` holds something else or another evaluation (the keys that differ are named), or is being
    written to; `ConfigError` for unknown splits or task types, for attempts that would all be the same, and for processes without `out`;
    `DataError` for a folder whose files do not fit together.
    """
    kind = agent.kind if isinstance(agent, ScriptedAgent) else agent
    config.check_attempts(kind if isinstance(kind, str) else "model")
    environment = as_environment(environment)
    if tasks is None:
        tasks = [task for split, n in config.splits.items() for task in environment.tasks(split, n, config.start, config.task_type)]
    chances = _chances(tasks, config)
    tasks = [task for task in tasks for _ in range(config.attempts)]
    batches = [tasks[i : i + config.in_flight] for i in range(0, len(tasks), config.in_flight)]
    ranks = Ranks.from_environment() if together else None
    if out is not None:
        out = Path(out).expanduser()
        if ranks is None or ranks.is_first:
            FOLDER.check(out, on_existing)  # before a model is loaded
    elif ranks is not None:
        raise ConfigError("several processes evaluate into a folder that they share: give one, or start a single process")
    with contextlib.ExitStack() as stack:
        if ranks is not None:
            stack.enter_context(ranks.failing_together())
            stack.enter_context(quiet(not ranks.is_first))
        player = as_agent(_placed(agent, ranks))
        record, first = _Record(out if isinstance(out, Path) else None), ranks is None or ranks.is_first
        if isinstance(out, Path) and first:
            stack.enter_context(exclusive_lock(out, _LOCK, "is being evaluated into"))
            record = _claim(out, _manifest(player, environment, config, tasks), on_existing, batches)
        workers = workers or max(1, default_workers() // (processes_here() if ranks else 1))
        pool = stack.enter_context(SessionPool(environment, workers))
        progress = stack.enter_context(Progress("episodes", len(tasks)))
        won = sum(episode.success for episode in record.episodes)
        playing = _Playing(player, environment, pool, config, chances, progress, won)
        progress.begin(len(tasks), len(record.episodes))
        if ranks is None:
            while len(record.batches) < len(batches):
                index = len(record.batches)
                if not record.take(batches[index]):
                    record.add(playing.play(index, batches[index]))
        else:
            record = _play_together(ranks, playing, record, batches)
        evaluation = record.evaluation([*environment.remarks(tasks), *remarks])
        if isinstance(out, Path) and first:
            write_json(out / SUMMARY, evaluation.to_json())
        if ranks is not None:
            ranks.gather(f"evaluate-{next(_calls)}/left", True)  # what they hear may go with the first process
    return evaluation


@dataclass(slots=True)
class _Playing:
    """Who plays where, with a seed for each episode; counts what was `won`."""

    player: Agent
    environment: Environment
    pool: SessionPool
    config: PlayConfig
    chances: Sequence[str]
    progress: Progress
    won: int
    processes: int = 1

    def play(self, index: int, tasks: Sequence[Task]) -> _Batch:
        """A batch, which depends on its place and on nothing before it. Of several processes side by side, each counts for its share of the
        wall clock.
        """
        clock, cpu, restarts = time.perf_counter(), time.process_time(), self.pool.restarts
        start = index * self.config.in_flight
        seeds = Seeds(_seed(self.config.seed, index), self.chances[start : start + len(tasks)])
        episodes, used = self.player.play(self.environment, self.pool, tasks, self.config, seeds, self._on_done)
        wall = (time.perf_counter() - clock) / self.processes
        used = replace(used, wall_seconds=wall, cpu_seconds=time.process_time() - cpu)
        costs = {**used.to_json(), "worker_restarts": self.pool.restarts - restarts}
        return _Batch(episodes, [episode.to_json() for episode in episodes], costs)

    def _on_done(self, episode: Episode) -> None:
        self.won += episode.success
        self.progress.advance(1, f"{self.won} won")


def _seed(seed: int, number: int) -> int:
    return int(sha256_json([seed, number])[:8], 16)


def _chances(tasks: Sequence[Task], config: PlayConfig) -> list[str]:
    """A seed for each attempt at each task, in the order in which they are played: another for each attempt, whatever the batches."""
    chances, begun = [], Counter[str]()
    for place, task in enumerate(tasks):
        first = f"{_seed(config.seed, place // _ALIKE)}/{task.id}"
        for _ in range(config.attempts):
            chances.append(f"{first}#{begun[task.id]}" if begun[task.id] else first)
            begun[task.id] += 1
    return chances


def _play_together(ranks: Ranks, playing: _Playing, record: _Record, batches: Sequence[Sequence[Task]]) -> _Record:
    """Plays the batches that are pending, each by whichever process is free; the record of all, which the first process has written."""
    key = f"evaluate-{next(_calls)}"
    playing.processes = ranks.world
    if ranks.is_first:
        ranks.publish(f"{key}/done", len(record.batches))
    done = ranks.wait_for(f"{key}/done")
    pending = (done + ranks.store.add(f"{key}/next", 1) - 1 for _ in batches)
    for index in itertools.takewhile(lambda index: index < len(batches), pending):
        path = record.part(index)
        if path is None or not path.is_file():
            record.leave(index, playing.play(index, batches[index]))
    ranks.gather(f"{key}/played", True)
    if ranks.is_first:
        for index in range(done, len(batches)):
            if not record.take(batches[index]):  # a file of an earlier attempt that fits no longer
                record.add(playing.play(index, batches[index]))
        ranks.publish(f"{key}/complete", True)
        return record
    ranks.wait_for(f"{key}/complete")
    assert record.folder is not None
    return _read(record.folder, batches)


def _placed(agent: Any, ranks: Ranks | None) -> Any:
    """The agent, a model by name on the device of this process's number."""
    if ranks is None or not isinstance(agent, ModelSpec):
        return agent
    return replace(agent, device=resolve_device(agent.device, ranks))


def as_agent(agent: Agent | Any) -> Agent:
    """The agent that `evaluate` was given, by whatever name."""
    if agent in ("expert", "random"):
        return ScriptedAgent(agent)  # pyright: ignore[reportArgumentType]
    return agent if hasattr(agent, "play") else ModelAgent(*model_and_tokenizer(agent))


def _manifest(agent: Agent, environment: Environment, config: PlayConfig, tasks: Sequence[Task]) -> dict[str, Any]:
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
    record = _read(out, batches)
    write_jsonl(out / EPISODES, [line for batch in record.batches for line in batch.transcripts])
    write_jsonl(out / BATCHES, [batch.costs for batch in record.batches])
    return record


def _read(out: Path, batches: Sequence[Sequence[Task]]) -> _Record:
    """The batches that the files of a folder hold in full."""
    costs = read_jsonl(out / BATCHES, stop_at_torn=True)[: len(batches)]
    transcripts, record, start = read_jsonl(out / EPISODES, stop_at_torn=True), _Record(out), 0
    for tasks, cost in zip(batches, costs, strict=False):
        if (batch := _Batch.of(transcripts[start : start + len(tasks)], cost, tasks)) is None:
            raise DataError(f"{out / EPISODES}: does not hold the episodes that {BATCHES} tells of; give --on-existing replace")
        record.batches.append(batch)
        start += len(tasks)
    return record
