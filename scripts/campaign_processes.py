"""The processes of the campaign: commands that are started, waited for and killed."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from campaign_cases import ROOT

PATIENCE = 600  # seconds after which a command counts as hanging


def start(
    arguments: Sequence[str],
    log: Path,
    launcher: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    shim: bool = False,
) -> int:
    """Starts the command in a process group of its own, forked or by `launcher`; its output goes to `log`. The child's pid.

    `variables` are added to a launcher's environment; `shim` gives a forked child a clock that is a day late.
    """
    if launcher:
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [*launcher, *arguments],
                stdout=file,
                stderr=file,
                start_new_session=True,
                env={**environment(), **(variables or {})},
            )
        return process.pid
    if child := os.fork():
        return child
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 1
    try:
        if shim:
            clock_back()
        sys.argv = ["gradprism", *arguments]
        from gradprism.cli.main import main

        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def environment() -> dict[str, str]:
    """One thread per process, and this checkout's sources."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), "RAY_DEDUP_LOGS": "0"}


def clock_back() -> None:
    """Sets this process's clock a day back."""
    real = time.time
    time.time = lambda: real() - 86_400


def wait(child: int, log: Path, seconds: float | None = None) -> tuple[int | None, str]:
    """The child's exit code, None where it still runs after `seconds`, and the end of what it said."""
    until = time.monotonic() + (PATIENCE if seconds is None else seconds)
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")[-20_000:]
        time.sleep(0.01)
    return None, ""


def kill(child: int) -> None:
    """SIGKILL to the child and all that it has started, whatever sessions those are in."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(child)
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


def kill_part(child: int, part: str, rng: random.Random) -> bool:
    """SIGKILL to one process that does part of the child's work; whether there was one."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in psutil.Process(child).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if part in " ".join(one.cmdline()):
                    found.append(one)
    if found:
        with contextlib.suppress(psutil.NoSuchProcess):
            rng.choice(found).kill()
    return bool(found)
