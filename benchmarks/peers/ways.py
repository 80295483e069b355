"""The ways that `probe_cost.py` compares, in the order of its table."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec

from torch import Tensor

from peers import backpack_norms, baselines, bergson_collector, loops, opacus_ghost
from peers.case import Case

# Sets the model up for a way and back again; what it yields is the work that is timed, and returns norms, float64 `[n, N]`.
Open = Callable[[Case], AbstractContextManager[Callable[[], Tensor]]]


@dataclass(frozen=True, slots=True)
class Way:
    """`package` must be installed for it; a way that is no peer is measured but not compared with ours."""

    name: str
    title: str
    open: Open
    package: str | None = None
    peer: bool = True
    gives_norms: bool = True

    @property
    def installed(self) -> bool:
        return self.package is None or find_spec(self.package) is not None


WAYS = (
    Way("inference", "inference (forward only)", baselines.inference, peer=False, gives_norms=False),
    Way("floor", "floor (forward, input-only backward)", baselines.floor, peer=False, gives_norms=False),
    Way("ours", "gradprism", baselines.ours, peer=False),
    Way("ours-checkpointed", "gradprism, --checkpoint-activations", baselines.ours_checkpointed, peer=False),
    Way("gram", "Gram form for every matrix", baselines.gram),
    Way("outer", "outer form for every matrix", baselines.outer),
    Way("opacus", "Opacus ghost norms", opacus_ghost.ghost_norms, package="opacus"),
    Way("loop", "loop over samples, weight gradients", loops.loop),
    Way("less", "LESS's way", loops.less),
    Way("bergson", "bergson collector", bergson_collector.collector, package="bergson"),
    Way("backpack", "BackPACK BatchL2Grad", backpack_norms.batch_l2, package="backpack"),
    Way("vmap", "torch.func vmap(grad)", loops.vmap_grad),
)
