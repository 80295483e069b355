"""Costs of the two forms of a norm on a device, measured once, so that each matrix of each batch gets the cheaper one.

The measure is kept: in the user's cache folder, so that a machine decides alike in every run, and in the probe folder's manifest.
"""

import contextlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from gradprism.probing.norms import Costs, gram, gram_entries, inner_product, squared_sum
from gradprism.runtime.errors import GradprismError
from gradprism.runtime.files import cache_folder, read_json, sha256_json, write_json

# Shapes of the trial, near those of small models on a CPU and of large ones on a GPU: samples, tokens, features in and out.
_TRIAL = {"cpu": (2, 256, 512), "cuda": (8, 1024, 4096)}
_REPEATS = 5


@cache
def measured_costs(device: str, dtype: torch.dtype) -> Costs:
    """The costs on `device` ("cpu", "cuda", "cuda:1") for models of `dtype`: from the cache folder, or measured in about a second."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    path = cache_folder() / f"costs-{sha256_json([name, str(dtype), str(torch.__version__)])[:16]}.json"
    try:
        return Costs(**read_json(path)["costs"])
    except (OSError, ValueError, TypeError, KeyError):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as many batches at once as there are threads, each on one: so the probe works on a CPU
        try:
            costs = _measure(torch.device(device), dtype)
        finally:
            torch.set_num_threads(threads)
    with contextlib.suppress(OSError, GradprismError):  # without a place to keep it, the next run measures again
        write_json(path, {"device": name, "dtype": str(dtype), "costs": asdict(costs)})
    return costs


def _measure(device: torch.device, dtype: torch.dtype) -> Costs:
    n, T, F = _TRIAL["cuda" if device.type == "cuda" else "cpu"]
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(n, T, F, generator=generator).to(device, dtype)
    wide = half if dtype in (torch.float32, torch.float64) else half.float()
    # float16 has too little range for squares of gradients: always upcast.
    candidates = [wide] if dtype in (torch.float16, torch.float32, torch.float64) else [half, wide]

    def seconds(run: Callable[[], Any]) -> float:
        best = float("inf")
        for _ in range(_REPEATS + 1):  # the first warms up
            _wait(device)
            began = time.perf_counter()
            run()
            _wait(device)
            best = min(best, time.perf_counter() - began)
        return best

    best: tuple[float, Costs] | None = None
    for X in candidates:
        conversion = 0.0 if X is half or dtype == wide.dtype else seconds(lambda: half.float())
        gradient, grams = torch.bmm(X.mT, X), gram(X)
        outer = seconds(lambda X=X: torch.bmm(X.mT, X)) + conversion
        by_gram = seconds(lambda X=X: gram(X)) + conversion
        costs = Costs(
            outer_product=outer / (n * T * F * F),
            outer_entry=seconds(lambda gradient=gradient: squared_sum(gradient)) / (n * F * F),
            gram_product=by_gram / (n * gram_entries(T) * F),
            gram_entry=seconds(lambda grams=grams: inner_product(grams, grams)) / (n * gram_entries(T)),
            upcast=X is not half,
        )
        if best is None or outer + by_gram < best[0]:
            best = (outer + by_gram, costs)
    assert best is not None
    return best[1]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        # Flags too: a virtual machine's model name says little about which instructions it has.
        return json.dumps(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
