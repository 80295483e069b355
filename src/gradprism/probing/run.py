"""Works on given batches of a prepared corpus: several at once on a CPU, in smaller batches where memory runs out."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from gradprism.passes import is_out_of_memory
from gradprism.probing.folder import WHOLE, ProbeFolder, ProbeRow
from gradprism.probing.mirror import Mirror
from gradprism.probing.plan import Batch, Items, plan_batches
from gradprism.probing.prepared import Prepared
from gradprism.probing.prober import Prober, ProbeResult
from gradprism.runtime.attempts import Attempt
from gradprism.runtime.errors import DataError
from gradprism.runtime.progress import Progress, say
from gradprism.runtime.usage import Usage
from gradprism.trajectories.rendering import RenderedTrajectory

# What a process may lose when it is killed outright: so many rows, or the work of so many seconds.
SHARD_ROWS, SHARD_SECONDS = 512, 30.0
# With very many items shards are larger, so that there are about so many of them.
SHARDS = 512


def default_batch_tokens(device: str) -> int:
    """2048 on a CPU, where larger batches leave its caches and are slower (measured: 8192 takes a third longer), else 16384."""
    return 2048 if torch.device(device).type == "cpu" else 16384


def default_workers(device: str) -> int:
    """Number of batches that run at once: on a CPU as many as torch has threads, each on one thread, else 1.

    On a CPU that is faster than sharing the work of every operation, and rows do not depend on the number of threads.
    """
    return torch.get_num_threads() if torch.device(device).type == "cpu" else 1


def result_rows(
    source: Prepared, items: Items, batch: Batch, result: ProbeResult, unit_names: Sequence[str]
) -> tuple[list[ProbeRow], str | None]:
    """The rows of a batch's finite results, and what is wrong with the first result that is not finite, or None."""
    with np.errstate(over="ignore"):
        norms = result.norms.astype(np.float32)
    rows, wrong = [], None
    for k, (index, turn) in enumerate(zip(items.index[batch].tolist(), items.turn[batch].tolist(), strict=True)):
        rendered = source.sequence(index, turn)
        if not (np.isfinite(result.loss[k]) and np.isfinite(norms[k]).all()):
            which = f"trajectory {rendered.id!r}" + (f", turn {turn}" if turn != WHOLE else "")
            wrong = wrong or f"{which}: {_cause(result.loss[k], norms[k], unit_names)}"
            continue
        rows.append(
            ProbeRow(
                index=index,
                id=rendered.id,
                turn=turn,
                n_tokens=len(rendered.input_ids),
                n_response_tokens=int(result.n_response_tokens[k]),
                n_turns=int(source.n_turns[index]) if turn == WHOLE else 1,
                loss=float(result.loss[k]),
                l2=float(np.linalg.norm(result.norms[k])),
                norms=norms[k],
                token_losses=result.token_losses[k] if turn == WHOLE else None,
                scores={name: values[k] for name, values in result.scores.items()},
            )
        )
    return rows, wrong


def _cause(loss: float, norms: NDArray[np.float32], unit_names: Sequence[str]) -> str:
    advice = "check the weights, or probe with --dtype float32; finished trajectories are kept"
    if not np.isfinite(loss):
        return f"the model's loss on it is {loss}, so the forward pass overflows or the weights hold NaN; {advice}"
    bad = np.flatnonzero(~np.isfinite(norms))
    units = str(unit_names[bad[0]]) + (f" and {len(bad) - 1} more" if len(bad) > 1 else "")
    return f"the gradient norm of {units} is {norms[bad[0]]}, so the backward pass overflows; {advice}"


class ShardWriter:
    """Collects rows and writes a shard of them every `SHARD_ROWS` rows or `SHARD_SECONDS`; rows do not depend on where it cuts.

    As a context, it writes what is left at the end, also where the work is interrupted.
    """

    def __init__(self, probe: ProbeFolder, attempt: Attempt, n_items: int, mirror: Mirror | None = None) -> None:
        self._probe, self._attempt, self._mirror = probe, attempt, mirror
        self._most = max(SHARD_ROWS, n_items // SHARDS)
        self._waiting: list[ProbeRow] = []
        self._written = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._write()

    def add(self, rows: Sequence[ProbeRow]) -> None:
        """Takes the rows of one batch, which always get into one shard."""
        self._waiting += rows
        if len(self._waiting) >= self._most or time.monotonic() - self._written >= SHARD_SECONDS:
            self._write()

    def _write(self) -> None:
        if self._waiting:
            shard = self._probe.append(self._waiting)
            tokens = sum(row.n_tokens for row in self._waiting)  # each is read once, forward and backward
            self._attempt.add(Usage(tokens, tokens))
            if self._mirror is not None:
                self._mirror.push(*self._probe.beside(shard), shard, self._attempt.path)
        self._waiting, self._written = [], time.monotonic()


@dataclass(slots=True)
class Counts:
    """One process's work: `rows`, those of single turns among them, their `tokens`, and the `busy_seconds` of all batches.

    `batch_tokens` are what the plan's were cut to where memory ran out.
    """

    rows: int = 0
    turns: int = 0
    tokens: int = 0
    busy_seconds: float = 0.0
    cpu_seconds: float = 0.0
    batch_tokens: int = 0

    def add(self, rows: Sequence[ProbeRow]) -> None:
        """Counts rows."""
        self.rows += len(rows)
        self.turns += sum(row.turn != WHOLE for row in rows)
        self.tokens += sum(row.n_tokens for row in rows)


@dataclass
class BatchRun:
    """Probes batches of `items`.

    `batch_tokens` and `boundaries` are those of the plan. Where memory runs out, batches are split into ones of half as many tokens.
    `workers` batches run at once, each on a thread.
    """

    prober: Prober
    source: Prepared
    items: Items
    batch_tokens: int
    boundaries: tuple[int, ...] = ()
    workers: int = 1
    counts: Counts = field(default_factory=Counts)

    def run(self, batches: Iterable[Batch], take: Callable[[list[ProbeRow]], None], n_items: int | None = None) -> None:
        """Gives the rows of each batch to `take`, in the order of the batches.

        `batches` may be made on the way; `n_items`, how many items are in them, is then needed for the progress alone.
        Raises `DataError` naming an item whose loss or norms are not finite, after the finite ones of its batch were taken.
        """
        if n_items is None:
            n_items = sum(map(len, batches := list(batches)))
        threads = torch.get_num_threads()
        with ExitStack() as stack:
            # A thread's setting becomes the default of all later threads, hence the restoring.
            stack.callback(torch.set_num_threads, threads)
            pool = ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(max(1, threads // self.workers),))
            stack.enter_context(pool)
            progress = stack.enter_context(Progress("probing", n_items))
            for batch, result in self._results(iter(batches), pool):
                rows, wrong = result_rows(self.source, self.items, batch, result, self.prober.unit_names)
                self.counts.add(rows)
                take(rows)
                if wrong:
                    raise DataError(wrong)
                progress.advance(len(batch), f"{self.counts.tokens} tokens")

    def sequences(self, batch: Batch) -> list[RenderedTrajectory]:
        """Tokens and masks of the items of a batch."""
        items = zip(self.items.index[batch].tolist(), self.items.turn[batch].tolist(), strict=True)
        return [self.source.sequence(index, turn) for index, turn in items]

    def _results(self, batches: Iterator[Batch], pool: ThreadPoolExecutor) -> Iterator[tuple[Batch, ProbeResult]]:
        """Batches and their results, in the order of submission, so that rows come in an order that no thread's speed decides."""
        at_once = self.workers
        waiting: deque[Batch] = deque()
        running: deque[tuple[Batch, Future[ProbeResult | None]]] = deque()
        while True:
            while len(running) < at_once:
                if not waiting:
                    waiting.extend(self._split(next(batches, None)))
                if not waiting or not self._may_join(waiting[0], running):
                    break
                running.append((batch := waiting.popleft(), pool.submit(self._try, batch)))
            if not running:
                return
            batch, future = running.popleft()
            result = future.result()
            if result is not None:
                yield batch, result
                continue
            wait([other for _, other in running])
            undone = [batch, *(other for other, _ in running), *waiting]
            running.clear()
            if at_once == 1:
                self._halve(batch)
            else:
                at_once = 1
                say("out of memory: going on with one batch at a time")
            waiting = deque(piece for whole in undone for piece in self._split(whole))

    def _may_join(self, batch: Batch, running: Sequence[tuple[Batch, Any]]) -> bool:
        """True where no batch that is running lies on the other side of a boundary: what switches there, switches for the whole model."""
        return not running or self._side(batch) == self._side(running[0][0])

    def _side(self, batch: Batch) -> int:
        return sum(int(self.items.length[batch[0]]) > boundary for boundary in self.boundaries)

    def _try(self, batch: Batch) -> ProbeResult | None:
        """The result, or None where memory ran out; by the time of the return the failed attempt's tensors are gone."""
        began = time.perf_counter()
        try:
            return self.prober.probe(self.sequences(batch))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        finally:
            self.counts.busy_seconds += time.perf_counter() - began
        return None

    def _split(self, batch: Batch | None) -> list[Batch]:
        """A batch in pieces within `batch_tokens`: itself, unless memory has run out since the plan."""
        if batch is None:
            return []
        return [batch[piece] for piece in plan_batches(self.items.length[batch], self.batch_tokens)]

    def _halve(self, batch: Batch) -> None:
        if len(batch) == 1:
            index, turn = int(self.items.index[batch[0]]), int(self.items.turn[batch[0]])
            raise DataError(
                f"trajectory {self.source.sequence(index, turn).id!r}: its {self.items.length[batch[0]]} tokens alone need more memory "
                "than there is; lower --context-length, or use --dtype bfloat16"
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.batch_tokens = max(1, self.batch_tokens // 2)
        say(f"out of memory: going on with batches of {self.batch_tokens} tokens")
