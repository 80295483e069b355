"""Runs a graph of stages in several processes at once, and says what is done, running and owed.

Each stage has a process of its own, so that its peak memory is its own. A process ends with the command that started it, so none is left
to write into a folder that a second command has taken over.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from gradprism.experiments.stages import Stage, StageGraph
from gradprism.runtime.errors import GradprismError, StageError
from gradprism.runtime.files import read_json, write_json
from gradprism.runtime.folders import exclusive_lock
from gradprism.runtime.progress import say, set_quiet

RUNNING, LOCK, LOG = "running", ".experiment.tmp", "workers.log"


def run_jobs(graph: StageGraph, wanted: Sequence[str], labels: Mapping[str, str], jobs: int, threads: int | None = None) -> None:
    """Runs the `wanted` stages that are not done and all that they need, at most `jobs` at once, earlier ones first.

    A stage that fails is said at once; all that does not need it still runs. Raises `StageError` at the end where any did, and
    `FolderInUseError` where another command runs the same experiment.
    """
    if not owed_stages(graph, wanted):
        return
    with exclusive_lock(graph.folder, LOCK, "the experiment is being run"):
        owed = owed_stages(graph, wanted)
        context = multiprocessing.get_context("spawn")  # forked children would inherit the threads and locks of libraries
        failed: dict[str, str] = {}
        started, total = time.monotonic(), len(owed)
        pool = ProcessPoolExecutor(jobs, context, _begin, (str(graph.folder / LOG), threads), max_tasks_per_child=1)
        running: dict[Future[str | None], str] = {}
        try:
            left = list(owed)
            while left or running:
                for name in list(left):
                    stage = _stage(graph, name)
                    if any(need in failed for need in stage.needs.values()):
                        failed[name] = "a stage that it needs failed"
                    elif len(running) < jobs and all(graph.is_done(need) for need in stage.needs.values()):
                        say(f"[{total - len(left) + 1}/{total}] {labels.get(name, name)} …")
                        running[pool.submit(_run, graph, stage)] = name
                    else:
                        continue
                    left.remove(name)
                if not running:
                    continue
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    error, name = future.result(), running.pop(future)
                    if error:
                        failed[name] = error
                        say(f"{labels.get(name, name)} failed: {error}")
                    else:
                        record = graph.record(name, reused=False)
                        said = record.summary.get("headline", "")
                        rest = time_left(graph, [*left, *running.values()], jobs)
                        say(
                            f"{labels.get(name, name)}: {record.cost['wall_seconds']:.0f} s{f' · {said}' if said else ''}"
                            f"{f' · {rest / 60:.0f} min left' if rest is not None and (left or running) else ''}"
                        )
        except BrokenProcessPool:
            cut = ", ".join(labels.get(name, name) for name in running.values())
            raise StageError(
                f"{graph.folder}: a process died (killed, or out of memory) in {cut or 'a stage'}; give the same command again, "
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
            raise StageError(
                f"{graph.path(name)}: {labels.get(name, name)} failed ({error}); {len(failed)} of {total} stages are owed after "
                f"{(time.monotonic() - started) / 60:.0f} min; details in {graph.folder / LOG}"
            )


def owed_stages(graph: StageGraph, wanted: Sequence[str]) -> list[str]:
    """The `wanted` stages that are not done, and all that they need and is not done, in the graph's order."""
    owed: set[str] = set()
    stages = {stage.name: stage for stage in graph.stages}

    def visit(name: str) -> None:
        if name not in owed and not graph.is_done(name):
            owed.add(name)
            for need in stages[name].needs.values():
                visit(need)

    for name in wanted:
        visit(name)
    return [name for name in stages if name in owed]


def state_of(graph: StageGraph, name: str) -> str:
    """`done`, `running` or `owed`."""
    if graph.is_done(name):
        return "done"
    path = _marker(graph, name)
    if path.is_file():
        import psutil

        told = read_json(path)
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(told["pid"]).create_time() == told["created"]:
                return "running"
    return "owed"


def _marker(graph: StageGraph, name: str) -> Path:
    """What a running stage leaves beside the stages' folders, with its process; after a kill it names a process that is gone."""
    return graph.folder / RUNNING / f"{name}.json"


def time_left(graph: StageGraph, names: Sequence[str], jobs: int) -> float | None:
    """Seconds until the stages `names` are done, from what finished ones of their kind took a unit of work; None before any has.

    Work is RL's rounds, and otherwise the stage itself. What runs counts as if it had just begun, and a kind of which none has
    finished as a stage of the mean length.
    """
    spent: dict[str, list[float]] = {}
    lengths = []
    for stage in graph.stages:
        if graph.is_done(stage.name):
            lengths.append(graph.record(stage.name).cost["wall_seconds"])
            spent.setdefault(graph.kinds[stage.name], []).append(lengths[-1] / _work(stage))
    if not lengths:
        return None
    total = 0.0
    for stage in graph.stages:
        if stage.name in names:
            each = spent.get(graph.kinds[stage.name])
            total += sum(each) / len(each) * _work(stage) if each else sum(lengths) / len(lengths)
    return total / jobs


def _work(stage: Stage) -> float:
    return float(stage.reads["rl"]["rounds"]) if "rl" in stage.reads else 1.0


def _stage(graph: StageGraph, name: str) -> Stage:
    return next(stage for stage in graph.stages if stage.name == name)


def _begin(log: str, threads: int | None) -> None:
    """Sets a worker up: what libraries print goes to `log`, and the worker ends with the process that started it."""
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
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _run(graph: StageGraph, stage: Stage) -> str | None:
    """Runs a stage in a worker; the error's message where it fails, whose trace goes to the log."""
    import traceback
    from importlib import import_module

    import psutil

    marker = _marker(graph, stage.name)
    marker.parent.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"pid": os.getpid(), "created": psutil.Process().create_time()})
    try:
        for library in stage.imports:
            import_module(library)
        graph.run_stage(stage)
    except Exception as error:
        print(f"{stage.name}:", file=sys.stderr)
        traceback.print_exc()
        return f"{error}" if isinstance(error, GradprismError) else f"{type(error).__name__}: {error}"[:500]
    finally:
        marker.unlink(missing_ok=True)
    return None


def summary(graph: StageGraph, wanted: Sequence[str], labels: Mapping[str, str], jobs: int) -> dict[str, Any]:
    """What is done, running and owed of the `wanted` stages and those that they need, and the seconds left with `jobs` at once."""
    states: dict[str, list[str]] = {"done": [], "running": [], "owed": []}
    needed = set(wanted) | _needs(graph, wanted)
    for stage in graph.stages:
        if stage.name in needed:
            states[state_of(graph, stage.name)].append(labels.get(stage.name, stage.name))
    owed = owed_stages(graph, wanted)
    return {**states, "seconds_left": time_left(graph, owed, jobs) if owed else 0.0}


def _needs(graph: StageGraph, wanted: Sequence[str]) -> set[str]:
    stages, found = {stage.name: stage for stage in graph.stages}, set()

    def visit(name: str) -> None:
        for need in stages[name].needs.values():
            if need not in found:
                found.add(need)
                visit(need)

    for name in wanted:
        visit(name)
    return found
