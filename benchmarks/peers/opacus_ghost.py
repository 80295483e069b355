"""Opacus: ghost norms (fast gradient clipping), the first of its two backward passes."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from peers.case import Case, trainable


@contextmanager
def ghost_norms(case: Case) -> Iterator[Callable[[], Tensor]]:
    """The wrapper of Opacus's ghost clipping with the N matrices trainable; each parameter's norms are read where it leaves them.

    The clipped second backward pass is left out. The first forms the batch's weight gradients, since Opacus measures trainable
    parameters only.
    """
    from opacus.grad_sample import GradSampleModuleFastGradientClipping  # pyright: ignore[reportMissingImports]

    weights = case.weights
    with trainable(case.model, weights):
        case.model.train()  # it listens in training mode only; nothing in this model depends on the mode
        wrapped = GradSampleModuleFastGradientClipping(case.model, loss_reduction="sum", strict=False, use_ghost_clipping=True)

        def run() -> Tensor:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the first layer's inputs take no gradient, which it says each time
                case.losses(forward=wrapped).sum().backward()
            norms = torch.stack([weight._norm_sample.double() for weight in weights], dim=1)  # pyright: ignore[reportAttributeAccessIssue]
            wrapped.zero_grad()
            return norms

        try:
            yield run
        finally:
            wrapped.to_standard_module()
            case.model.eval()
