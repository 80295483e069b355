"""Part `corpus`: how long the probe of a real corpus takes at 8B: ALFWorld's 3,554 expert trajectories, beside the paper's 2 min 16 s."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray

from device import lengths, shapes
from device.machine import GIB
from device.results import Case, Outcome, Part, Report, Row
from device.runner import free
from device.setting import Setting
from device.shapes import Models, Shape
from gradprism.passes import is_out_of_memory
from gradprism.probing.plan import plan_batches
from gradprism.probing.prober import Prober
from gradprism.runtime.progress import say
from gradprism.trajectories.rendering import RenderedTrajectory

SLICES = 8  # of about the same work; each is a case, so that a run cut short still tells the whole
PAPER_SECONDS, PAPER_DEVICES, PAPER_TFLOPS = 136, 8, 312  # 2 min 16 s on eight A100s (arXiv 2601.07224)
# Tokens of a batch, and whether activations are computed again: the way of a device with 80 GB comes first.
WAYS = ((8192, False), (16384, True))


@dataclass(frozen=True)
class Corpus:
    """Random tokens under the masks of a real corpus, which is all that a random model's speed depends on."""

    masks: Sequence[lengths.Mask]
    vocabulary: int

    @cached_property
    def reads(self) -> NDArray[np.int64]:
        """The tokens that the model reads of each trajectory: those before its last response token."""
        return np.array([np.flatnonzero(mask)[-1] for mask in self.masks], dtype=np.int64)

    def slice(self, number: int, of: int, batch_tokens: int) -> list[NDArray[np.intp]]:
        """Every `of`-th batch of the plan over the whole corpus, in an order that mixes long and short."""
        batches = plan_batches(self.reads, batch_tokens)
        order = np.random.default_rng(0).permutation(len(batches))
        return [batches[index] for index in order[number::of]]

    def trajectory(self, index: int) -> RenderedTrajectory:
        """A trajectory with tokens of its own."""
        mask = self.masks[index]
        ids = np.random.default_rng(index).integers(0, self.vocabulary, len(mask), dtype=np.int32)
        return RenderedTrajectory(f"alfworld-{index}", ids, mask, 0, np.zeros((0, 2), np.int32))


@dataclass(frozen=True, slots=True)
class Load:
    """A model, a corpus, and how it is probed."""

    shape: Shape
    corpus: Corpus
    batch_tokens: int
    checkpointed: bool


def corpus_part(setting: Setting) -> Part:
    """The slices, one way of probing after the other."""
    shape = shapes.tiny(shapes.QWEN3_8B) if setting.smoke else shapes.QWEN3_8B
    masks = lengths.load()
    if setting.smoke:
        masks = [mask[:256] for mask in masks[::80] if mask[:256].any()]
    corpus = Corpus(masks, shape.sizes.vocabulary)
    models = Models(setting.device, torch.bfloat16)
    cases = []
    for batch_tokens, checkpointed in WAYS:
        load = Load(shape, corpus, batch_tokens // 16 if setting.smoke else batch_tokens, checkpointed)
        how = "checkpointed" if checkpointed else "kept"
        cases += [
            Case(f"{how}-{number + 1}-of-{SLICES}", "Slices of the corpus", partial(_slice, load, number, models, setting), 30)
            for number in range(SLICES)
        ]
    return Part("corpus", "A real corpus at 8B", cases, partial(whole, corpus, shape, setting.machine.peak_tflops))


def _slice(load: Load, number: int, models: Models, setting: Setting) -> Iterator[Report]:
    """A report after each batch, of all until then."""
    model, corpus = models(load.shape), load.corpus
    prober = Prober(model, checkpoint_activations=load.checkpointed)
    batches = corpus.slice(number, SLICES, load.batch_tokens)
    if not batches:
        yield Report([], "there are fewer batches than slices")
        return
    prober.probe([corpus.trajectory(int(batches[0][0]))])  # what is compiled or loaded once is not the corpus's time
    cuda = setting.device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    batch_tokens, seconds, trajectories, read = load.batch_tokens, 0.0, 0, 0
    for batch in batches:
        began = time.perf_counter()
        batch_tokens = _probe(prober, corpus, batch, batch_tokens)
        seconds += time.perf_counter() - began  # norms come to the host, so everything has been waited for
        trajectories, read = trajectories + len(batch), read + int(corpus.reads[batch].sum())
        row: Row = {
            "activations": "computed again" if load.checkpointed else "kept",
            "trajectories": trajectories,
            "tokens": read,
            "tokens of a batch": batch_tokens,
            "seconds": seconds,
            "tokens/s": read / seconds,
            "peak GiB": torch.cuda.max_memory_allocated() / GIB if cuda else None,
        }
        yield Report([row], done=read)


def _probe(prober: Prober, corpus: Corpus, batch: NDArray[np.intp], batch_tokens: int) -> int:
    """Probes a batch in pieces of at most `batch_tokens`, of half as many where memory runs out; returns the tokens that fitted."""
    waiting = [batch[piece] for piece in plan_batches(corpus.reads[batch], batch_tokens)]
    while waiting:
        try:
            prober.probe([corpus.trajectory(int(index)) for index in waiting[0]])
            del waiting[0]
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(waiting[0]) == 1:
                raise
        free()
        batch_tokens //= 2
        say(f"out of memory: going on with batches of {batch_tokens} tokens")
        left = np.concatenate(waiting)
        waiting = [left[piece] for piece in plan_batches(corpus.reads[left], batch_tokens)]
    return batch_tokens


def whole(corpus: Corpus, shape: Shape, peak: float | None, outcomes: Sequence[Outcome]) -> list[Row]:
    """The corpus by what its slices took: seconds of those that were measured, by their share of all tokens; and the paper's time."""
    rows: list[Row] = []
    tokens = int(corpus.reads.sum())
    for how in ("kept", "computed again"):
        measured = [row for outcome in outcomes for row in outcome.rows if row.get("activations") == how]
        read, seconds = (sum(float(row[name] or 0) for row in measured) for name in ("tokens", "seconds"))
        if not read:
            continue
        taken = seconds * tokens / read
        device_seconds = PAPER_SECONDS * PAPER_DEVICES
        rows.append(
            {
                "model": shape.name,
                "activations": how,
                "trajectories": len(corpus.masks),
                "tokens": tokens,
                "% measured": 100 * read / tokens,
                "hours on this device": taken / 3600,
                "paper, hours of one A100": device_seconds / 3600,
                "× faster": device_seconds / taken,
                "× faster, of the same peak": device_seconds * PAPER_TFLOPS / (taken * peak) if peak else None,
            }
        )
    return rows
