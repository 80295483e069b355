"""Probing by the actors of a Ray cluster: Ray Data hands batches to them, and rows come back to the driver, which alone writes.

A batch whose actor died is given to another one. Only the model's folder must be readable everywhere.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa

from gradprism.probing.executors.cluster import RETRIES, Pool, own_error
from gradprism.probing.executors.flow import Work
from gradprism.probing.executors.spec import ModelSpec, OnDevice
from gradprism.probing.manifest import describe_model
from gradprism.probing.norms import Costs
from gradprism.probing.plan import Batch, Items
from gradprism.probing.prepared import Prepared
from gradprism.probing.run import BatchRun, Counts, ShardWriter
from gradprism.probing.store import WHOLE, ProbeRow
from gradprism.runtime.errors import DataError
from gradprism.runtime.progress import Progress, set_quiet
from gradprism.trajectories.rendering import RenderedTrajectory

# The driver puts so many tokens into the cluster's memory at a time (about 5 bytes each); actors start anew after each such round,
# which for a model of 8 billion parameters on 8 devices is more than an hour.
ROUND_TOKENS = 1 << 28
BLOCKS = 2048
_INTEGERS = ("index", "turn", "n_tokens", "n_response_tokens", "n_turns")
_FIELDS = (*_INTEGERS, "id", "loss", "l2")


class OnRay:
    """The actors of `pool` probe the model of `spec`; this process writes the rows."""

    def __init__(self, pool: Pool, spec: ModelSpec, device: str) -> None:
        self._pool, self._spec, self._device = pool, spec, pool.device(device)

    def describe(self, costs: Costs | None) -> dict[str, Any]:
        """The manifest's part, from a process like an actor's: this one may have neither the memory nor the device."""
        return self._pool.run_one(_describe, self._spec, self._device, costs)

    def work(self, work: Work) -> tuple[Counts, int]:
        """Ships the batches and writes the rows as they come, in no order.

        Raises what an actor raised that is a `GradprismError`, after the rows that had come by then were written, and `WorkerError`
        where actors keep dying of a batch.
        """
        counts = Counts()
        with ExitStack() as stack:
            writer = ShardWriter(work.store, work.attempt, len(work.items))
            stack.callback(writer.write)  # also when the work is interrupted
            progress = stack.enter_context(Progress("probing", sum(map(len, work.owed))))
            for batches in _rounds(work.items, work.owed):
                for table in self._results(work, batches):
                    rows, wrong = _unpack(table)
                    writer.add(rows)
                    counts.add(rows)
                    counts.busy_seconds += float(table["seconds"].to_numpy().sum())
                    progress.advance(len(rows), f"{counts.tokens} tokens")
                    if wrong:
                        raise DataError(wrong)
        return counts, work.batch_tokens

    def _results(self, work: Work, batches: Sequence[Batch]) -> Iterator[pa.Table]:
        import ray.data  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]

        # A block is what an actor gives back, and what is done again when it dies: one batch, unless there are very many.
        size = -(-len(batches) // BLOCKS)
        blocks = [_pack(work.prepared, work.items, batches[k : k + size]) for k in range(0, len(batches), size)]
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")  # before Ray 2.64 nothing else sets retries
        results = ray.data.from_blocks(blocks).map_batches(
            _Actor,  # pyright: ignore[reportArgumentType]
            fn_constructor_kwargs={"spec": self._spec, "device": self._device, "costs": Costs(**work.costs)},
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=self._pool.workers),
            num_cpus=self._pool.cpus,
            num_gpus=self._pool.gpus or None,
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
        try:
            yield from results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        except RayError as error:
            raise own_error(error) from None


def _describe(spec: ModelSpec, device: str, costs: Costs | None) -> dict[str, Any]:
    set_quiet(True)
    return describe_model(spec.prober(spec.load(device), costs))


def _rounds(items: Items, batches: Sequence[Batch]) -> Iterator[list[Batch]]:
    some: list[Batch] = []
    n_tokens = 0
    for batch in batches:
        some.append(batch)
        n_tokens += int(items.length[batch].sum())
        if n_tokens >= ROUND_TOKENS:
            yield some
            some, n_tokens = [], 0
    if some:
        yield some


def _pack(prepared: Prepared, items: Items, batches: Sequence[Batch]) -> pa.Table:
    """A table with one row a batch, with all that an actor needs of the corpus."""
    return pa.concat_tables([_pack_batch(prepared, items, batch) for batch in batches]).combine_chunks()


def _pack_batch(prepared: Prepared, items: Items, batch: Batch) -> pa.Table:
    index, turn = items.index[batch].tolist(), items.turn[batch].tolist()
    sequences = [prepared.sequence(*item) for item in zip(index, turn, strict=True)]
    columns = {
        "index": ([index], pa.list_(pa.int64())),
        "turn": ([turn], pa.list_(pa.int32())),
        "length": ([items.length[batch]], pa.list_(pa.int64())),
        "n_turns": ([prepared.n_turns[index]], pa.list_(pa.int32())),
        "id": ([[sequence.id for sequence in sequences]], pa.list_(pa.string())),
        "input_ids": ([[sequence.input_ids for sequence in sequences]], pa.list_(pa.list_(pa.int32()))),
        "response_mask": ([[sequence.response_mask for sequence in sequences]], pa.list_(pa.list_(pa.bool_()))),
    }
    return pa.table({name: pa.array(values, kind) for name, (values, kind) in columns.items()})


class _Shipped:
    """The sequences of one batch, as a `Prepared` would give them."""

    def __init__(self, table: pa.Table) -> None:
        row = {name: table[name][0].values for name in table.column_names}
        index = row["index"].to_pylist()
        turn = row["turn"].to_numpy().astype(np.int32)
        self.items = Items(np.array(index, dtype=np.int64), turn, row["length"].to_numpy().astype(np.int64))
        self.n_turns = dict(zip(index, row["n_turns"].to_pylist(), strict=True))
        self._sequences = {
            (index[k], int(turn[k])): RenderedTrajectory(
                row["id"][k].as_py(),
                row["input_ids"][k].values.to_numpy(),
                row["response_mask"][k].values.to_numpy(zero_copy_only=False),
                0,
                np.empty((0, 2), dtype=np.int32),
            )
            for k in range(len(index))
        }

    def sequence(self, index: int, turn: int = WHOLE) -> RenderedTrajectory:
        """What the model is given for an item."""
        return self._sequences[index, turn]


class _Actor:
    """One process with the model: probes a batch in each call."""

    def __init__(self, spec: ModelSpec, device: str, costs: Costs) -> None:
        set_quiet(True)
        self._prober = OnDevice(spec.prober(spec.load(device), costs), device)

    def __call__(self, table: pa.Table) -> pa.Table:
        shipped = _Shipped(table)
        rows: list[ProbeRow] = []
        # Where memory runs out the batch is cut for itself alone: the next one may fit.
        tokens = int(shipped.items.length.max()) * len(shipped.items)
        run = BatchRun(self._prober, shipped, shipped.items, tokens)  # pyright: ignore[reportArgumentType] # n_turns: a dict will do
        wrong = None
        began = time.perf_counter()
        try:
            run.run([np.arange(len(shipped.items))], rows.extend)
        except DataError as error:
            wrong = str(error)
        return _rows_table(rows, wrong, len(self._prober.unit_names), time.perf_counter() - began)


def _rows_table(rows: Sequence[ProbeRow], wrong: str | None, n_units: int, seconds: float) -> pa.Table:
    """Rows as a table, and an error as a last row that has nothing else."""
    n = len(rows) + (wrong is not None)
    columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in (*_FIELDS, "norms")}
    columns["wrong"] = [None] * len(rows)
    if wrong is not None:
        columns = {name: [*values, wrong if name == "wrong" else None] for name, values in columns.items()}
    columns["seconds"] = [seconds / n] * n
    floats = dict.fromkeys(("loss", "l2", "seconds"), pa.float64())
    types = {**dict.fromkeys(_INTEGERS, pa.int64()), **floats, "norms": pa.list_(pa.float32(), n_units)}
    return pa.table({name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()})


def _unpack(table: pa.Table) -> tuple[list[ProbeRow], str | None]:
    wrong = next((text for text in table["wrong"].to_pylist() if text is not None), None)
    good = table.filter(table["wrong"].is_null()).combine_chunks()
    fields = {name: good[name].to_pylist() for name in _FIELDS}
    norms = good["norms"].combine_chunks()
    rows = [
        ProbeRow(**{name: values[k] for name, values in fields.items()}, norms=norms[k].values.to_numpy()) for k in range(len(good))
    ]
    return rows, wrong
