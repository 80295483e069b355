"""The processes of a launcher share out a probe: the first one prepares and deals the batches, each works on its own device.

A process writes its own rows, so the probe folder must be one that all of them see.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradprism.probing.costs import measured_costs
from gradprism.probing.executors.flow import Work
from gradprism.probing.executors.sharding import any_failed, join_group, leave_group, shard_model
from gradprism.probing.executors.spec import ModelSpec, OnDevice
from gradprism.probing.manifest import describe_model
from gradprism.probing.norms import Costs
from gradprism.probing.plan import Batch
from gradprism.probing.prepared import Prepared
from gradprism.probing.run import BatchRun, Counts, ShardWriter, default_workers, is_out_of_memory
from gradprism.probing.store import ProbeStore
from gradprism.runtime.attempts import Attempt
from gradprism.runtime.errors import DataError, WorkerError, WriteError
from gradprism.runtime.ranks import Ranks


class Launched:
    """The first of a launcher's processes; the others call `follow`. With `shard`, the model's weights are spread over all of them."""

    def __init__(self, ranks: Ranks, spec: ModelSpec, device: str, shard: bool) -> None:
        self._ranks, self._spec, self._shard = ranks, spec, shard
        self._device = ranks.device(device)
        if shard:
            join_group(ranks)

    def describe(self, costs: Costs | None) -> dict[str, Any]:
        """The manifest's part: of the whole weights, before they are sharded."""
        if not self._shard:
            self._model = self._spec.load(self._device)
            return describe_model(self._spec.prober(self._model, costs))
        full = self._spec.load("cpu")
        costs = costs or measured_costs(self._device, full.dtype)
        description = describe_model(self._spec.prober(full, costs))
        self._model = shard_model(self._spec.path, full, self._ranks, self._device)
        return {**description, "device": torch.device(self._device).type}

    def work(self, work: Work) -> tuple[Counts, int]:
        """Deals the batches out in turn, does its own share, and sums up what all did."""
        world = self._ranks.world
        shares = [work.owed[rank::world] for rank in range(world)]
        for rank, mine in enumerate(shares):
            # A sharded layer's weights can only be gathered by all: who has no batch in the last step repeats another's.
            spare = [work.owed[-1]] if self._shard and len(mine) < len(shares[0]) else []
            share = {
                "batches": [batch.tolist() for batch in mine],
                "spare": [batch.tolist() for batch in spare],
                "per_turn": bool((work.items.turn >= 0).any()),
                "batch_tokens": work.batch_tokens,
                "boundaries": work.boundaries,
                "costs": work.costs,
                "attempt": work.attempt.name,
            }
            self._ranks.publish(f"share/{rank}", share)
        done = _do_share(self._ranks, self._spec, self._model, self._device, self._shard, work.attempt, work.store.folder)
        told = self._ranks.gather("done", done)
        if self._shard:
            leave_group()
        counts = Counts(**{name: sum(each["counts"][name] for each in told) for name in asdict(Counts())})
        return counts, min(each["batch_tokens"] for each in told)


def follow(ranks: Ranks, spec: ModelSpec, device: str, shard: bool, out: Path) -> None:
    """What every process but the first does: waits for its share of the batches and probes them."""
    attempt, device = Attempt(out, process=ranks.rank), ranks.device(device)
    if shard:
        join_group(ranks)
        model = shard_model(spec.path, None, ranks, device)
    else:
        model = spec.load(device)
    ranks.gather("done", _do_share(ranks, spec, model, device, shard, attempt, out))
    if shard:
        leave_group()


def _do_share(ranks: Ranks, spec: ModelSpec, model: Any, device: str, shard: bool, attempt: Attempt, out: Path) -> dict[str, Any]:
    share = ranks.wait_for(f"share/{ranks.rank}")
    attempt.name = share["attempt"]
    store, prepared = ProbeStore(out), Prepared(out)
    items = prepared.items(share["per_turn"])
    prober = OnDevice(spec.prober(model, Costs(**share["costs"])), device)
    workers = 1 if shard else default_workers(device)
    run = BatchRun(prober, prepared, items, share["batch_tokens"], tuple(share["boundaries"]), workers, may_split=not shard)
    batches = [np.array(batch, dtype=np.intp) for batch in share["batches"]]
    with ranks.at_work(), ExitStack() as stack:
        writer = ShardWriter(store, attempt, len(items))
        stack.callback(writer.write)  # also when the work is interrupted
        if shard:
            _in_step(ranks, run, batches, [np.array(batch, dtype=np.intp) for batch in share["spare"]], writer)
        else:
            run.run(ranks.steps(batches), writer.add, sum(map(len, batches)))
    return {"counts": asdict(run.counts), "batch_tokens": run.batch_tokens}


def _in_step(ranks: Ranks, run: BatchRun, batches: Sequence[Batch], spare: Sequence[Batch], writer: ShardWriter) -> None:
    """Probes the batches in step with all other processes, and the spare ones for their sake alone.

    Before each step, and after the last, all ask one another whether one has failed, so that none waits for it for ever.
    """

    def steps() -> Iterator[Batch]:
        for batch in ranks.steps(batches):
            _leave_if_any_failed()
            yield batch

    try:
        run.run(steps(), writer.add, sum(map(len, batches)))
    except (DataError, WriteError):  # raised between two steps, when the others come to ask
        any_failed(True)
        raise
    except (RuntimeError, MemoryError) as error:
        # Within a step: the others wait for this process until the launcher ends them.
        if is_out_of_memory(error):
            raise WorkerError("out of memory, which a sharded model cannot recover from; lower --batch-tokens") from None
        raise
    for batch in ranks.steps(spare):
        _leave_if_any_failed()
        run.prober.probe(run.sequences(batch))
    _leave_if_any_failed()


def _leave_if_any_failed() -> None:
    if any_failed(False):
        sys.exit(2)  # the process that failed says why
