"""The time and memory that a probe would take, from a sample of its batches; leaves nothing behind."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradprism.models import ModelSpec
from gradprism.probing.fingerprint import describe_model
from gradprism.probing.folder import PROBE, ProbeFolder, local_copy
from gradprism.probing.plan import Batch, padded_tokens, padding_share
from gradprism.probing.prepared import prepare, reopen
from gradprism.probing.work import ProbeOptions, Share, Work, describe, kept_costs, make_renderer
from gradprism.runtime.folders import OnExisting
from gradprism.runtime.memory import peak_gpu_memory_mib, peak_memory_mib, reset_peak_gpu_memory, reset_peak_memory
from gradprism.trajectories.corpus import Corpus, Sources, as_corpus

SAMPLE_BATCHES = 20


@dataclass(frozen=True, slots=True)
class ProbeEstimate:
    """Counts of what a call of `probe` would still have to do (`pending` items of `items`), and its seconds and peak MiB by a sample."""

    trajectories: int
    items: int
    pending: int
    tokens: int
    response_tokens: int
    tokens_read: int
    batches: int
    batch_tokens: int
    padding_share: float
    sample_batches: int
    peak_memory_mib: float
    prepare_seconds: float
    probe_seconds: float


def sample_batches(batches: Sequence[Batch], n: int = SAMPLE_BATCHES) -> list[Batch]:
    """At most `n` batches, spread evenly over the plan from its first, which is the largest, to its last."""
    picks = np.unique(np.linspace(0, len(batches) - 1, min(n, len(batches))).round().astype(int))
    return [batches[pick] for pick in picks] if len(batches) else []


def estimate_probe(
    model: Any,
    tokenizer: Any,
    trajectories: Corpus | Sources,
    options: ProbeOptions | None = None,
    *,
    out: str | Path | None = None,
    on_existing: OnExisting = "resume",
) -> ProbeEstimate:
    """Estimates what `probe` would take with the same arguments, in this process: renders the whole corpus, probes a sample of batches.

    Raises what `probe` does, except for what only writing or the batches outside the sample can show.
    """
    began, options, corpus = time.perf_counter(), options or ProbeOptions(), as_corpus(trajectories)
    spec = ModelSpec(str(model)) if isinstance(model, str | Path) else model
    with ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="gradprism-"))
        folder, _ = stack.enter_context(local_copy(Path(temporary) / "none" if out is None else out))
        costs = kept_costs(folder, on_existing)
        renderer = make_renderer(spec, tokenizer, options.context_length)
        loaded = spec.load() if isinstance(spec, ModelSpec) else spec
        prober = options.prober(loaded, costs)
        description = describe(describe_model(prober), renderer, corpus)
        opened = reopen(folder, description, on_existing)
        work = Work(*(opened or prepare(Path(temporary) / "probe", description, corpus, renderer)), options)
        finished = np.empty(0, np.int64)
        if on_existing == "resume" and (found := PROBE.check(folder, on_existing)) is not None:
            PROBE.refuse_differences(folder, found, work.probe.manifest.to_json())
            finished = ProbeFolder(folder).finished(set_aside=False)
        pending = work.pending(finished, Share())
        prepare_seconds = time.perf_counter() - began

        sample, run = sample_batches(pending), work.batch_run(prober)
        reset_peak_memory()
        reset_peak_gpu_memory()
        run.run(sample[-1:], lambda rows: None)  # the first batch of a process pays for what it loads
        run.counts.busy_seconds = 0.0
        run.run(sample, lambda rows: None)
        peak = peak_gpu_memory_mib() or peak_memory_mib()
        # Batches hold about as many tokens each; the last ones may hold fewer.
        share = padded_tokens(work.items, sample) / max(1, padded_tokens(work.items, pending))
        manifest = work.probe.manifest
        return ProbeEstimate(
            trajectories=manifest.n_trajectories,
            items=len(work.items),
            pending=sum(map(len, pending)),
            tokens=manifest.totals.tokens,
            response_tokens=manifest.totals.response_tokens,
            tokens_read=int(sum(work.items.length[batch].sum() for batch in pending)),
            batches=len(pending),
            batch_tokens=run.batch_tokens,
            padding_share=padding_share(work.items, pending),
            sample_batches=len(sample),
            peak_memory_mib=peak,
            prepare_seconds=prepare_seconds,
            probe_seconds=run.counts.busy_seconds / run.workers / share if sample else 0.0,
        )
