"""What a probe would take, from a sample of its batches: the answer of `--dry-run`, which leaves nothing behind."""

import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from gradprism.memory import peak_memory_mib, reset_peak_memory
from gradprism.probing.manifest import checked_batch_tokens, describe_model, describe_probe, kept_costs
from gradprism.probing.plan import Batch, owed_batches, padded_tokens, padding_share, plan_items, rope_boundaries
from gradprism.probing.prepared import prepare, reopen
from gradprism.probing.prober import Prober
from gradprism.probing.run import BatchRun, default_workers
from gradprism.probing.store import OnExisting, ProbeStore
from gradprism.probing.units import Units, find_units
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import Renderer

SAMPLE_BATCHES = 20


def sample_batches(batches: Sequence[Batch], n: int = SAMPLE_BATCHES) -> list[Batch]:
    """At most `n` batches, spread evenly over the plan from its first, which is the largest, to its last."""
    picks = np.unique(np.linspace(0, len(batches) - 1, min(n, len(batches))).round().astype(int))
    return [batches[pick] for pick in picks] if len(batches) else []


def estimate_probe(
    model: PreTrainedModel,
    tokenizer: Any,
    trajectories: Iterable[Trajectory],
    out: Path,
    *,
    context_length: int,
    batch_tokens: int | None = None,
    per_turn: bool = False,
    on_existing: OnExisting = "resume",
    data: Sequence[Path] = (),
    read: dict[str, Any] | None = None,
    units: Units | None = None,
    checkpoint_activations: bool = False,
) -> dict[str, Any]:
    """Counts of what `probe_corpus` would still have to do with the same arguments, and its time and memory, from a sample of batches.

    The corpus is read and rendered as a whole, the sample is probed with the same workers, and `out` stays as it is. Raises what
    `probe_corpus` does, except for what only writing or the batches outside the sample can show.
    """
    began = time.perf_counter()
    units = units or find_units(model)
    prober = Prober(model, units, costs=kept_costs(out, on_existing), checkpoint_activations=checkpoint_activations)
    device = model.device.type
    tokens = checked_batch_tokens(batch_tokens, device)
    description = describe_probe(describe_model(prober, units), tokenizer, context_length, data, read)
    with ExitStack() as stack:
        existing = ProbeStore.check(out, description, on_existing)
        opened = reopen(out, description, on_existing)
        if opened is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gradprism-")))
            opened = prepare(folder, description, trajectories, Renderer(tokenizer, context_length))
        store, prepared = opened
        finished = np.empty(0, np.int64)
        if existing and on_existing == "resume":
            existing.refuse_differences(store.manifest)
            finished = existing.finished(set_aside=False)
        items = prepared.items(per_turn)
        boundaries = rope_boundaries(model.config)
        plan = plan_items(items, tokens, boundaries)
        owed = owed_batches(items, plan, finished)
        prepared_in = time.perf_counter() - began

        sample = sample_batches(owed)
        run = BatchRun(prober, prepared, items, tokens, boundaries, default_workers(device))
        _reset_peak(device)
        run.run(sample[-1:], lambda rows: None)  # the first batch of a process pays for what it loads
        run.counts.busy_seconds = 0.0
        run.run(sample, lambda rows: None)
        peak = _peak_mib(device)
        # Batches hold about as many tokens each; the last ones may hold fewer.
        share = padded_tokens(items, sample) / max(1, padded_tokens(items, owed))
        seconds = run.counts.busy_seconds / run.workers / share if sample else 0.0
    return {
        "trajectories": store.n_trajectories,
        "items": len(items),
        "owed": sum(map(len, owed)),
        "tokens": store.manifest["totals"]["tokens"],
        "response_tokens": store.manifest["totals"]["response_tokens"],
        "tokens_read": int(sum(items.length[batch].sum() for batch in owed)),
        "batches": len(owed),
        "batch_tokens": run.batch_tokens,
        "padding_share": round(padding_share(items, owed), 5),
        "sample_batches": len(sample),
        "peak_memory_mib": round(peak, 1),
        "seconds": {"prepare": round(prepared_in, 2), "probe": round(seconds, 2), "total": round(prepared_in + seconds, 2)},
    }


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak_memory()


def _peak_mib(device: str) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak_memory_mib()
