"""Many sessions at once, in worker processes: engines are not thread-safe and a step is Python, so threads would gain nothing.

A worker may die or hang (engines run native code) without harm to the others: it is replaced, and its sessions are set up again from
their tasks and actions so far, which gives the same state because sessions are deterministic. A call that breaks a second worker ends
its episode, with `Info.failure`, and only that.
"""

import contextlib
import multiprocessing as mp
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Literal, Self

from gradprism.environments.protocol import Environment, Info, Step
from gradprism.runtime.errors import ConfigError, EnvironmentPlayError, GradprismError, MissingDependencyError

Method = Literal["reset", "step"]
RESET, STEP, DEMONSTRATE = "reset", "step", "demonstrate"
ATTEMPTS = 2  # a call that takes a worker with it is tried once more, in case the machine and not the game was to blame
# What the user must change is raised to them; whatever else goes wrong in an episode ends that episode.
RAISED = (ConfigError, MissingDependencyError)


def default_workers() -> int:
    """As many workers as this process may use cores."""
    return len(os.sched_getaffinity(0))


@dataclass(slots=True)
class _History:
    """What brings a session to its present state."""

    task_id: str
    actions: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Call:
    method: str
    session: int
    argument: Any
    position: int
    restore: _History | None = None  # the session was lost with its worker and is set up from this first
    attempts: int = 0
    answered: bool = False
    answer: Any = None  # once answered: the result, text that says why the episode failed, or an exception for the user

    def __str__(self) -> str:
        return f"{self.method} {str(self.argument)!r:.120}"


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    queue: deque[_Call]
    sent: float  # when it was started, was sent calls, or answered last
    ready: bool = False  # it has imported its environment and waits for calls


@dataclass(frozen=True, slots=True)
class Pending:
    """Calls whose steps are asked for with `SessionPool.collect`."""

    sessions: tuple[int, ...]
    calls: tuple[_Call, ...]


class SessionPool:
    """Sessions numbered 0, 1, …; session s lives in worker s mod `workers` and is made when first reset.

    Calls take lists, and the workers step side by side. Results are in the order of the call and do not depend on the number of
    workers. `send` and `collect` split a call in two, so that the caller can work while the engines do; a session has one call at a
    time. `step_seconds` and `reset_seconds` bound one action and one reset; `restarts` counts the workers that were replaced.
    """

    def __init__(
        self, environment: Environment, workers: int | None = None, *, step_seconds: float = 60.0, reset_seconds: float = 120.0
    ) -> None:
        self._environment = environment
        self._n_workers = workers or default_workers()
        self._step_seconds, self._reset_seconds = step_seconds, reset_seconds
        self._context = mp.get_context("spawn")  # a forked child would inherit torch's thread pools and locks
        self._workers: list[_Worker] = []
        self._histories: dict[int, _History] = {}
        self._failures: dict[int, str] = {}  # session -> why its episode is over
        self._lost: set[int] = set()  # sessions whose worker is gone
        self.restarts = 0

    def __enter__(self) -> Self:
        self._workers = [self._start(deque()) for _ in range(self._n_workers)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._workers:
            worker.connection.close()  # workers leave at end of file
        for worker in self._workers:
            # One that was cut short in a call may be hanging in it.
            worker.process.join(timeout=0.1 if worker.queue else 5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def reset(self, sessions: Sequence[int], task_ids: Sequence[str]) -> list[Step]:
        """Starts one task a session. Raises `ConfigError` for an unknown id; broken data ends the episode at once."""
        return self.collect(self.send(RESET, sessions, task_ids))

    def step(self, sessions: Sequence[int], actions: Sequence[str]) -> list[Step]:
        """Plays one action a session."""
        return self.collect(self.send(STEP, sessions, actions))

    def demonstrate(self, task_ids: Sequence[str], max_steps: int) -> list[list[tuple[str, str]] | None]:
        """The expert's episodes as (observation, action) pairs, None where it did not succeed within `max_steps`."""
        calls = [_Call(DEMONSTRATE, index, (task_id, max_steps), index) for index, task_id in enumerate(task_ids)]
        self._dispatch(calls)
        self._await(calls)
        for call in calls:
            if isinstance(call.answer, str):
                raise EnvironmentPlayError(call.answer)
        return [call.answer for call in calls]

    def send(self, method: Method, sessions: Sequence[int], arguments: Sequence[str]) -> Pending:
        """Starts what `reset` or `step` does and returns at once."""
        calls = []
        for position, (session, argument) in enumerate(zip(sessions, arguments, strict=True)):
            if method == RESET:
                self._histories[session] = _History(argument)
                self._failures.pop(session, None)
            if session not in self._failures:
                restore = self._histories[session] if method == STEP and session in self._lost else None
                calls.append(_Call(method, session, argument, position, restore))
        self._dispatch(calls)
        return Pending(tuple(sessions), tuple(calls))

    def collect(self, pending: Pending) -> list[Step]:
        """Waits for the steps of a `send`, in its order."""
        results = [Step("", done=True, info=Info(valid=False, failure=self._failures.get(s, ""))) for s in pending.sessions]
        self._await(pending.calls)
        for call in pending.calls:
            result = call.answer
            if isinstance(result, str):
                self._failures[call.session] = result
                result = Step("", done=True, info=Info(valid=False, failure=result))
            elif call.method == STEP:
                self._histories[call.session].actions.append(call.argument)
            results[call.position] = result
        return results

    def _dispatch(self, calls: Sequence[_Call]) -> None:
        for index, worker in enumerate(self._workers):
            mine = [call for call in calls if call.session % self._n_workers == index]
            if mine and not worker.queue:
                worker.sent = time.monotonic() if worker.ready else worker.sent
            worker.queue.extend(mine)
            self._send(worker, mine)

    def _await(self, calls: Sequence[_Call]) -> None:
        """Waits until every call is answered; raises the first answer that is for the user."""
        owed = [call for call in calls if not call.answered]
        while owed:
            # Workers are replaced while they are waited for.
            busy = [self._workers[i] for i in sorted({call.session % self._n_workers for call in owed})]
            for worker in busy:
                self._collect(worker)
            owed = [call for call in owed if not call.answered]
            if owed:
                busy = [self._workers[i] for i in sorted({call.session % self._n_workers for call in owed})]
                wait([worker.connection for worker in busy], timeout=max(0.0, min(map(self._time_left, busy))))
        for call in calls:
            if isinstance(call.answer, Exception):
                raise call.answer

    def _collect(self, worker: _Worker) -> None:
        """Takes in what a worker has answered; replaces it where it died or has taken too long."""
        try:
            while worker.queue and worker.connection.poll():
                answer = worker.connection.recv()
                worker.sent = time.monotonic()
                if worker.ready:
                    call = worker.queue.popleft()
                    call.answer, call.answered = answer, True
                    if call.method != DEMONSTRATE:
                        self._lost.discard(call.session)
                worker.ready = True  # its first message says no more than that
        except (EOFError, ConnectionError):
            worker.process.join(timeout=1)
            self._replace(worker, f"died (exit code {worker.process.exitcode})")
            return
        if worker.queue and self._time_left(worker) <= 0:
            self._replace(worker, f"did not answer for {self._limit(worker):g} s and was stopped")

    def _replace(self, worker: _Worker, what: str) -> None:
        """Puts a new worker in place of a broken one; the call that broke it has failed when it had done so before."""
        call, index = worker.queue[0], self._workers.index(worker)
        if not worker.ready:  # no game's fault, and the next one would do the same
            error = EnvironmentPlayError(
                f"environment {self._environment.name!r}: a worker {what} as it started; if memory ran out, use fewer workers"
            )
            for owed in worker.queue:
                owed.answer, owed.answered = error, True
            worker.queue.clear()
            return
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        self.restarts += 1
        call.attempts += 1
        task = call.argument[0] if call.method == DEMONSTRATE else self._histories[call.session].task_id
        message = f"environment {self._environment.name!r}: the worker {what} at {call} of task {task!r}"
        print(f"warning: {message}", file=sys.stderr, flush=True)
        if call.attempts >= ATTEMPTS:
            worker.queue.popleft()
            call.answer, call.answered = message, True
        # Sessions are set up again when they are next asked for, so that one which cannot be harms no other.
        self._lost |= {session for session in self._histories if session % self._n_workers == index}
        for queued in worker.queue:
            if queued.method == STEP:
                queued.restore = self._histories[queued.session]
        self._workers[index] = self._start(worker.queue)
        self._send(self._workers[index], list(worker.queue))

    def _start(self, queue: deque[_Call]) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._environment), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours, queue, time.monotonic())

    def _send(self, worker: _Worker, calls: Sequence[_Call]) -> None:
        if not calls:
            return
        # A broken pipe is found, and answered, when results are collected.
        with contextlib.suppress(ConnectionError):
            worker.connection.send(
                [(c.method, c.session, c.argument, c.restore and (c.restore.task_id, c.restore.actions)) for c in calls]
            )

    def _limit(self, worker: _Worker) -> float:
        """Seconds that the worker may take for what it is at."""
        call = worker.queue[0]
        if not worker.ready or call.method == RESET:
            return self._reset_seconds
        if call.method == DEMONSTRATE:
            return self._reset_seconds + self._step_seconds * call.argument[1]
        return self._step_seconds if call.restore is None else self._reset_seconds + self._step_seconds

    def _time_left(self, worker: _Worker) -> float:
        return worker.sent + self._limit(worker) - time.monotonic()


def _work(connection: Connection, environment: Environment) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer; the pipe's end stops a worker
    sessions: dict[int, Any] = {}
    calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # Calls are read as they come, also while answers are written: else both ends could wait for the other to read.
    threading.Thread(target=_receive, args=(connection, calls), daemon=True).start()
    with contextlib.suppress(ConnectionError):
        connection.send("ready")
        while (batch := calls.get()) is not None:
            for method, session, argument, restore in batch:
                connection.send(_serve(environment, sessions, method, session, argument, restore))


def _receive(connection: Connection, calls: "queue.SimpleQueue[Any]") -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            calls.put(connection.recv())
    calls.put(None)


def _serve(
    environment: Environment,
    sessions: dict[int, Any],
    method: str,
    session: int,
    argument: Any,
    restore: tuple[str, list[str]] | None,
) -> Any:
    """The result of a call; an exception is for the user, a text ends the episode."""
    key = -1 if method == DEMONSTRATE else session  # demonstrations run one after the other and share an engine
    try:
        if key not in sessions:
            sessions[key] = environment.session()
        if method == DEMONSTRATE:
            return _demonstrate(environment, sessions[key], *argument)
        if restore is not None:
            sessions[key].reset(restore[0])
            for action in restore[1]:
                sessions[key].step(action)
        return getattr(sessions[key], method)(argument)
    except RAISED as error:
        return error
    except Exception as error:
        sessions.pop(key, None)  # its engine may be in any state
        said = str(error) if isinstance(error, GradprismError) else f"{type(error).__name__}: {error}"
        what = f"the expert on task {argument[0]!r}" if method == DEMONSTRATE else f"{method} {str(argument)!r:.120}"
        return f"{environment.name}: {what} failed: {said}"


def _demonstrate(environment: Environment, session: Any, task_id: str, max_steps: int) -> list[tuple[str, str]] | None:
    expert, step, pairs = environment.expert(), session.reset(task_id), []
    while not step.done and len(pairs) < max_steps:
        action = expert.act(step)
        pairs.append((step.observation, action))
        step = session.step(action)
    return pairs if step.info.success else None
