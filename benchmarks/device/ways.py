"""The ways to the probe's numbers that are timed on a device, on the same batch and in turn."""

import importlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from device.machine import GIB
from device.results import Report, Row
from device.runner import check_device, free, why
from device.shapes import Shape
from gradprism.runtime.progress import say
from peers.case import Case, input_gradients
from peers.measure import peak_bytes, seconds
from peers.products import count
from peers.ways import WAYS, Way


@contextmanager
def floor_checkpointed(case: Case) -> Iterator[Callable[[], Tensor]]:
    """The floor with each layer's activations recomputed in the backward pass, by transformers' own means."""
    model = case.model

    def run() -> Tensor:
        losses = case.losses()
        losses.sum().backward()
        return losses.detach()

    modes = [(module, module.training) for module in model.modules()]
    with input_gradients(model):
        recompute = getattr(model, "activation_checkpointing_enable", None)  # its name in transformers 5.20 and later
        (recompute or model.gradient_checkpointing_enable)()
        model.train()  # it recomputes in training mode alone; these models have no dropout
        try:
            yield run
        finally:
            for module, mode in modes:
                module.training = mode
            stop = getattr(model, "activation_checkpointing_disable", None)
            (stop or model.gradient_checkpointing_disable)()


_BY_NAME = {way.name: way for way in WAYS}
FLOOR_CHECKPOINTED = Way("floor-checkpointed", "floor, checkpointed", floor_checkpointed, peer=False, gives_norms=False)
# What every batch is measured by, what only fits with whole activations, and what needs weights that autograd can differentiate.
WHOLE = [_BY_NAME[name] for name in ("floor", "ours", "inference")]
CHECKPOINTED = [FLOOR_CHECKPOINTED, _BY_NAME["ours-checkpointed"]]
LOOPS = [_BY_NAME[name] for name in ("loop", "less")]
# The ways whose time a way's own is divided by.
_FLOOR_OF = {"ours-checkpointed": "floor-checkpointed", "floor-checkpointed": "floor-checkpointed"}


@dataclass(slots=True)
class Timed:
    """A way on a batch: its norms' largest relative difference from the loop's, its peak, and seconds by repetition."""

    way: Way
    norms: Tensor | None = None
    peak_bytes: int | None = None
    seconds: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def median(self) -> float:
        """The median of its seconds."""
        return statistics.median(self.seconds)


def time_ways(case: Case, ways: Sequence[Way], device: str, repeats: int) -> Iterator[dict[str, Timed]]:
    """Each way's norms and memory once, then its time `repeats` times in turn; one that fails is left out and says why.

    Yields all ways after each run of one, and raises `DeviceLostError` after a failure that leaves the device unusable.
    """
    timed = {way.name: Timed(way) for way in ways}
    for number in range(-1, repeats):
        order = [entry for entry in timed.values() if not entry.failure]
        start = max(0, number) % max(1, len(order))
        for entry in order[start:] + order[:start]:
            entry.failure = _guarded(partial(_first if number < 0 else _again, case, entry, device))
            yield timed
            if entry.failure:
                check_device(entry.failure)


def _guarded(run: Callable[[], None]) -> str:
    """What went wrong, in words; what it held is free again."""
    try:
        run()
        return ""
    except Exception as error:  # a way that does not run is a line of the table
        failure = why(error)
    free()
    return failure


def _first(case: Case, entry: Timed, device: str) -> None:
    with entry.way.open(case) as run:
        # A CPU's peak would take a profiler, and says nothing of a device's.
        entry.peak_bytes, found = peak_bytes(run, device) if device.startswith("cuda") else (None, run())
    entry.norms = found.cpu() if entry.way.gives_norms else None


def _again(case: Case, entry: Timed, device: str) -> None:
    say(f"T {case.input_ids.shape[1]}: {entry.way.title}")
    with entry.way.open(case) as run:
        entry.seconds.append(seconds(run, device))


def report_of(timed: dict[str, Timed], case: Case, shape: Shape, peak_tflops: float | None, name: str = "") -> Report:
    """A row for each way that has run, under `name` or the shape's own. Seconds are medians over `times` repetitions, and ratios medians of
    the ratios of the same repetition."""
    n, T = case.input_ids.shape
    products = count(shape.active, T, case.columns.shape[1])
    flops = 2 * n * products.floor
    model = {"model": name or shape.name, "layers": shape.sizes.layers}
    told = [entry for entry in timed.values() if entry.seconds or entry.failure]
    # A mixture's experts have few rows each, of which `count` does not know.
    allowed: Row = {} if shape.experts else {"× floor by arithmetic": products.needed_ratio}
    rows = [
        {**model, **_row(entry, timed, n, T, flops, peak_tflops), **(allowed if entry.way.name == "ours" and entry.seconds else {})}
        for entry in told
    ]
    return Report(rows, done=sum(len(entry.seconds) for entry in told))


def _row(entry: Timed, timed: dict[str, Timed], n: int, T: int, flops: int, peak_tflops: float | None) -> Row:
    row: dict[str, float | int | str | None] = {"T": T, "n": n, "way": entry.way.title}
    if entry.seconds:
        passes = entry.way.name != "inference"
        row |= {
            "times": len(entry.seconds),
            "seconds": entry.median,
            "× floor": ratio(entry, timed.get(_FLOOR_OF.get(entry.way.name, "floor"))),
            "× gradprism": ratio(entry, _ours(timed)),
            "tokens/s": n * T / entry.median,
            "% of peak": 100 * flops / entry.median / (peak_tflops * 1e12) if peak_tflops and passes else None,
            "GiB above weights": entry.peak_bytes / GIB if entry.peak_bytes else None,
            "error": difference(entry.norms, timed["loop"].norms) if "loop" in timed and entry.way.name != "loop" else None,
            "goal": goals(entry, timed, flops, peak_tflops) if entry.way.name == "ours" else None,
        }
    return {**row, "failed": entry.failure} if entry.failure else row


def _ours(timed: dict[str, Timed]) -> Timed | None:
    """gradprism with whole activations, or where that has no times, with recomputed ones."""
    named = (timed.get(name) for name in ("ours", "ours-checkpointed"))
    return next((entry for entry in named if entry and entry.seconds), None)


def ratio(entry: Timed, of: Timed | None) -> float | None:
    """The median of the ratios of the same repetition; None where one has no times."""
    pairs = list(zip(entry.seconds, of.seconds, strict=False)) if of else []
    return statistics.median(a / b for a, b in pairs) if pairs else None


def difference(found: Tensor | None, expected: Tensor | None) -> float | None:
    """The largest relative difference of a norm; None where one of both is not known."""
    if found is None or expected is None:
        return None
    return ((found.double() - expected.double()).abs() / expected.double()).max().item()


def goals(ours: Timed, timed: dict[str, Timed], flops: int, peak_tflops: float | None) -> str:
    """The goals and whether they are met: at most 1.10 × the floor, the loop at least 2 ×, at least 40 % of the peak."""
    said = []
    if (over := ratio(ours, timed.get("floor"))) is not None:
        said.append(f"floor ≤ 1.10: {'met' if over <= 1.10 else 'missed'}")
    if "loop" in timed and (over := ratio(timed["loop"], ours)) is not None:
        said.append(f"loop ≥ 2: {'met' if over >= 2 else 'missed'}")
    if peak_tflops:
        said.append(f"peak ≥ 40 %: {'met' if flops / ours.median >= 0.4 * peak_tflops * 1e12 else 'missed'}")
    return ", ".join(said)


def quantise(model: nn.Module) -> int:
    """Makes the linear layers below `model.layers` 4-bit (nf4, bitsandbytes) where they stand; their number."""
    bnb: Any = importlib.import_module("bitsandbytes")

    layers = model.get_submodule("model.layers")
    linear = [(name, module) for name, module in layers.named_modules() if type(module) is nn.Linear]
    for name, module in linear:
        weight, bias = module.weight.data, module.bias
        new = bnb.nn.Linear4bit(
            module.in_features, module.out_features, bias is not None, compute_dtype=weight.dtype, quant_type="nf4", device="meta"
        )
        new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=new).to(weight.device)
        new.bias = bias
        parent, _, last = name.rpartition(".")
        setattr(layers.get_submodule(parent), last, new.requires_grad_(False).eval())
        del module, weight
    return len(linear)
