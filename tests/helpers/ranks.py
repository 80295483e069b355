"""Several processes that probe or train together, as a launcher starts them, but quickly: forked from one that has imported everything.

Also a `gradprism` that probes slowly (`python -m helpers.ranks probe …`), for tests that kill it in time.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import transformers.models.llama.modeling_llama
import transformers.models.qwen3.modeling_qwen3  # noqa: F401

from gradprism.cli import evaluate, probe, sft  # noqa: F401
from gradprism.cli.main import main
from gradprism.probing import api, run  # noqa: F401
from gradprism.probing.prober import Prober, ProbeResult
from gradprism.training.loop import Loop

TESTS = Path(__file__).parents[1]


def environment(**more: str) -> dict[str, str]:
    """Variables for a process of a test: quiet, on one thread, and with the tests' helpers to import."""
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    quiet |= {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # as main sets it, but before torch is loaded for all
    return {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent / 'src'}", "OMP_NUM_THREADS": "1", **quiet, **more}


class RankRun:
    """`world` processes that run `gradprism` with `arguments` at once; `outputs` and `errors` are what each has printed."""

    def __init__(self, folder: Path, world: int, arguments: Sequence[object], pause: float = 0.0, **variables: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        folder.mkdir(parents=True, exist_ok=True)
        self._printed = [[folder / f"{kind}-{rank}" for rank in range(world)] for kind in ("out", "err")]
        self.processes: list[BaseProcess] = []
        for rank in range(world):
            variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            where = {**variables, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            files = [str(paths[rank]) for paths in self._printed]
            process = _context().Process(target=_rank, args=(where, files, list(map(str, arguments)), pause))
            process.start()
            self.processes.append(process)

    def wait(self) -> list[int | None]:
        """Exit codes; like a launcher, ends all processes with SIGTERM when one has failed."""
        deadline, told = time.monotonic() + 300, False
        while any(process.is_alive() for process in self.processes):
            late = time.monotonic() > deadline
            if not told and (late or any(process.exitcode for process in self.processes)):
                kill_processes([process.pid for process in self.processes if process.is_alive()], signal.SIGTERM)
                told = True
            time.sleep(0.02)
        return [process.exitcode for process in self.processes]

    @property
    def outputs(self) -> list[str]:
        return [path.read_text() for path in self._printed[0]]

    @property
    def errors(self) -> list[str]:
        return [path.read_text() for path in self._printed[1]]


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    before = dict(os.environ)
    os.environ.update(environment())  # the server keeps what it is started with, and finds this module by it
    try:
        from multiprocessing import forkserver

        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def _rank(variables: dict[str, str], files: list[str], arguments: list[str], pause: float) -> None:
    os.environ.update(variables)
    for descriptor, path in zip((1, 2), files, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    slow_down(pause)
    sys.argv = ["gradprism", *arguments]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
    if variables["WORLD_SIZE"] == "1":
        return
    # A thread that is still there aborts a process that ends while it finishes an exchange.
    left = set()
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it has ended
            left.add(path.read_text().strip())
    assert not {name for name in left if "gloo" in name}, left


def slow_down(pause: float) -> None:
    """Makes each batch take `pause` seconds longer and shards small; nothing for 0."""
    if not pause:
        return
    probe_batch, train_batch = Prober.probe, Loop.update

    def slow(self: Prober, trajectories: Sequence) -> ProbeResult:
        time.sleep(pause)
        return probe_batch(self, trajectories)

    def slow_training(self: Loop, loss: float, tokens: int, response_tokens: int) -> dict[str, float]:
        time.sleep(pause)
        return train_batch(self, loss, tokens, response_tokens)

    Prober.probe = slow  # pyright: ignore[reportAttributeAccessIssue]
    Loop.update = slow_training
    run.SHARD_ROWS = 4


def kill_processes(processes: Sequence[int | None], number: int = signal.SIGKILL) -> None:
    """Sends a signal to those that are still there."""
    for process in processes:
        assert process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


if __name__ == "__main__":
    slow_down(0.1)
    main()
