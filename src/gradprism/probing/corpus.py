"""Probes a whole corpus into a probe folder, and goes on where an earlier run stopped."""

import platform
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from gradprism import __version__
from gradprism.errors import ConfigError, DataError
from gradprism.files import sha256_file
from gradprism.probing.fingerprint import weights_fingerprint
from gradprism.probing.prober import Prober, ProbeResult, read_length
from gradprism.probing.store import OnExisting, ProbeRow, ProbeStore, corpus_fingerprint
from gradprism.progress import Progress, say
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import RenderedTrajectory, Renderer, template_fingerprint, tokenizer_fingerprint

# A shard is written after this many trajectories: about as many are lost when the process is killed outright.
SHARD_TRAJECTORIES = 128


def default_batch_tokens(device: str) -> int:
    """2048 on a CPU, where larger batches leave its caches and are slower (measured: 8192 takes a third longer), else 16384."""
    return 2048 if torch.device(device).type == "cpu" else 16384


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of at most `batch_tokens` padded tokens, longest first; a longer sequence is a batch of its own."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        # The first of a batch is its longest, to which the others are padded.
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def probe_corpus(
    model: PreTrainedModel,
    tokenizer: Any,
    trajectories: Sequence[Trajectory],
    out: Path,
    *,
    context_length: int,
    batch_tokens: int | None = None,
    on_existing: OnExisting = "resume",
    data: Sequence[Path] = (),
) -> dict[str, Any]:
    """Probes every trajectory that has no row in `out` yet and returns a summary of counts, tokens and times.

    `batch_tokens` (default `default_batch_tokens`) bounds the padded tokens of a batch; when memory runs out it is halved. `data`
    are the files that the trajectories came from, for the manifest. On a CPU as many batches run at once as torch has threads, each
    on one thread: it is faster than sharing the work of every operation, and rows do not depend on the number of threads. An
    uninterrupted run and a resumed one give the same rows.

    Raises `FolderInUseError` as `ProbeStore.create` does, `ModelError` for a model or template that cannot be probed, and
    `DataError` naming a trajectory whose loss or norms are not finite; whatever was finished by then is in `out`.
    """
    if batch_tokens is not None and batch_tokens < 1:
        raise ConfigError(f"batch tokens {batch_tokens}: must be at least 1")
    if not trajectories:
        raise DataError("the corpus has no trajectories; there is nothing to probe")
    began = time.perf_counter()
    prober = Prober(model)
    rendered = _render_all(Renderer(tokenizer, context_length), trajectories)
    corpus = {
        "trajectories": len(trajectories),
        "tokens": sum(len(r.input_ids) for r in rendered),
        "response_tokens": sum(r.n_targets for r in rendered),
        "truncated": sum(r.n_truncated > 0 for r in rendered),
    }
    manifest = {
        "model": model.name_or_path,
        "model_class": type(model).__name__,
        "weights_sha256": weights_fingerprint(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "device": model.device.type,
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "template_sha256": template_fingerprint(tokenizer),
        "context_length": context_length,
        "units": prober.unit_names,
        "data": [{"path": str(path), "sha256": sha256_file(path)} for path in data],
        "corpus_sha256": corpus_fingerprint(trajectories),
        "n_trajectories": len(trajectories),
        "versions": {
            "gradprism": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
    }
    store = ProbeStore.create(out, manifest, trajectories, on_existing)
    run = _Run(prober, store, trajectories, rendered, batch_tokens or default_batch_tokens(model.device.type))
    probing_began = time.perf_counter()
    run.probe_owed(workers=torch.get_num_threads() if model.device.type == "cpu" else 1)
    seconds = time.perf_counter() - probing_began
    return {
        "probed": run.n_probed,
        "kept": len(trajectories) - run.n_probed,
        "tokens_forward": run.n_tokens,
        "tokens_backward": run.n_tokens,
        "batch_tokens": run.batch_tokens,
        "units": len(prober.units),
        "parameters": model.num_parameters(),
        "device": model.device.type,
        "seconds": round(time.perf_counter() - began, 3),
        "probing_seconds": round(seconds, 3),
        "tokens_per_second": round(run.n_tokens / seconds, 1),
        "trajectories_per_second": round(run.n_probed / seconds, 2),
        "corpus": {**corpus, "sha256": manifest["corpus_sha256"], "files": manifest["data"]},
    }


def _render_all(renderer: Renderer, trajectories: Sequence[Trajectory]) -> list[RenderedTrajectory]:
    rendered = []
    with Progress("rendering", len(trajectories)) as progress:
        for trajectory in trajectories:
            rendered.append(renderer.render(trajectory))
            progress.advance()
    return rendered


class _Run:
    """One run over the owed trajectories: batches, memory, shards."""

    def __init__(
        self,
        prober: Prober,
        store: ProbeStore,
        trajectories: Sequence[Trajectory],
        rendered: Sequence[RenderedTrajectory],
        batch_tokens: int,
    ) -> None:
        self.prober, self.store, self.trajectories, self.rendered = prober, store, trajectories, rendered
        self.batch_tokens = batch_tokens
        self.n_probed = self.n_tokens = 0
        self._pending: list[ProbeRow] = []
        self._lengths = [read_length(r) for r in rendered]

    def probe_owed(self, workers: int) -> None:
        finished = self.store.finished()
        # Planned over the whole corpus, so that a trajectory keeps its batch, and thereby its rounding, when a run is resumed.
        plan = plan_batches(self._lengths, self.batch_tokens)
        batches = deque(owed for batch in plan if (owed := [i for i in batch if self.trajectories[i].id not in finished]))
        threads = torch.get_num_threads()
        with ExitStack() as stack:
            # A thread's setting becomes the default of all later threads, hence the restoring.
            stack.callback(torch.set_num_threads, threads)
            pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, threads // workers),))
            stack.enter_context(pool)
            progress = stack.enter_context(Progress("probing", sum(map(len, batches))))
            stack.callback(self._write)  # first of all, also when the work is interrupted
            self._work(batches, pool, workers, progress)

    def _work(self, batches: deque[list[int]], pool: ThreadPoolExecutor, at_once: int, progress: Progress) -> None:
        running: deque[tuple[list[int], Future[ProbeResult | None]]] = deque()
        while batches or running:
            while batches and len(running) < at_once:
                running.append((batch := batches.popleft(), pool.submit(self._try, batch)))
            # In the order of submission, so that the shards do not depend on which thread was faster.
            batch, future = running.popleft()
            result = future.result()
            if result is None:
                wait([other for _, other in running])
                batches.extendleft(other for other, _ in reversed(running))
                running.clear()
                batches.appendleft(batch)
                if at_once == 1:
                    batches = self._with_smaller_batches(batches)
                else:
                    at_once = 1
                    say("out of memory: going on with one batch at a time")
                continue
            self._take(batch, result)
            progress.advance(len(batch), f"{self.n_tokens} tokens")
            if len(self._pending) >= SHARD_TRAJECTORIES:
                self._write()

    def _try(self, batch: list[int]) -> ProbeResult | None:
        """The result, or None where memory ran out; by the time of the return the failed attempt's tensors are gone."""
        try:
            return self.prober.probe([self.rendered[i] for i in batch])
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        return None

    def _with_smaller_batches(self, batches: deque[list[int]]) -> deque[list[int]]:
        first = batches[0]
        if len(first) == 1:
            raise DataError(
                f"trajectory {self.trajectories[first[0]].id!r}: its {self._lengths[first[0]]} tokens alone need more memory than there "
                "is; lower --context-length, or use --dtype bfloat16"
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.batch_tokens = max(1, self.batch_tokens // 2)
        say(f"out of memory: going on with batches of {self.batch_tokens} tokens")
        owed = list(chain.from_iterable(batches))
        plan = plan_batches([self._lengths[i] for i in owed], self.batch_tokens)
        return deque([owed[k] for k in batch] for batch in plan)

    def _take(self, batch: list[int], result: ProbeResult) -> None:
        with np.errstate(over="ignore"):
            norms = result.norms.astype(np.float32)
        good = np.isfinite(result.loss) & np.isfinite(norms).all(axis=1)
        for row in np.flatnonzero(good):
            rendered = self.rendered[batch[row]]
            self._pending.append(
                ProbeRow(
                    index=batch[row],
                    id=rendered.id,
                    n_tokens=len(rendered.input_ids),
                    n_response_tokens=int(result.n_response_tokens[row]),
                    n_turns=sum(m.role == "assistant" and m.train for m in self.trajectories[batch[row]].messages),
                    loss=float(result.loss[row]),
                    norms=norms[row],
                )
            )
            self.n_tokens += len(rendered.input_ids)
        self.n_probed += int(good.sum())
        for row in np.flatnonzero(~good):
            raise DataError(f"trajectory {self.rendered[batch[row]].id!r}: {self._cause(result.loss[row], norms[row])}")

    def _cause(self, loss: float, norms: np.ndarray) -> str:
        advice = "check the weights, or probe with --dtype float32; finished trajectories are kept"
        if not np.isfinite(loss):
            return f"the model's loss on it is {loss}, so the forward pass overflows or the weights hold NaN; {advice}"
        bad = np.flatnonzero(~np.isfinite(norms))
        units = self.prober.unit_names[bad[0]] + (f" and {len(bad) - 1} more" if len(bad) > 1 else "")
        return f"the gradient norm of {units} is {norms[bad[0]]}, so the backward pass overflows; {advice}"

    def _write(self) -> None:
        self.store.append(self._pending)
        self._pending = []


def _is_out_of_memory(error: BaseException) -> bool:
    # The CPU's allocator raises a plain RuntimeError that only its words tell apart.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
