"""The largest memory that this process has had, on the host and on its GPU."""

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path
from typing import Any


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


def reset_peak_gpu_memory() -> None:
    """Lets the peak of the GPU's memory start again, where this process uses one."""
    if torch := _torch_on_gpu():
        torch.cuda.reset_peak_memory_stats()


def peak_gpu_memory_mib() -> float | None:
    """Most memory that torch has had allocated on the GPU since the reset, in MiB; None where this process uses none."""
    torch = _torch_on_gpu()
    return torch.cuda.max_memory_allocated() / 2**20 if torch else None


def gpu_name() -> str | None:
    """The GPU that this process uses; None where it uses none."""
    torch = _torch_on_gpu()
    return torch.cuda.get_device_name() if torch else None


def _torch_on_gpu() -> Any:
    """Torch, where this process has imported it and begun to use a GPU; asking imports and begins nothing."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None
