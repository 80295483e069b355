"""One process with one model, on whatever devices it lies."""

from contextlib import ExitStack
from typing import Any

from transformers import PreTrainedModel

from gradprism.probing.corpus import describe_model
from gradprism.probing.costs import Costs
from gradprism.probing.executors.flow import Work
from gradprism.probing.prober import Prober
from gradprism.probing.run import BatchRun, Counts, ShardWriter, default_workers
from gradprism.probing.units import Units, find_units


class InProcess:
    """This process probes `model`; on a CPU several batches run at once."""

    def __init__(self, model: PreTrainedModel, units: Units | None = None, *, checkpoint_activations: bool = False) -> None:
        self._model, self._units = model, units or find_units(model)
        self._checkpoint_activations = checkpoint_activations

    def describe(self, costs: Costs | None, context_length: int) -> dict[str, Any]:
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
