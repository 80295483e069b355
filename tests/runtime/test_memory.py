"""Peaks of memory; a GPU is stood in for."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from gradprism.runtime import memory

PEAKS = """
import numpy as np
from gradprism.runtime.memory import peak_memory_mib, reset_peak_memory
start = peak_memory_mib()
block = np.ones(64 * 2**17)
high = peak_memory_mib()
del block
reset_peak_memory()
print(high - start, high - peak_memory_mib())
"""


def test_the_peak_is_that_since_the_reset():
    # In a fresh process: in this one, allocators may hold what earlier tests have used.
    out = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True).stdout
    grown, fallen = map(float, out.split())
    assert grown == pytest.approx(64, abs=8) and fallen > 50


@pytest.fixture
def gpu(monkeypatch):
    calls = []
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        max_memory_allocated=lambda: 3 * 2**20,
        get_device_name=lambda: "Some GPU",
        reset_peak_memory_stats=lambda: calls.append("reset"),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    return cuda, calls


def test_a_gpu_is_asked_where_this_process_uses_one(gpu):
    cuda, calls = gpu
    memory.reset_peak_gpu_memory()
    assert calls == ["reset"]
    assert (memory.peak_gpu_memory_mib(), memory.gpu_name()) == (3.0, "Some GPU")
    cuda.is_initialized = lambda: False
    memory.reset_peak_gpu_memory()
    assert calls == ["reset"] and memory.peak_gpu_memory_mib() is None and memory.gpu_name() is None


def test_without_torch_no_gpu_is_asked(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert memory.peak_gpu_memory_mib() is None
    assert "torch" not in sys.modules
