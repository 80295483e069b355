"""The machine that measures: its device, its versions, and what its maker says that it can do."""

import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import dataclass

import torch

# Dense bfloat16 TFLOP/s by the makers' data sheets; the first name that is in the device's own counts.
PEAKS = {"H200": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A10G": 70.0}
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Machine:
    """Device, its memory in GiB and peak in bfloat16 TFLOP/s (None: not known), and the versions of what computes."""

    device: str
    memory_gib: float
    peak_tflops: float | None
    cores: int
    python: str
    torch: str
    cuda: str
    transformers: str

    @property
    def line(self) -> str:
        """A line that names it."""
        on = f"CUDA {self.cuda}" if self.cuda else "no CUDA"
        versions = f"Python {self.python}, torch {self.torch}, {on}, transformers {self.transformers}"
        return f"{self.device}, {self.memory_gib:.0f} GiB, {self.cores} cores; {versions}."


def this_machine(device: str) -> Machine:
    """The machine that runs this, with `device` (cpu or cuda) as its device."""
    cuda = device.startswith("cuda")
    name = torch.cuda.get_device_name(device) if cuda else _processor()
    memory = torch.cuda.get_device_properties(device).total_memory if cuda else _host_memory()
    return Machine(
        device=name,
        memory_gib=memory / GIB,
        peak_tflops=peak_tflops(name) if cuda else None,
        cores=os.cpu_count() or 1,
        python=platform.python_version(),
        torch=str(torch.__version__),
        cuda=str(torch.version.cuda or ""),
        transformers=version("transformers"),
    )


def peak_tflops(name: str) -> float | None:
    """The peak of a device by the name that it gives itself; None for one that is not listed."""
    return next((peak for key, peak in PEAKS.items() if key in name), None)


def version(package: str) -> str:
    """The version of an installed package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def installed(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _processor() -> str:
    return f"{platform.processor() or platform.machine()} processor"
