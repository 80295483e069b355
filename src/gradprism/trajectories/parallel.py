"""Rendering with all cores, in the corpus's order, and what becomes of trajectories that cannot be rendered."""

import gc
import multiprocessing
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from gradprism.runtime.errors import GradprismError, WorkerError
from gradprism.runtime.progress import Progress, say
from gradprism.trajectories.corpus import Account, Corpus
from gradprism.trajectories.doctor import older_alfworld, speaks_older_alfworld
from gradprism.trajectories.masks import NO_NOTES, LostThoughtsError
from gradprism.trajectories.record import Message, Trajectory
from gradprism.trajectories.rendering import RenderedTrajectory, Renderer

T = TypeVar("T")
Packed = tuple[str, list[tuple[Any, ...]], str, tuple[Any, ...], float]
_PATIENCE = 1.0  # seconds of rendering in this process before others are started
_CHUNK, _AHEAD = 32, 4  # trajectories that a process is given at a time, and chunks in flight for each
_job: "Callable[[Trajectory], Any] | None" = None  # a worker's own


def map_each(
    work: Callable[[Trajectory], T], trajectories: Iterable[Trajectory], processes: int | None = None
) -> Iterator[tuple[Trajectory, T | GradprismError]]:
    """Each trajectory with what `work` makes of it, or the error in its place, in order; `work` is not given the task.

    `processes` (default one per core) work; what takes less than a second is done in this process alone.
    """
    processes = _cores() if processes is None else processes
    remaining, began = iter(trajectories), time.monotonic()
    for trajectory in remaining:
        yield trajectory, _do(work, trajectory)
        if processes > 1 and time.monotonic() - began >= _PATIENCE:
            break
    else:
        return
    yield from _in_processes(work, remaining, processes)


def render_each(
    renderer: Renderer, trajectories: Iterable[Trajectory], processes: int | None = None
) -> Iterator[tuple[Trajectory, RenderedTrajectory | GradprismError]]:
    """`map_each` with the rendering."""
    return map_each(renderer.render, trajectories, processes)


def render_all(renderer: Renderer, trajectories: Sequence[Trajectory], account: Account | None = None) -> list[RenderedTrajectory]:
    """The renderings of all trajectories, with progress; raises what rendering raises, unless an `account` takes what has none."""
    made = []
    with Progress("rendering", len(trajectories)) as progress:
        for _, rendered in render_usable(renderer, trajectories, account):
            made.append(rendered)
            progress.advance()
    return made


def render_usable(
    renderer: Renderer, trajectories: Iterable[Trajectory], account: Account | None = None
) -> Iterator[tuple[Trajectory, RenderedTrajectory]]:
    """Each trajectory with its rendering; with an `account`, which a `Corpus` with `on_bad` of `skip` has, those alone that have one.

    At the end it is said what was left out or written in, and how many are of the older ALFWorld. Raises what rendering raises; for
    thoughts that would be lost, after all trajectories that lose some have been counted.
    """
    account = account or skipping(trajectories)
    notes, lost, older = NO_NOTES, list[LostThoughtsError](), 0
    for trajectory, rendered in render_each(renderer, trajectories):
        if not isinstance(rendered, GradprismError):
            notes += rendered.notes
            older += speaks_older_alfworld(trajectory)
            if not lost:
                yield trajectory, rendered
        elif account is not None:
            account.skip(trajectory.id, trajectory.source, rendered)
        elif isinstance(rendered, LostThoughtsError):
            lost.append(rendered)
        else:
            raise rendered
    if lost:
        raise LostThoughtsError(f"{lost[0]}{f'; so it is in {len(lost) - 1} more trajectories' if len(lost) > 1 else ''}")
    for line in (*notes.lines(), *filter(None, [older_alfworld(older)])):
        say(f"warning: {line}")


def skipping(trajectories: object) -> Account | None:
    """The account of a corpus that leaves out what cannot be used; None for anything else."""
    return trajectories.account if isinstance(trajectories, Corpus) and trajectories.on_bad == "skip" else None


def _in_processes(
    work: Callable[[Trajectory], T], trajectories: Iterator[Trajectory], processes: int
) -> Iterator[tuple[Trajectory, T | GradprismError]]:
    # Forked: a spawned process would import for seconds, and run a script again that has no main guard. What a child runs here is the
    # template and the tokenizer, which take no lock that another thread of this process may hold.
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(processes, context, _begin, (work,))
    pending: deque[tuple[list[Trajectory], Future[list[Any]]]] = deque()
    try:
        while True:
            while len(pending) < _AHEAD * processes and (chunk := list(islice(trajectories, _CHUNK))):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads; see above
                    pending.append((chunk, pool.submit(_do_chunk, [_packed(trajectory) for trajectory in chunk])))
            if not pending:
                return
            chunk, future = pending.popleft()
            yield from zip(chunk, future.result(), strict=True)
    except BrokenProcessPool:
        raise WorkerError("a process that renders has died, of memory perhaps; try again with less beside it") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _packed(trajectory: Trajectory) -> Packed:
    """What rendering reads of a trajectory, as tuples, which travel faster than their classes; the task stays behind."""
    messages = [(m.role, m.content, m.weight, m.reasoning, m.tool_calls, m.name, m.tool_call_id) for m in trajectory.messages]
    return trajectory.id, messages, trajectory.source, trajectory.tools, trajectory.weight


def _unpacked(packed: Packed) -> Trajectory:
    id_, messages, source, tools, weight = packed
    return Trajectory(id_, tuple(Message(*fields) for fields in messages), source=source, tools=tools, weight=weight)


def _begin(work: Callable[[Trajectory], Any]) -> None:
    global _job
    _job = work
    gc.freeze()  # what the parent holds is never collected here


def _do_chunk(chunk: list[Packed]) -> list[Any]:
    assert _job is not None
    return [_do(_job, _unpacked(packed)) for packed in chunk]


def _do(work: Callable[[Trajectory], T], trajectory: Trajectory) -> T | GradprismError:
    try:
        return work(trajectory)
    except GradprismError as error:
        return error


def _cores() -> int:
    """The cores for this process, of those that a launcher's processes share; 1 in a process that may have no children."""
    if multiprocessing.current_process().daemon:
        return 1
    return len(os.sched_getaffinity(0)) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
