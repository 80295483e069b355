"""Runs stages one after another in this process, or several at once, each in a process of its own; says what is done and pending.

With a process of its own a stage's peak memory is its own. Processes end with the command that started them, so none is left to write into
a folder that a second command has taken over.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np
import psutil

from gradprism.experiments.results import Cost, Part
from gradprism.experiments.stage import AnyStage, Record, Store, with_needs
from gradprism.runtime.errors import GradprismError, StageError
from gradprism.runtime.files import read_json, write_json
from gradprism.runtime.progress import say, set_quiet

RUNNING, LOG = "running", "workers.log"
_served: dict[str, str] = {}  # the environment in which the server of workers began
_PRELOADED = "gradprism.experiments.preloaded"
_GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and either's under WSL
Labels = Mapping[str, str]  # a stage's name -> how a person is told of it


def run_stages(
    store: Store, wanted: Sequence[AnyStage], labels: Labels, jobs: int | None = None, threads: int | None = None
) -> None:
    """Runs the `wanted` stages that are not done and all that they need, in order; at most `jobs` at once, or in this process (None).

    In this process the first error ends it. With jobs, a stage that fails is said at once and all that does not need it still runs;
    `StageError` is raised at the end. Whoever calls it holds the run folder's lock.
    """
    _say_reused(store, wanted, labels)
    told = _Told(store, wanted, labels, jobs or 1)
    if jobs is not None and told.pending:
        _run_in_processes(store, told, jobs, threads)
    elif told.pending:
        _set_threads(threads)
        for stage in told.pending:
            told.begin(stage)
            with _marked(store, stage):
                record = store.run(stage)
            told.end(stage, record)


class _Told:
    """Lines for a person about stages that begin and end."""

    def __init__(self, store: Store, wanted: Sequence[AnyStage], labels: Labels, jobs: int) -> None:
        self.store, self.labels, self.jobs = store, labels, jobs
        self.pending = store.pending(wanted)
        self.left = list(self.pending)
        self.begun = 0

    def label(self, stage: AnyStage) -> str:
        return self.labels.get(stage.name, stage.kind)

    def begin(self, stage: AnyStage) -> None:
        self.begun += 1
        say(f"[{self.begun}/{len(self.pending)}] {self.label(stage)} …")

    def end(self, stage: AnyStage, record: Record) -> None:
        self.left.remove(stage)
        rest = sum(expected_seconds(self.store, self.left) or []) / self.jobs
        said = f" · {record.headline}" if record.headline else ""
        minutes = f" · {rest / 60:.0f} min left" if rest > 60 else ""
        say(f"{self.label(stage)}: {record.cost.wall_seconds:.1f} s{said}{minutes}")


def _say_reused(store: Store, wanted: Sequence[AnyStage], labels: Labels) -> None:
    done = [stage for stage in with_needs(wanted).values() if store.is_done(stage)]
    if done:
        names = [labels.get(stage.name, stage.kind) for stage in done]
        say(f"reused: {', '.join(names) if len(names) <= 12 else f'{len(names)} results'}")
    if others := [stage for stage in done if store.is_of_other_code(stage)]:
        versions = ", ".join(sorted({store.record(stage).version for stage in others}))
        say(f"{len(others)} of {len(done)} reused results were made by other code (gradprism {versions}); --fresh makes them again")


def _run_in_processes(store: Store, told: _Told, jobs: int, threads: int | None) -> None:
    store.folder.mkdir(parents=True, exist_ok=True)
    context = _context()
    pool = ProcessPoolExecutor(jobs, context, _begin, (str(store.folder / LOG), threads, dict(os.environ)), max_tasks_per_child=1)
    running: dict[Future[Record | str], AnyStage] = {}
    failed: dict[str, str] = {}  # name of the stage -> error
    started = time.monotonic()
    waiting = {stage.name: stage for stage in told.pending}
    pending = set(waiting)  # a fresh run's results are there before they are made again
    try:
        while waiting or running:
            for name, stage in list(waiting.items()):
                needs = {need.name for need in stage.needs}
                if needs & failed.keys():
                    failed[name] = "a stage that it needs failed"
                elif len(running) < jobs and not needs & pending:
                    told.begin(stage)
                    running[pool.submit(_run, store, stage)] = stage
                else:
                    continue
                del waiting[name]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                ended, stage = future.result(), running.pop(future)
                if isinstance(ended, str):
                    failed[stage.name] = ended
                    say(f"{told.label(stage)} failed: {ended}")
                else:
                    pending.remove(stage.name)
                    told.end(stage, ended)
    except (BrokenProcessPool, EOFError, ConnectionError):
        cut = ", ".join(map(told.label, running.values()))
        raise StageError(
            f"{store.folder}: a process died (killed, or out of memory) in {cut or 'a stage'}; give the same command again, "
            "which goes on from there, or fewer --jobs"
        ) from None
    finally:
        if sys.exc_info()[0] is not None:  # an interrupt must not wait for hours of training
            for process in list(getattr(pool, "_processes", None) or {}):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        pool.shutdown(wait=True, cancel_futures=True)
    if failed:
        name, error = next(iter(failed.items()))
        [stage] = [stage for stage in told.pending if stage.name == name]
        raise StageError(
            f"{store.path(stage)}: {told.label(stage)} failed ({error}); {len(failed)} of {len(told.pending)} stages are pending after "
            f"{(time.monotonic() - started) / 60:.0f} min; details in {store.folder / LOG}"
        )


def _context() -> BaseContext:
    """How workers begin: forked from a server that has imported `_PRELOADED`, which takes seconds once and not for each.

    A child of this process itself would inherit the threads and locks of libraries. Where there may be a GPU each begins from nothing: to
    ask a library for GPUs, as some do when they are imported, leaves what is forked after it without any. So it does where the environment
    is not the one that the server began in, which libraries read when they are imported.
    """
    if any(Path(device).exists() for device in _GPU_DRIVERS) or _served not in ({}, os.environ):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    if not _served:
        _served.update(os.environ)
        context.set_forkserver_preload([_PRELOADED])
        # The server would look for modules in the working directory first, and not where this process does.
        os.environ.update({"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
        try:
            forkserver.ensure_running()
        finally:
            os.environ.clear()
            os.environ.update(_served)
    return context


def _begin(log: str, threads: int | None, environment: Mapping[str, str]) -> None:
    """Sets a worker up: what libraries print goes to `log`, and the worker ends with the process that started it.

    The `environment` is that of the command, without what the server was told besides.
    """
    os.environ.clear()
    os.environ.update(environment)
    np.random.seed()  # what is forked has one state, which libraries that draw from it would share
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    set_quiet(True)
    _set_threads(threads)


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch  # seconds that a command with nothing to do need not wait

        torch.set_num_threads(threads)


def _run(store: Store, stage: AnyStage) -> Record | str:
    """Runs a stage in a worker; the error's message where it fails, whose trace goes to the log."""
    with _marked(store, stage):
        try:
            import_module(stage.runner.partition(":")[0])
            return store.run(stage)
        except Exception as error:
            print(f"{stage.name}:", file=sys.stderr)
            traceback.print_exc()
            return f"{error}" if isinstance(error, GradprismError) else f"{type(error).__name__}: {error}"[:500]


# --- what is done, running and pending


def _marker(store: Store, stage: AnyStage) -> Path:
    """The file of a running stage, with its process, beside the stages' folders; after a kill it names a process that is gone."""
    return store.folder / RUNNING / f"{stage.name}.json"


@contextlib.contextmanager
def _marked(store: Store, stage: AnyStage) -> Iterator[None]:
    marker = _marker(store, stage)
    write_json(marker, {"pid": os.getpid(), "created": psutil.Process().create_time()})
    try:
        yield
    finally:
        marker.unlink(missing_ok=True)


def _is_running(store: Store, stage: AnyStage) -> bool:
    path = _marker(store, stage)
    if path.is_file():
        told = read_json(path)
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(told["pid"]).create_time() == told["created"]
    return False


class StageState(Part):
    """A stage in a few figures: the seconds that it took or is expected to take (None for not known), its peaks in MiB once it is done."""

    kind: str
    label: str
    seconds: float | None = None
    peak_memory_mib: float = 0.0
    peak_gpu_memory_mib: float = 0.0


class Status(Part):
    """The stages that are done, running and pending, and the seconds left (None until a stage is done)."""

    done: list[StageState]
    running: list[StageState]
    pending: list[StageState]
    seconds_left: float | None


def status(store: Store, wanted: Sequence[AnyStage], labels: Labels, jobs: int) -> Status:
    """The state of the `wanted` stages and of those that they need, with `jobs` at once; a running one counts as just begun."""
    stages, left = list(with_needs(wanted).values()), store.pending(wanted)
    seconds = expected_seconds(store, left)
    expected = dict(zip((stage.name for stage in left), seconds or [], strict=False))
    states: dict[str, list[StageState]] = {"done": [], "running": [], "pending": []}
    for stage in stages:
        state = "done" if store.is_done(stage) else "running" if _is_running(store, stage) else "pending"
        cost = store.record(stage).cost if state == "done" else Cost()
        about = StageState(
            kind=stage.kind,
            label=labels.get(stage.name, stage.kind),
            seconds=cost.wall_seconds if state == "done" else expected.get(stage.name),
            peak_memory_mib=cost.peak_memory_mib,
            peak_gpu_memory_mib=cost.peak_gpu_memory_mib,
        )
        states[state].append(about)
    return Status(**states, seconds_left=0.0 if not left else None if seconds is None else sum(seconds) / jobs)


def expected_seconds(store: Store, stages: Sequence[AnyStage]) -> list[float] | None:
    """Seconds that each of `stages` would take, by what those of its kind in the run folder took per unit of work; None before any ran.

    A kind of which none has run counts as a stage of the mean length.
    """
    records = store.records()
    if not records:
        return None
    rates: dict[str, list[float]] = {}
    for record in records:
        rates.setdefault(record.kind, []).append(record.cost.wall_seconds / record.work)
    mean = sum(record.cost.wall_seconds for record in records) / len(records)
    return [sum(rates[s.kind]) / len(rates[s.kind]) * s.work if s.kind in rates else mean for s in stages]
