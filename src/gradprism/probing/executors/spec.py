"""How any process of a run loads the model and makes its prober."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradprism.models import Quantise, load_model
from gradprism.probing.norms import Costs
from gradprism.probing.prober import Prober, ProbeResult
from gradprism.probing.units import ExpertUnits, Units, find_units
from gradprism.trajectories.rendering import RenderedTrajectory


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The model and what the probe does with it; small and picklable, so that a process elsewhere can make the same prober."""

    path: str
    dtype: str = "float32"
    quantise: Quantise | None = None
    patterns: tuple[str, ...] | None = None
    experts: ExpertUnits = "joined"
    checkpoint_activations: bool = False

    def load(self, device: str) -> Any:
        """The model on `device`."""
        return load_model(self.path, self.dtype, device, quantise=self.quantise)

    def units(self, model: Any) -> Units:
        """The model's units, as the spec wants them."""
        return find_units(model, self.patterns, self.experts)

    def prober(self, model: Any, costs: Costs | None) -> Prober:
        """A prober of `model`; `costs` are those that the probe folder keeps, so that every process chooses the same forms."""
        return Prober(model, self.units(model), costs=costs, checkpoint_activations=self.checkpoint_activations)


class OnDevice:
    """A prober whose passes run with one CUDA device as the current one, on whatever thread they run."""

    def __init__(self, prober: Prober, device: str) -> None:
        self._prober, self._device = prober, device

    @property
    def unit_names(self) -> list[str]:
        """Of the norms' columns."""
        return self._prober.unit_names

    def probe(self, trajectories: Sequence[RenderedTrajectory]) -> ProbeResult:
        """`Prober.probe`."""
        import torch

        if not self._device.startswith("cuda"):
            return self._prober.probe(trajectories)
        with torch.cuda.device(self._device):
            return self._prober.probe(trajectories)
