"""Time and memory of one piece of work, on a CPU or a CUDA device."""

import gc
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")


def seconds(run: Callable[[], Any], device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of one call by `clock`, with everything that it started on the device finished."""
    gc.collect()
    _wait(device)
    began = clock()
    run()
    _wait(device)
    return clock() - began


def peak_bytes(run: Callable[[], T], device: str) -> tuple[int, T]:
    """The most memory that one call holds above what was held before it, in the bytes that torch's allocator gave out; and its result."""
    gc.collect()
    if device.startswith("cuda"):
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before, result
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    # Each allocation is an event, and each release one of negative size.
    recorded: Any = profiler.profiler
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    return highest_sum(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())), result


def highest_sum(changes: Iterable[int]) -> int:
    """The highest running sum, at least 0."""
    highest = total = 0
    for change in changes:
        total += change
        highest = max(highest, total)
    return highest


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
