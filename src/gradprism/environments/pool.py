"""Many sessions at once, in worker processes: engines are not thread-safe and a step is Python, so threads would gain nothing."""

import multiprocessing as mp
import os
import signal
from collections import defaultdict
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

from gradprism.environments.protocol import Environment, Step
from gradprism.errors import EnvironmentPlayError, GradprismError


def default_workers() -> int:
    """As many workers as this process may use cores."""
    return len(os.sched_getaffinity(0))


class SessionPool:
    """Sessions numbered 0, 1, …; session s lives in worker s mod `workers` and is made when first reset.

    Calls take lists so that one message serves all sessions of a worker, and the workers step side by side. Results are in the
    order of the call and do not depend on the number of workers.
    """

    def __init__(self, environment: Environment, workers: int | None = None) -> None:
        self._environment = environment
        self._workers = workers or default_workers()
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []

    def __enter__(self) -> Self:
        context = mp.get_context("spawn")  # a forked child would inherit torch's thread pools and locks
        for _ in range(self._workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, self._environment), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for connection in self._connections:
            connection.close()  # workers leave at end of file
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()

    def reset(self, sessions: Sequence[int], task_ids: Sequence[str]) -> list[Step]:
        """Starts one task a session."""
        return self._call("reset", sessions, task_ids)

    def step(self, sessions: Sequence[int], actions: Sequence[str]) -> list[Step]:
        """Plays one action a session."""
        return self._call("step", sessions, actions)

    def demonstrate(self, task_ids: Sequence[str], max_steps: int) -> list[list[tuple[str, str]] | None]:
        """The expert's episodes as (observation, action) pairs, None where it did not succeed within `max_steps`."""
        return self._call("demonstrate", range(len(task_ids)), [(task_id, max_steps) for task_id in task_ids])

    def _call(self, method: str, sessions: Sequence[int], arguments: Sequence[Any]) -> list[Any]:
        by_worker: dict[int, list[int]] = defaultdict(list)
        for position, session in enumerate(sessions):
            by_worker[session % self._workers].append(position)
        results: list[Any] = [None] * len(sessions)
        for worker, positions in by_worker.items():
            try:
                self._connections[worker].send((method, [(sessions[i], arguments[i]) for i in positions]))
            except (BrokenPipeError, OSError):
                raise self._death(worker) from None
        for worker, positions in by_worker.items():
            try:
                answer = self._connections[worker].recv()
            except (EOFError, OSError):
                raise self._death(worker) from None
            if isinstance(answer, Exception):
                raise answer
            for position, result in zip(positions, answer, strict=True):
                results[position] = result
        return results

    def _death(self, worker: int) -> EnvironmentPlayError:
        process = self._processes[worker]
        process.join(timeout=1)
        return EnvironmentPlayError(
            f"environment worker {worker} died (exit code {process.exitcode}); if memory ran out, use fewer workers, then run again"
        )


def _work(connection: Connection, environment: Environment) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer; the pipe's end stops a worker
    sessions: dict[int, Any] = {}
    while True:
        try:
            method, calls = connection.recv()
        except EOFError:
            return
        try:
            connection.send([_serve(environment, sessions, method, session, argument) for session, argument in calls])
        except GradprismError as error:
            connection.send(error)


def _serve(environment: Environment, sessions: dict[int, Any], method: str, session: int, argument: Any) -> Any:
    key = 0 if method == "demonstrate" else session  # demonstrations run one after the other and share an engine
    try:
        if key not in sessions:
            sessions[key] = environment.session()
        if method == "demonstrate":
            return _demonstrate(environment, sessions[key], *argument)
        return getattr(sessions[key], method)(argument)
    except GradprismError:
        raise
    except Exception as error:
        what = f"{method} {argument!r}"[:300]
        raise EnvironmentPlayError(f"{environment.name}: {what} failed in the engine: {type(error).__name__}: {error}") from error


def _demonstrate(environment: Environment, session: Any, task_id: str, max_steps: int) -> list[tuple[str, str]] | None:
    expert, step, pairs = environment.expert(), session.reset(task_id), []
    while not step.done and len(pairs) < max_steps:
        action = expert.act(step.observation)
        pairs.append((step.observation, action))
        step = session.step(action)
    return pairs if step.done else None
