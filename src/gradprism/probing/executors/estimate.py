"""What a probe would take, from a sample of its batches: the answer of `--dry-run`, which leaves nothing behind."""

import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from gradprism.probing.executors.local import InProcess
from gradprism.probing.manifest import Options, checked_batch_tokens, describe_probe, kept_costs
from gradprism.probing.plan import Batch, owed_batches, padded_tokens, padding_share, plan_items
from gradprism.probing.prepared import prepare, reopen
from gradprism.probing.store import ProbeStore
from gradprism.runtime.memory import peak_gpu_memory_mib, peak_memory_mib, reset_peak_gpu_memory, reset_peak_memory
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import Renderer

SAMPLE_BATCHES = 20


def sample_batches(batches: Sequence[Batch], n: int = SAMPLE_BATCHES) -> list[Batch]:
    """At most `n` batches, spread evenly over the plan from its first, which is the largest, to its last."""
    picks = np.unique(np.linspace(0, len(batches) - 1, min(n, len(batches))).round().astype(int))
    return [batches[pick] for pick in picks] if len(batches) else []


def estimate_probe(
    executor: InProcess, tokenizer: Any, trajectories: Iterable[Trajectory], out: Path, options: Options
) -> dict[str, Any]:
    """Counts of what `probe_corpus` would still have to do with the same arguments, and its time and memory, from a sample of batches.

    The corpus is read and rendered as a whole, the sample is probed with the same workers, and `out` stays as it is. Raises what
    `probe_corpus` does, except for what only writing or the batches outside the sample can show.
    """
    began = time.perf_counter()
    model = executor.describe(kept_costs(out, options.on_existing))
    tokens = checked_batch_tokens(options.batch_tokens, model["device"])
    description = describe_probe(model, tokenizer, options)
    with ExitStack() as stack:
        existing = ProbeStore.check(out, description, options.on_existing)
        opened = reopen(out, description, options.on_existing)
        if opened is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gradprism-")))
            opened = prepare(folder, description, trajectories, Renderer(tokenizer, options.context_length))
        store, prepared = opened
        finished = np.empty(0, np.int64)
        if existing and options.on_existing == "resume":
            existing.refuse_differences(store.manifest)
            finished = existing.finished(set_aside=False)
        items = prepared.items(options.per_turn)
        boundaries = tuple(model["rope_boundaries"])
        plan = plan_items(items, tokens, boundaries)
        owed = owed_batches(items, plan, finished)
        prepared_in = time.perf_counter() - began

        sample = sample_batches(owed)
        run = executor.batch_run(prepared, items, tokens, boundaries)
        reset_peak_memory()
        reset_peak_gpu_memory()
        run.run(sample[-1:], lambda rows: None)  # the first batch of a process pays for what it loads
        run.counts.busy_seconds = 0.0
        run.run(sample, lambda rows: None)
        peak = peak_gpu_memory_mib() or peak_memory_mib()
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
