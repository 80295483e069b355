"""What torch tells of a processor, which is stood in for."""

import pytest
import torch

from gradprism.runtime.processor import lacks_bfloat16


@pytest.mark.parametrize(
    ("told", "lacks"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, False),
        ({"architecture": "x86_64", "avx512_bf16": False}, True),
        ({"architecture": "arm64", "neon": True, "bf16": False}, False),
        ({}, False),
    ],
)
def test_an_x86_without_bfloat16_instructions_emulates_it(monkeypatch, told, lacks):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert lacks_bfloat16() is lacks


def test_of_a_torch_that_does_not_tell_nothing_is_said(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert lacks_bfloat16() is False


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch does not tell")
def test_this_processor_is_told_by_torch_as_by_the_system():
    """The kernel's list of flags is the oracle, where there is one."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), None)
    except OSError:
        flags = None
    if flags is None:
        assert not lacks_bfloat16() or torch.cpu.get_capabilities()["architecture"] == "x86_64"
    else:
        assert lacks_bfloat16() is not ({"avx512_bf16", "amx_bf16"} & set(flags) != set())
