"""The largest memory that this process has had."""

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path


def reset_peak_memory() -> None:
    """Lets the kernel's peak start again at what is resident now (Linux; elsewhere, or where forbidden, the peak is the process's).

    What the process no longer uses is given back first, as far as the allocator can.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> float:
    """Largest resident memory of this process since the reset, in MiB; that of other processes is not counted."""
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
