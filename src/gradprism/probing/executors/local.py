"""One process with one model, on whatever devices it lies."""

from contextlib import ExitStack
from typing import Any

from transformers import PreTrainedModel

from gradprism.probing.executors.flow import Work
from gradprism.probing.manifest import describe_model
from gradprism.probing.norms import Costs
from gradprism.probing.plan import Items
from gradprism.probing.prepared import Prepared
from gradprism.probing.prober import Prober
from gradprism.probing.run import BatchRun, Counts, ShardWriter, default_workers
from gradprism.probing.units import Units, find_units


class InProcess:
    """This process probes `model`; on a CPU several batches run at once."""

    def __init__(self, model: PreTrainedModel, units: Units | None = None, *, checkpoint_activations: bool = False) -> None:
        self._model, self._units = model, units or find_units(model)
        self._checkpoint_activations = checkpoint_activations

    def describe(self, costs: Costs | None) -> dict[str, Any]:
        """The manifest's part."""
        self._prober = Prober(self._model, self._units, costs=costs, checkpoint_activations=self._checkpoint_activations)
        return describe_model(self._prober)

    def batch_run(self, prepared: Prepared, items: Items, batch_tokens: int, boundaries: tuple[int, ...]) -> BatchRun:
        """What works on batches of `items`; after `describe`."""
        return BatchRun(self._prober, prepared, items, batch_tokens, boundaries, default_workers(self._model.device.type))

    def work(self, work: Work) -> tuple[Counts, int]:
        """Probes all that is owed."""
        run = self.batch_run(work.prepared, work.items, work.batch_tokens, work.boundaries)
        with ExitStack() as stack:
            writer = ShardWriter(work.store, work.attempt, len(work.items))
            stack.callback(writer.write)  # also when the work is interrupted
            run.run(work.owed, writer.add)
        return run.counts, run.batch_tokens
