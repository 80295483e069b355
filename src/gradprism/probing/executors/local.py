"""One process with one model, on whatever devices it lies."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from gradprism.probing.executors.flow import Work, probe_with
from gradprism.probing.manifest import describe_model
from gradprism.probing.norms import Costs
from gradprism.probing.prober import Prober
from gradprism.probing.run import BatchRun, Counts, ShardWriter, default_workers
from gradprism.probing.store import OnExisting
from gradprism.probing.units import Units, find_units
from gradprism.trajectories.record import Trajectory


class InProcess:
    """This process probes `model`; on a CPU several batches run at once."""

    def __init__(self, model: PreTrainedModel, units: Units | None = None, *, checkpoint_activations: bool = False) -> None:
        self._model, self._units = model, units or find_units(model)
        self._checkpoint_activations = checkpoint_activations

    def describe(self, costs: Costs | None) -> dict[str, Any]:
        """The manifest's part."""
        self._prober = Prober(self._model, self._units, costs=costs, checkpoint_activations=self._checkpoint_activations)
        return describe_model(self._prober, self._units)

    def work(self, work: Work) -> tuple[Counts, int]:
        """Probes all that is owed."""
        run = BatchRun(
            self._prober, work.prepared, work.items, work.batch_tokens, work.boundaries, default_workers(self._model.device.type)
        )
        with ExitStack() as stack:
            writer = ShardWriter(work.store, work.attempt, len(work.items))
            stack.callback(writer.write)  # also when the work is interrupted
            run.run(work.owed, writer.add)
        return run.counts, run.batch_tokens


def probe_corpus(
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
    """Probes every trajectory, and with `per_turn` every turn, that has no row in `out` yet; returns counts, tokens and times.

    `trajectories` are streamed. Where they come from files, `data` names them and `read` says how they are read: a run that goes on with
    a folder made of the same does not read `trajectories` at all. `batch_tokens` (default `default_batch_tokens`) bounds the padded
    tokens of a batch; when memory runs out it is halved. An uninterrupted run and a resumed one give the same rows.

    Raises `FolderInUseError` as `ProbeStore.check` does, `ModelError` for a model or template that cannot be probed, `WriteError`
    where `out` cannot be written, and `DataError` naming a trajectory whose loss or norms are not finite; whatever was finished by
    then is in `out`.
    """
    return probe_with(
        InProcess(model, units, checkpoint_activations=checkpoint_activations),
        tokenizer,
        trajectories,
        out,
        context_length=context_length,
        batch_tokens=batch_tokens,
        per_turn=per_turn,
        on_existing=on_existing,
        data=data,
        read=read,
    )
