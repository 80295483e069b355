"""The two floors, gradprism itself, and the two fixed forms in ten lines each."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradprism.probing.prober import Prober
from gradprism.trajectories.rendering import RenderedTrajectory
from peers.case import Case, gradient_norms, input_gradients


@contextmanager
def inference(case: Case) -> Iterator[Callable[[], Tensor]]:
    """The forward pass alone."""

    def run() -> Tensor:
        with torch.no_grad():
            return case.losses()

    yield run


@contextmanager
def floor(case: Case) -> Iterator[Callable[[], Tensor]]:
    """Forward and backward through frozen weights: what any method pays that needs every output gradient of the plain model."""

    def run() -> Tensor:
        losses = case.losses()
        losses.sum().backward()
        return losses.detach()

    with input_gradients(case.model):
        yield run


@contextmanager
def ours(case: Case) -> Iterator[Callable[[], Tensor]]:
    """gradprism's prober, with the collation of its batch."""
    prober = Prober(case.model)
    _try_out(prober, case)
    yield lambda: torch.from_numpy(prober.probe(case.trajectories).norms)


@contextmanager
def ours_checkpointed(case: Case) -> Iterator[Callable[[], Tensor]]:
    """The same with each layer's activations recomputed in the backward pass."""
    prober = Prober(case.model, checkpoint_activations=True)
    _try_out(prober, case)
    yield lambda: torch.from_numpy(prober.probe(case.trajectories).norms)


def _try_out(prober: Prober, case: Case) -> None:
    """Has the prober's trial of the model, three short forward passes before the first batch of a run, behind it."""
    ids = case.trajectories[0].input_ids[:8]
    prober.probe([RenderedTrajectory("trial", ids, np.arange(len(ids)) > 0, 0, np.zeros((0, 2), np.int32))])


def gram(case: Case) -> Any:
    """⟨AAᵀ, BBᵀ⟩ for every matrix: the ghost norm, without weight gradients."""
    return _fixed_form(case, lambda A, B: (torch.bmm(A, A.mT) * torch.bmm(B, B.mT)).double().sum(dim=(1, 2)).clamp(min=0).sqrt())


def outer(case: Case) -> Any:
    """‖BᵀA‖ for every matrix, by way of the per-sample gradient."""
    return _fixed_form(case, lambda A, B: gradient_norms(torch.bmm(B.mT, A)))


@contextmanager
def _fixed_form(case: Case, norm: Callable[[Tensor, Tensor], Tensor]) -> Iterator[Callable[[], Tensor]]:
    norms: dict[int, Tensor] = {}

    def watch(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            A = args[0].detach()
            output.register_hook(lambda B: norms.update({index: norm(A, B)}))

        return hook

    def run() -> Tensor:
        case.losses().sum().backward()
        return torch.stack([norms.pop(index) for index in range(len(case.paths))], dim=1)

    with ExitStack() as stack:
        stack.enter_context(input_gradients(case.model))
        for index, module in enumerate(case.modules):
            stack.callback(module.register_forward_hook(watch(index)).remove)
        yield run
