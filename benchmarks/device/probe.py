"""Part `probe`: what the probe costs at 8B and 30B, against the floor, the loop and LESS's way; and which kernels the time goes to."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from device import shapes, ways
from device.machine import installed
from device.results import Case, Part, Report, Row
from device.setting import Setting
from device.shapes import Models, Shape
from gradprism.probing.prober import Prober
from peers.case import Case as Batch
from peers.case import build_case
from peers.ways import Way

TOP = 15  # kernels that are named
BATCH = 4096  # tokens of a batch whose activations are kept: 8B models need about 7 MB for each
LONG_BATCH = 16384  # tokens of a batch whose activations are computed again


@dataclass(frozen=True, slots=True)
class Measure:
    """A shape, sequences of T tokens, `n` of them, and the ways that are timed."""

    shape: Shape
    T: int
    n: int
    ways: Sequence[Way]


def probe_part(setting: Setting) -> Part:
    """The cases, those of one model together, since making it takes longest."""
    models = Models(setting.device, torch.bfloat16)
    scale = 64 if setting.smoke else 1
    qwen, llama = (shapes.tiny(shape) if setting.smoke else shape for shape in (shapes.QWEN3_8B, shapes.LLAMA_8B))
    dense = [*ways.WHOLE, *ways.LOOPS, *ways.CHECKPOINTED]

    def timed(shape: Shape, T: int, n: int, chosen: Sequence[Way], seconds: float = 45.0) -> Case:
        measure = Measure(shape, T // scale, n, chosen)
        return Case(
            f"{shape.name.partition(',')[0]}-{T}x{n}", "The probe and its floors", partial(_time, measure, models, setting), seconds
        )

    cases = [
        timed(qwen, 4096, BATCH // 4096, dense, 75),
        timed(qwen, 1024, BATCH // 1024, dense),
        Case("profile-4096", "Kernels of one pass, T 4,096", partial(_profile, qwen, 4096 // scale, models, setting), 30),
        timed(qwen, 16384, 1, [*ways.CHECKPOINTED, *ways.WHOLE[:2]]),
        timed(qwen, 32768, 1, ways.CHECKPOINTED, 60),
        timed(qwen, 1024, LONG_BATCH // 1024, [*ways.CHECKPOINTED, *ways.WHOLE[:2]]),
        Case("4bit-4096", "4-bit weights", partial(_four_bit, qwen, 4096 // scale, setting), 60),
        timed(llama, 4096, 1, dense, 75),
        timed(llama, 1024, 4, dense),
    ]
    mixture = _mixture(setting)
    moe = [*ways.WHOLE, *ways.CHECKPOINTED]
    cases += [timed(mixture, 4096, 1, moe, 75), timed(mixture, 1024, 4, moe)]
    return Part("probe", "What the probe costs", cases)


def _mixture(setting: Setting) -> Shape:
    """Qwen3-30B-A3B with as many layers as fit."""
    if setting.smoke:
        return shapes.tiny(shapes.QWEN3_30B)
    return shapes.QWEN3_30B.with_layers(shapes.layers_that_fit(shapes.QWEN3_30B, setting.machine.memory_gib))


def _time(measure: Measure, models: Models, setting: Setting) -> Iterator[Report]:
    shape = measure.shape
    batch = batch_of(models, shape, measure.n, measure.T)
    for timed in ways.time_ways(batch, measure.ways, setting.device, 1 if setting.smoke else setting.repeats):
        yield ways.report_of(timed, batch, shape, setting.machine.peak_tflops)


def batch_of(models: Callable[[Shape], torch.nn.Module], shape: Shape, n: int, T: int) -> Batch:
    """`n` random sequences of T tokens on the shape's model; of a mixture of experts no module is listed."""
    batch = build_case(models(shape), n, T, seed=0)
    return replace(batch, paths=[]) if shape.experts else batch


def _profile(shape: Shape, T: int, models: Models, setting: Setting) -> Report:
    batch = batch_of(models, shape, 1, T)
    prober = Prober(batch.model)
    prober.probe(batch.trajectories)
    cuda = setting.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        prober.probe(batch.trajectories)
        if cuda:
            torch.cuda.synchronize()
    # On a GPU an operation is listed beside the kernels that it starts: those alone are counted.
    events = [e for e in profiler.key_averages() if not cuda or str(e.device_type).endswith("CUDA")]
    rows = top_kernels([(e.key, e.count, e.self_device_time_total if cuda else e.self_cpu_time_total) for e in events])
    return Report(rows, "" if rows else "the profiler saw no kernel")


def top_kernels(events: Sequence[tuple[str, int, float]], most: int = TOP) -> list[Row]:
    """The kernels (name, calls, microseconds) that take the most time, with their shares of the whole, and all others as one row."""
    whole = sum(time for _, _, time in events) or 1.0
    ordered = sorted((event for event in events if event[2] > 0), key=lambda event: -event[2])
    rest = ordered[most:]
    if rest:
        ordered = [*ordered[:most], (f"{len(rest)} others", sum(e[1] for e in rest), sum(e[2] for e in rest))]
    return [
        {"kernel": name[:100], "calls": calls, "ms": time / 1000, "% of time": 100 * time / whole} for name, calls, time in ordered
    ]


def _four_bit(shape: Shape, T: int, setting: Setting) -> Iterator[Report]:
    if not installed("bitsandbytes"):
        yield Report([], "bitsandbytes is not installed")
        return
    # On a CPU bitsandbytes keeps 4-bit matrices of these widths as they are.
    sizes = replace(shape.sizes, hidden=64, ffn=128, heads=4, head_dim=16) if setting.smoke else shape.sizes
    models = Models(setting.device, torch.float32 if setting.smoke else torch.bfloat16)
    batch = batch_of(models, replace(shape, sizes=sizes), 1, T)
    ways.quantise(batch.model)
    chosen = [*ways.WHOLE, *ways.CHECKPOINTED]
    for timed in ways.time_ways(batch, chosen, setting.device, 1 if setting.smoke else setting.repeats):
        yield ways.report_of(timed, batch, shape, setting.machine.peak_tflops, f"{shape.name}, nf4")
