"""Runs a part's cases in the order of their worth until its budget of seconds is spent; a rerun goes on with what is pending."""

import gc
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch

from device.machine import Machine
from device.results import Case, Outcome, Part, Report, Status, Store, page
from gradprism.passes import is_out_of_memory
from gradprism.runtime.errors import one_line
from gradprism.runtime.files import atomic_write
from gradprism.runtime.progress import say

# Seconds past the budget after which a case that is running is stopped and left pending.
GRACE = 15.0
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
        try:
            outcome = try_case(case, store, machine, left + GRACE)
        finally:
            write_page(part, store)
        say(f"{part.name}: {case.name}: {outcome.status} after {outcome.seconds:.1f} s {outcome.reason}")
        if outcome.status == "failed":
            check_device(f"{case.name}: {outcome.reason}")
    return write_page(part, store)


def write_page(part: Part, store: Store) -> list[str]:
    """Writes the part's tables from what is in the store; the names of cases that are pending."""
    found = {case.name: store.read(case.name) for case in part.cases}
    pending = [name for name, outcome in found.items() if outcome is None or outcome.status == "pending"]
    text = page(part, [outcome for outcome in found.values() if outcome], pending)
    with atomic_write(store.folder / f"{part.name}.md") as file:
        file.write(text)
    return pending


def try_case(case: Case, store: Store, machine: Machine, limit: float) -> Outcome:
    """One case: measured, failed for a reason that is said, or pending where `limit` seconds were not enough; it is kept in the store.

    A report is kept as it comes, so that what was measured before a stop, a failure or the process's end is not lost; nor is what an
    earlier attempt had measured, unless this one comes further.
    """
    known, began, last = store.read(case.name), time.monotonic(), Report([])

    def keep(report: Report, status: Status, reason: str) -> Outcome:
        outcome = Outcome(case.name, case.table, status, machine, time.monotonic() - began, report.rows, reason, report.done)
        if status != "measured" and known and known.done > report.done:
            outcome = replace(outcome, machine=known.machine, rows=known.rows, done=known.done)
        if outcome.rows or status != "pending":
            store.write(outcome)
        return outcome

    if store.begun(case.name) >= ATTEMPTS:
        outcome = keep(last, "failed", f"the process ended in it {ATTEMPTS} times")
        store.end(case.name)
        return outcome
    store.begin(case.name)
    try:
        with time_limit(limit):
            found = case.run()
            for last in [found] if isinstance(found, Report) else found:
                keep(last, "pending", "not ended")
        outcome = keep(last, "failed" if last.failure else "measured", last.failure)
    except OutOfTimeError:
        outcome = keep(last, "pending", f"stopped after {limit:.0f} s")
    except KeyboardInterrupt:
        keep(last, "pending", "interrupted")
        store.end(case.name)
        raise
    except Exception as error:  # whatever goes wrong in one case is a line of the table, and not the end
        outcome = keep(last, "failed", why(error))
    store.end(case.name)
    free()
    return outcome


def why(error: BaseException) -> str:
    """A failure in one line."""
    return "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {one_line(error, 300)}"


def check_device(failure: str) -> None:
    """Raises `DeviceLostError` where the device takes no work after a failure, as after most of CUDA's errors but a lack of memory."""
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").sum().item()
    except Exception as error:
        if not is_out_of_memory(error):
            raise DeviceLostError(f"{failure}; the device takes no more work: give the same command again") from error


def free() -> None:
    """Gives back what a case has left on the device."""
    gc.collect()
    if torch.cuda.is_initialized():
        with suppress(RuntimeError):  # a lost device has nothing to give back
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
    """Cases that have not ended, in order; those in which a process has ended come last."""
    found = {case.name: store.read(case.name) for case in part.cases}
    statuses = {"pending", "failed"} if retry else {"pending"}
    again = {name for name, outcome in found.items() if outcome is None or outcome.status in statuses}
    return sorted((case for case in part.cases if case.name in again), key=lambda case: store.begun(case.name) > 0)
