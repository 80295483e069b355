"""Peaks of memory; a GPU is stood in for."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from gradprism import memory


def test_the_peak_is_that_since_the_reset():
    block = np.ones(64 * 2**17)  # 64 MiB
    before = memory.peak_memory_mib()
    del block
    memory.reset_peak_memory()
    assert memory.peak_memory_mib() < before - 30
    block = np.ones(64 * 2**17)
    assert memory.peak_memory_mib() >= before - 30 and block.sum() == 64 * 2**17


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
