"""Many sessions at once, in worker processes: engines are not thread-safe and a step is Python, so threads would gain nothing.

A worker may die or hang (engines run native code) without harm to the others: it is replaced, and its sessions are set up again from
their tasks and actions so far, which gives the same state because sessions are deterministic. A call that breaks a worker twice ends
its episode, with `Info.failure`, and only that.
"""

import math
import multiprocessing as mp
import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Literal, NamedTuple, Self

from gradprism.environments.protocol import Environment, Info, Session, Step
from gradprism.runtime.errors import ConfigError, EnvironmentPlayError, GradprismError, MissingDependencyError
from gradprism.runtime.progress import warn

Method = Literal["reset", "step"]
RESET, STEP = "reset", "step"
ATTEMPTS = 2  # a call that takes a worker with it is tried once more, in case the machine and not the game was to blame
# What the user must change is raised to them; whatever else goes wrong in an episode ends that episode.
RAISED = (ConfigError, MissingDependencyError)
_CONTEXT = mp.get_context("spawn")  # a forked child would inherit torch's thread pools and locks
_UNGUARDED = 78  # exit code of a worker that ran the script which started it, and was to start workers of its own


def default_workers() -> int:
    """As many workers as this process may use cores."""
    return len(os.sched_getaffinity(0))


class _Call(NamedTuple):
    """`history`: the task and the actions by which a session that was lost with its worker is set up first."""

    method: Method
    session: int
    argument: str
    history: tuple[str, ...] = ()


_Answer = Step | str | GradprismError  # a text says why the episode failed; an error is for the user


@dataclass(frozen=True, slots=True)
class Pending:
    """Calls whose steps are asked for with `SessionPool.collect`: for each worker, their positions and what will be their answers."""

    shares: tuple[tuple[list[int], "Future[list[_Answer]]"], ...]


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
        self._seconds = {STEP: step_seconds, RESET: reset_seconds}
        self._workers: list[_Worker] = []

    @property
    def restarts(self) -> int:
        """Workers that were replaced so far."""
        return sum(worker.restarts for worker in self._workers)

    def __enter__(self) -> Self:
        self._workers = [_Worker(self._environment, self._seconds) for _ in range(self._n_workers)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._workers:
            worker.close()
        for worker in self._workers:
            worker.join()

    def reset(self, sessions: Sequence[int], task_ids: Sequence[str]) -> list[Step]:
        """Starts one task per session. Raises `ConfigError` for an unknown id; broken data ends the episode at once."""
        return self.collect(self.send(RESET, sessions, task_ids))

    def step(self, sessions: Sequence[int], actions: Sequence[str]) -> list[Step]:
        """Plays one action per session."""
        return self.collect(self.send(STEP, sessions, actions))

    def send(self, method: Method, sessions: Sequence[int], arguments: Sequence[str]) -> Pending:
        """Starts what `reset` or `step` does and returns at once."""
        calls = [_Call(method, session, argument) for session, argument in zip(sessions, arguments, strict=True)]
        shares = []
        for index, worker in enumerate(self._workers):
            if mine := [position for position, call in enumerate(calls) if call.session % self._n_workers == index]:
                shares.append((mine, worker.submit([calls[position] for position in mine])))
        return Pending(tuple(shares))

    def collect(self, pending: Pending) -> list[Step]:
        """Waits for the steps of a `send`, in its order."""
        answers = {}
        for positions, future in pending.shares:
            answers |= zip(positions, future.result(), strict=True)
        steps = []
        for _, answer in sorted(answers.items()):
            if isinstance(answer, GradprismError):
                raise answer
            steps.append(Step("", done=True, info=Info(valid=False, failure=answer)) if isinstance(answer, str) else answer)
        return steps


class _Worker:
    """A process that holds sessions, and the thread of this process that speaks with it."""

    def __init__(self, environment: Environment, seconds: dict[str, float]) -> None:
        self._environment, self._seconds = environment, seconds
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[list[_Answer]] | None = None
        self._histories: dict[int, list[str]] = {}  # session -> its task and the actions since
        self._failures: dict[int, str] = {}  # session -> why its episode is over
        self._lost: set[int] = set()  # sessions that went with a process that broke
        self._closing = False
        self.restarts = 0
        self._start()

    def submit(self, calls: list[_Call]) -> "Future[list[_Answer]]":
        """Has `calls` answered in their order, after those submitted before."""
        self._last = self._thread.submit(self._answers, calls)
        return self._last

    def close(self) -> None:
        """Lets the process end, or ends it where it was cut short in a call: it may be hanging."""
        self._closing = True
        self._thread.shutdown(wait=False)  # what is queued behind ends at once
        while self._last is not None and wait([self._last], timeout=0.1).not_done:
            self.process.kill()
        self._connection.close()  # workers leave at end of file

    def join(self) -> None:
        """Waits for the process to end, not forever."""
        self.process.join(timeout=5)
        self.process.kill()
        self.process.join()

    def _start(self) -> None:
        self._connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_work, args=(theirs, self._environment), daemon=True)
        try:
            self.process.start()
        except RuntimeError as error:
            if "bootstrapping" not in str(error):
                raise
            sys.exit(_UNGUARDED)  # this is such a worker; whoever started it says what is wrong, once
        theirs.close()
        self._ready = False  # it has imported its environment and waits for calls

    def _answers(self, calls: list[_Call]) -> list[_Answer]:
        for call in calls:
            if call.method == RESET:
                self._histories[call.session] = [call.argument]
                self._failures.pop(call.session, None)
        answers: dict[int, _Answer] = {call.session: self._failures.get(call.session, "") for call in calls}
        waiting = deque(call for call in calls if call.session not in self._failures)
        attempts, sent = 0, False
        while waiting and not self._closing:
            call = waiting[0]
            try:
                if not sent:
                    self._send(waiting)
                    sent = True
                answer = self._receive(self._limit(call))
            except (EOFError, OSError) as error:
                what = str(error) if isinstance(error, TimeoutError) else self._how_it_died()
                if not self._ready:  # no game's fault, and the next one would do the same
                    return [self._unstarted(what)] * len(calls)
                attempts, sent = attempts + 1, False
                answer = self._replace(call, what)
                if attempts < ATTEMPTS:
                    continue
            waiting.popleft()
            attempts = 0
            answers[call.session] = answer
            if isinstance(answer, str):
                self._failures[call.session] = answer
            elif call.method == STEP:
                self._histories[call.session].append(call.argument)
            self._lost.discard(call.session)
        return [answers[call.session] for call in calls]

    def _send(self, calls: Sequence[_Call]) -> None:
        if not self._ready:
            self._receive(self._seconds[RESET])
            self._ready = True
        # Sessions are set up again when they are next stepped, so that one which cannot be harms no other.
        self._connection.send([c._replace(history=tuple(self._histories[c.session])) if self._is_restored(c) else c for c in calls])

    def _receive(self, seconds: float) -> _Answer:
        if not self._connection.poll(seconds):
            raise TimeoutError(f"did not answer for {seconds:g} s and was stopped")
        return self._connection.recv()

    def _is_restored(self, call: _Call) -> bool:
        return call.method == STEP and call.session in self._lost

    def _limit(self, call: _Call) -> float:
        """Seconds that the worker may take for a call."""
        return self._seconds[call.method] + (self._seconds[RESET] if self._is_restored(call) else 0.0)

    def _how_it_died(self) -> str:
        self.process.join(timeout=1)
        return f"died (exit code {self.process.exitcode})"

    def _unstarted(self, what: str) -> GradprismError:
        """Why a worker did not come to wait for calls; one that is killed has a negative exit code."""
        failed = self.process.exitcode or 0
        guard = 'put what the script does below `if __name__ == "__main__":`, since each worker imports the script'
        if failed == _UNGUARDED:
            return ConfigError(f"{sys.argv[0]}: has no main guard; {guard}")
        advice = f"if it comes from a script, {guard}" if failed > 0 else "if memory ran out, use fewer workers"
        return EnvironmentPlayError(f"environment {self._environment.name!r}: a worker {what} as it started; {advice}")

    def _replace(self, call: _Call, what: str) -> str:
        """Puts a new process in place of the one that `call` broke; returns what happened, which a line on stderr says too."""
        shown, task_id = f"{call.method} {call.argument!r:.120}", self._histories[call.session][0]
        message = f"environment {self._environment.name!r}: the worker {what} at {shown} of task {task_id!r}"
        if not self._closing:
            warn(f"warning: {message}")
            self.process.kill()
            self.process.join()
            self._connection.close()
            self.restarts += 1
            self._lost |= self._histories.keys()
            self._start()
        return message


def _work(connection: Connection, environment: Environment) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer; the pipe's end stops a worker
    sessions: dict[int, Session] = {}
    try:
        connection.send("ready")
        while True:
            for call in connection.recv():
                connection.send(_serve(environment, sessions, call))
    except (EOFError, ConnectionError):
        return


def _serve(environment: Environment, sessions: dict[int, Session], call: _Call) -> _Answer:
    try:
        if call.session not in sessions:
            sessions[call.session] = environment.session()
        session = sessions[call.session]
        if call.history:
            session.reset(call.history[0])
            for action in call.history[1:]:
                session.step(action)
        step = session.reset(call.argument) if call.method == RESET else session.step(call.argument)
        _check_figures(step)
        return step
    except RAISED as error:
        return error
    except Exception as error:
        sessions.pop(call.session, None)  # its engine may be in any state
        said = str(error) if isinstance(error, GradprismError) else f"{type(error).__name__}: {error}"
        return f"{environment.name}: {call.method} {call.argument!r:.120} failed: {said}"


def _check_figures(step: Step) -> None:
    """Raises `ValueError` for a reward or score that is no finite number: none can be learnt from, added up, or written as JSON."""
    figures = {"reward": step.reward, "score": step.info.score, **{f"part {k!r}": v for k, v in step.info.parts.items()}}
    for name, value in figures.items():
        if not math.isfinite(value):
            raise ValueError(f"the {name} is {value}, not a finite number")
