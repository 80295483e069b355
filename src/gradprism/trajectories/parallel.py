"""Rendering with all cores, in the corpus's order, and what becomes of trajectories that cannot be rendered."""

import multiprocessing
import os
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from gradprism.runtime.errors import GradprismError, WorkerError
from gradprism.runtime.progress import Progress
from gradprism.trajectories.corpus import Corpus
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import RenderedTrajectory, Renderer

Rendered = tuple[Trajectory, RenderedTrajectory | GradprismError]
_PATIENCE = 1.0  # seconds of rendering in this process before others are started
_CHUNK, _AHEAD = 32, 4  # trajectories that a process is given at a time, and chunks in flight for each
_renderer: Renderer | None = None  # a worker's own


def render_each(renderer: Renderer, trajectories: Iterable[Trajectory], processes: int | None = None) -> Iterator[Rendered]:
    """Each trajectory with its rendering, or the error in its place, in order; `processes` render (default one per core).

    What takes less than a second is done in this process alone.
    """
    processes = _cores() if processes is None else processes
    remaining, began = iter(trajectories), time.monotonic()
    for trajectory in remaining:
        yield trajectory, _render(renderer, trajectory)
        if processes > 1 and time.monotonic() - began >= _PATIENCE:
            break
    else:
        return
    yield from _in_processes(renderer, remaining, processes)


def render_all(renderer: Renderer, trajectories: Sequence[Trajectory]) -> list[RenderedTrajectory]:
    """The renderings of all trajectories, with progress; raises what rendering raises."""
    made = []
    with Progress("rendering", len(trajectories)) as progress:
        for _, rendered in render_usable(renderer, trajectories):
            made.append(rendered)
            progress.advance()
    return made


def render_usable(renderer: Renderer, trajectories: Iterable[Trajectory]) -> Iterator[tuple[Trajectory, RenderedTrajectory]]:
    """Each trajectory with its rendering; of a `Corpus` with `on_bad` of `skip` those alone that have one, the others in its account.

    Raises what rendering raises.
    """
    account = trajectories.account if isinstance(trajectories, Corpus) and trajectories.on_bad == "skip" else None
    for trajectory, rendered in render_each(renderer, trajectories):
        if not isinstance(rendered, GradprismError):
            yield trajectory, rendered
        elif account is None:
            raise rendered
        else:
            account.skip(trajectory.id, trajectory.source, rendered)


def usable(renderer: Renderer, corpus: Corpus) -> list[Trajectory]:
    """The trajectories of a corpus: all of them, or with `on_bad` of `skip` those that can be rendered."""
    return list(corpus) if corpus.on_bad == "fail" else [trajectory for trajectory, _ in render_usable(renderer, corpus)]


def _in_processes(renderer: Renderer, trajectories: Iterator[Trajectory], processes: int) -> Iterator[Rendered]:
    # Forked: a spawned process would import for seconds, and run a script again that has no main guard. What a child runs here is the
    # template and the tokenizer, which take no lock that another thread of this process may hold.
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(processes, context, _begin, (renderer,))
    pending: deque[tuple[list[Trajectory], Future[list[RenderedTrajectory | GradprismError]]]] = deque()
    try:
        while True:
            while len(pending) < _AHEAD * processes and (chunk := list(islice(trajectories, _CHUNK))):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads; see above
                    pending.append((chunk, pool.submit(_render_chunk, chunk)))
            if not pending:
                return
            chunk, future = pending.popleft()
            yield from zip(chunk, future.result(), strict=True)
    except BrokenProcessPool:
        raise WorkerError("a process that renders has died, of memory perhaps; try again with less beside it") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(renderer: Renderer) -> None:
    global _renderer
    _renderer = renderer


def _render_chunk(chunk: list[Trajectory]) -> list[RenderedTrajectory | GradprismError]:
    assert _renderer is not None
    return [_render(_renderer, trajectory) for trajectory in chunk]


def _render(renderer: Renderer, trajectory: Trajectory) -> RenderedTrajectory | GradprismError:
    try:
        return renderer.render(trajectory)
    except GradprismError as error:
        return error


def _cores() -> int:
    """The cores for this process, of those that a launcher's processes share; 1 in a process that may have no children."""
    if multiprocessing.current_process().daemon:
        return 1
    return len(os.sched_getaffinity(0)) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
