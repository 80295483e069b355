"""A probe from beginning to end, whoever does the work: one process, the processes of a launcher, or the actors of a Ray cluster."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gradprism.probing.manifest import Options, checked_batch_tokens, describe_probe, kept_costs, summarise
from gradprism.probing.norms import Costs
from gradprism.probing.plan import Batch, Items, owed_batches, padding_share, plan_items
from gradprism.probing.prepared import Prepared, prepare
from gradprism.probing.run import Counts
from gradprism.probing.store import ProbeStore
from gradprism.runtime.attempts import Attempt, total_cost
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import Renderer


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done: the batches `owed` of `items`; rows go into `store`. `costs` are those by which every process shall choose."""

    store: ProbeStore
    prepared: Prepared
    items: Items
    owed: Sequence[Batch]
    batch_tokens: int
    boundaries: tuple[int, ...]
    costs: dict[str, Any]
    attempt: Attempt


class Executor(Protocol):
    """Who loads the model and works."""

    def describe(self, costs: Costs | None) -> dict[str, Any]:
        """`describe_model` of the model; `costs` are those of the folder where it has any."""
        ...

    def work(self, work: Work) -> tuple[Counts, int]:
        """Does the work: what was done, and the smallest number of tokens a batch was cut to. Raises `DataError` for an item whose
        loss or norms are not finite; whatever was finished by then is in the store."""
        ...


def probe_corpus(
    executor: Executor, tokenizer: Any, trajectories: Iterable[Trajectory], out: Path, options: Options
) -> dict[str, Any]:
    """Probes every trajectory, and every turn where they are asked for, that has no row in `out` yet; returns counts, tokens and times.

    `trajectories` are streamed. When memory runs out, batches are halved. An uninterrupted run and a resumed one give the same rows.

    Raises `FolderInUseError` as `ProbeStore.check` does, `ModelError` for a model or template that cannot be probed, `WriteError`
    where `out` cannot be written, and `DataError` naming a trajectory whose loss or norms are not finite; whatever was finished by
    then is in `out`.
    """
    began, attempt = time.perf_counter(), Attempt(out)
    model = executor.describe(kept_costs(out, options.on_existing))
    tokens = checked_batch_tokens(options.batch_tokens, model["device"])
    description = describe_probe(model, tokenizer, options)
    renderer = Renderer(tokenizer, options.context_length)
    store, prepared = prepare(out, description, trajectories, renderer, options.on_existing)
    items, boundaries = prepared.items(options.per_turn), tuple(model["rope_boundaries"])
    plan = plan_items(items, tokens, boundaries)
    owed = owed_batches(items, plan, store.finished())
    probing_began = time.perf_counter()
    counts, least = executor.work(Work(store, prepared, items, owed, tokens, boundaries, model["costs"], attempt))
    return summarise(
        store,
        counts,
        kept=len(items) - sum(map(len, owed)),
        kept_turns=int((items.turn >= 0).sum()) - sum(int((items.turn[batch] >= 0).sum()) for batch in owed),
        padding=padding_share(items, plan),
        batch_tokens=least,
        seconds=time.perf_counter() - began,
        probing_seconds=time.perf_counter() - probing_began,
        earlier=total_cost(out, without=attempt.name),
    )
