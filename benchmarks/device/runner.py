"""Runs a part's cases in the order of their worth until its budget of seconds is spent; a rerun goes on with what is pending."""

import gc
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from device.machine import Machine
from device.results import Case, Outcome, Part, Report, Store, page
from gradprism.runtime.errors import one_line
from gradprism.runtime.files import atomic_write
from gradprism.runtime.progress import say

# Seconds past the budget after which a case that is running is stopped and left pending.
GRACE = 45.0
# A process that ended this often in the same case will end there again.
ATTEMPTS = 2


class OutOfTimeError(BaseException):
    """The time of a part is up. No `Exception`, so that nothing which catches those goes on."""


class DeviceLostError(RuntimeError):
    """The device takes no more work from this process; another process may go on."""


def run_part(part: Part, out: Path, machine: Machine, budget: float, *, retry: bool = False) -> list[str]:
    """Measures what is pending, writes the part's page, and returns the names of cases that are still pending.

    `retry` measures failed cases again. Raises `DeviceLostError` after a failure that leaves the device unusable.
    """
    store, began = Store(out, part.name), time.monotonic()
    for case in _pending(part, store, retry):
        left = budget - (time.monotonic() - began)
        if left < case.seconds:
            say(f"{part.name}: {case.name} is left pending: {left:.0f} s are left, and it may take {case.seconds:.0f}")
            continue
        say(f"{part.name}: {case.name}")
        outcome = try_case(case, store, machine, left + GRACE)
        if outcome.status != "pending":
            store.write(outcome)
            store.end(case.name)
        say(f"{part.name}: {case.name}: {outcome.status} after {outcome.seconds:.1f} s {outcome.reason}")
        write_page(part, store)
        if "CUDA error" in outcome.reason:
            raise DeviceLostError(f"{case.name}: {outcome.reason}; give the same command again")
    return write_page(part, store)


def write_page(part: Part, store: Store) -> list[str]:
    """Writes the part's tables from what is in the store; the names of cases that are pending."""
    found = {case.name: store.read(case.name) for case in part.cases}
    pending = [name for name, outcome in found.items() if outcome is None]
    text = page(part, [outcome for outcome in found.values() if outcome], pending)
    with atomic_write(store.folder / f"{part.name}.md") as file:
        file.write(text)
    return pending


def try_case(case: Case, store: Store, machine: Machine, limit: float) -> Outcome:
    """One case: measured, failed for a reason that is said, or pending where `limit` seconds were not enough."""
    began = time.monotonic()
    status, reason, report = "measured", "", Report([])
    if store.begun(case.name) >= ATTEMPTS:
        return Outcome(case.name, case.table, "failed", machine, reason=f"the process ended in it {ATTEMPTS} times")
    store.begin(case.name)
    try:
        with time_limit(limit):
            report = case.run()
        if report.failure:
            status, reason = "failed", report.failure
    except OutOfTimeError:
        status, reason = "pending", f"stopped after {limit:.0f} s"
        store.end(case.name)
    except Exception as error:  # whatever goes wrong in one case is a line of the table, and not the end
        status, reason = "failed", why(error)
    free()
    return Outcome(case.name, case.table, status, machine, time.monotonic() - began, report.rows, reason)


def why(error: BaseException) -> str:
    """A failure in one line."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error):
        return "out of memory"
    return f"{type(error).__name__}: {one_line(error, 300)}"


def free() -> None:
    """Gives back what a case has left on the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `OutOfTimeError` in what runs longer; in the main thread alone, elsewhere there is no limit."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError

    try:
        before: Callable[[int, FrameType | None], object] | int | None = signal.signal(signal.SIGALRM, stop)
    except ValueError:  # not the main thread
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _pending(part: Part, store: Store, retry: bool) -> list[Case]:
    """Cases without an outcome, in order; those in which a process has ended come last."""
    found = {case.name: store.read(case.name) for case in part.cases}
    again = {name for name, outcome in found.items() if outcome is None or (retry and outcome.status == "failed")}
    return sorted((case for case in part.cases if case.name in again), key=lambda case: store.begun(case.name) > 0)
