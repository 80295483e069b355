"""The cost of norms of per-sample weight gradients, gradprism's way and every public way, from one run on the same batch.

python benchmarks/probe_cost.py                                    # hidden 1024, 4 layers, T 256 and 1024, float32 and bfloat16
python benchmarks/probe_cost.py --hidden 256 --lengths 128 --dtypes bfloat16 --tokens 512 --repeats 3
python benchmarks/probe_cost.py --device cuda --architecture qwen3-8b --lengths 1024,4096 --dtypes bfloat16 --tokens 8192 --peak-tflops 989
python benchmarks/probe_cost.py --bound                            # the arithmetic alone

Every way's norms are compared with autograd's before anything is timed. Repetitions alternate: each runs every way once, in an order
that moves on, and a ratio is taken between times of the same repetition. Memory is measured in a pass of its own. docs/performance.md
says what the columns mean; benchmarks/README.md how to install the peers.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from gradprism.models import resolve_device
from gradprism.runtime.errors import ConfigError, GradprismError
from gradprism.runtime.files import write_json
from gradprism.runtime.progress import say
from peers.case import RESPONSE_SHARE, TURN_TOKENS, Case, Sizes, build_case, build_model
from peers.loops import norms_by_autograd
from peers.measure import peak_bytes, seconds
from peers.products import bound_table, count
from peers.ways import WAYS, Way

# The published widths of these models; `default` is Qwen3-0.6B with 4 layers and a vocabulary so small that the head, which no way can
# save anything on, hides nothing.
ARCHITECTURES = {
    "default": Sizes(hidden=1024, layers=4, ffn=3072, heads=16, kv_heads=8, head_dim=128, vocabulary=4096),
    "qwen3-0.6b": Sizes(hidden=1024, layers=28, ffn=3072, heads=16, kv_heads=8, head_dim=128, vocabulary=151936),
    "qwen3-8b": Sizes(hidden=4096, layers=36, ffn=12288, heads=32, kv_heads=8, head_dim=128, vocabulary=151936),
}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# A norm further from autograd's than this is another quantity, not a less exact one.
WRONG = {torch.float64: 1e-5, torch.float32: 1e-2, torch.bfloat16: 1.0, torch.float16: 1.0}


@dataclass(slots=True)
class Measured:
    """One way on one batch. `status` is `measured`, `not installed` or `out of memory`; `difference` the largest relative difference
    of a norm from autograd's."""

    status: str = "measured"
    difference: float | None = None
    peak_bytes: int | None = None
    seconds: list[float] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    try:
        return _run(options)
    except GradprismError as error:
        print(error, file=sys.stderr)
        return 2


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [way.name for way in WAYS if way.peer]
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="default", help="widths that the next options override")
    for name in ("hidden", "layers", "ffn", "heads", "kv-heads", "head-dim", "vocabulary"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--lengths", default="256,1024", help="tokens of a sequence, with commas between")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a batch: n = tokens // length, at least 1")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", default=",".join(names), help=f"any of {','.join(names)}, or none")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for a busy machine, on one thread"
    )
    parser.add_argument("--peak-tflops", type=float, help="the device's peak in the dtype, for the share of it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for every figure")
    parser.add_argument("--bound", action="store_true", help="print the arithmetic bounds and stop")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> int:
    lengths = [_positive(text, "--lengths") for text in options.lengths.split(",")]
    given = {name: getattr(options, name) for name in Sizes.__dataclass_fields__ if getattr(options, name) is not None}
    sizes = replace(ARCHITECTURES[options.architecture], **given)
    if options.bound:
        print(bound_table({**ARCHITECTURES, "as given": sizes} if given else ARCHITECTURES, lengths, RESPONSE_SHARE))
        return 0
    if unknown := set(options.dtypes.split(",")) - set(DTYPES):
        raise ConfigError(f"--dtypes {','.join(sorted(unknown))}: choose among {', '.join(DTYPES)}")
    if options.repeats < 1 or options.tokens < 1 or options.threads < 1:
        raise ConfigError("--repeats, --tokens and --threads: must be at least 1")
    if options.clock == "cpu" and (options.device != "cpu" or options.threads > 1):
        raise ConfigError("--clock cpu: counts the time of all threads, so it needs --device cpu and --threads 1")
    ways = _chosen(options.peers)
    device = resolve_device(options.device)
    torch.set_num_threads(options.threads)
    machine = _machine(device, options)
    print(f"{machine}\n\n{_workload(sizes, options)}\n", flush=True)
    cells = []
    for dtype in options.dtypes.split(","):
        model = build_model(sizes, DTYPES[dtype], device, options.seed)
        for T in lengths:
            case = build_case(model, max(1, options.tokens // T), T, options.seed)
            results = _measure(case, ways, device, options)
            cell = {"dtype": dtype, "T": T, "n": len(case.input_ids), "R": case.columns.shape[1], "ways": results}
            cells.append(cell)
            print(_table(cell, sizes, options.peak_tflops) + "\n", flush=True)
        del model
    if options.json:
        values = [{**cell, "ways": {name: asdict(measured) for name, measured in cell["ways"].items()}} for cell in cells]
        write_json(options.json, {"machine": machine, "sizes": asdict(sizes), "seed": options.seed, "cells": values})
    return 0


def _positive(text: str, option: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise ConfigError(f"{option} {text}: must be whole numbers of at least 1, with commas between")
    return int(text)


def _chosen(peers: str) -> list[Way]:
    names = set() if peers == "none" else set(peers.split(","))
    if unknown := names - {way.name for way in WAYS if way.peer}:
        raise ConfigError(
            f"--peers {','.join(sorted(unknown))}: choose among {', '.join(way.name for way in WAYS if way.peer)}, or none"
        )
    return [way for way in WAYS if not way.peer or way.name in names]


def _measure(case: Case, ways: list[Way], device: str, options: argparse.Namespace) -> dict[str, Measured]:
    """Checks every way, then its memory, then times them in turn."""
    label = f"{str(case.model.dtype).removeprefix('torch.')}, T {case.input_ids.shape[1]}"
    results = {way.name: Measured() for way in ways}
    say(f"{label}: norms by autograd")
    expected = norms_by_autograd(case)
    for way in ways:
        result = results[way.name]
        if not way.installed:
            result.status = "not installed"
            continue
        say(f"{label}: {way.title}: norms and memory")
        try:
            with way.open(case) as run:
                result.peak_bytes, found = peak_bytes(run, device)
            if way.gives_norms:
                result.difference = _difference(found, expected, way, case.model.dtype)
        except torch.OutOfMemoryError:
            result.status = "out of memory"
        if device == "cuda":
            torch.cuda.empty_cache()
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    # gradprism and what it is divided by stand next to each other in time.
    own, peers = ([w for w in ways if w.peer == peer and results[w.name].status == "measured"] for peer in (False, True))
    for repetition in range(options.repeats):
        say(f"{label}: repetition {repetition + 1} of {options.repeats}")
        for way in _rotated(own, repetition) + _rotated(peers, repetition):
            with way.open(case) as run:
                results[way.name].seconds.append(seconds(run, device, clock))
    return results


def _difference(found: torch.Tensor, expected: torch.Tensor, way: Way, dtype: torch.dtype) -> float:
    difference = ((found.to(expected) - expected).abs() / expected).max().item()
    # Written so that NaN is refused too.
    if not difference <= WRONG[dtype]:
        raise ConfigError(
            f"{way.title}: its norms differ from autograd's by {difference:.2g} of their size; leave it out with --peers"
        )
    return difference


def _rotated(ways: list[Way], by: int) -> list[Way]:
    by %= max(1, len(ways))
    return ways[by:] + ways[:by]


def ratios(numerator: Measured, denominator: Measured) -> list[float]:
    """The ratios of the times of the same repetition."""
    return [a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True)]


def _table(cell: dict[str, Any], sizes: Sizes, peak_tflops: float | None) -> str:
    results: dict[str, Measured] = cell["ways"]
    n, T, products = cell["n"], cell["T"], count(sizes, cell["T"], cell["R"])
    lines = [
        f"**{cell['dtype']}, T {T}**: {n} sequences of {T} tokens, {cell['R']} of them response tokens. Arithmetic alone: "
        f"{products.plain_ratio:.3f} × floor, {products.needed_ratio:.3f} for only what is needed.",
        "",
        "| way | error | seconds | ÷ floor | ÷ gradprism | tokens/s | share of peak | peak MiB | ÷ floor | ÷ inference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    floor, ours, inference = results["floor"], results["ours"], results["inference"]
    for way in WAYS:
        result = results.get(way.name)
        if result is None:
            continue
        if result.status != "measured":
            lines.append(f"| {way.title} | {result.status} |" + " – |" * 8)
            continue
        speed = [n * T / s for s in result.seconds]
        share = [2 * n * products.floor / s / (peak_tflops * 1e12) for s in result.seconds] if peak_tflops else []
        columns = [
            way.title,
            "–" if result.difference is None else f"{result.difference:.1e}",
            f"{statistics.median(result.seconds):.3f}",
            _spread(ratios(result, floor)),
            _spread(ratios(result, ours)),
            f"{statistics.median(speed):.0f}",
            f"{100 * statistics.median(share):.1f} %" if share and way.name != "inference" else "–",
            f"{result.peak_bytes / 2**20:.1f}" if result.peak_bytes is not None else "–",
            *(
                f"{result.peak_bytes / of.peak_bytes:.2f}" if result.peak_bytes and of.peak_bytes else "–"
                for of in (floor, inference)
            ),
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    """`median [lowest, highest]`."""
    if not values:
        return "–"
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def _machine(device: str, options: argparse.Namespace) -> str:
    if device == "cuda":
        where = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    else:
        where = f"{_processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
        if "bfloat16" in options.dtypes and not torch.cpu.get_capabilities().get("avx512_bf16", False):
            where += " without bfloat16 instructions (bfloat16 is emulated: its times say nothing of a machine that has them)"
    clock = "processor time" if options.clock == "cpu" else "wall time"
    return (
        f"{where}; torch {torch.__version__}, {options.threads} thread{'s' * (options.threads > 1)}; {clock}, "
        f"{options.repeats} repetitions, seed {options.seed}"
    )


def _workload(sizes: Sizes, options: argparse.Namespace) -> str:
    return (
        f"Qwen3 with random weights: hidden {sizes.hidden}, {sizes.layers} layers, FFN {sizes.ffn}, {sizes.heads} heads and "
        f"{sizes.kv_heads} for keys of {sizes.head_dim}, vocabulary {sizes.vocabulary}; {100 * RESPONSE_SHARE:.1f} % response tokens, "
        f"in turns of {TURN_TOKENS}."
    )


def _processor() -> str:
    try:
        names = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
