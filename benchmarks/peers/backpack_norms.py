"""BackPACK: its first-order extension for squared norms of per-sample gradients."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from peers.case import Case, trainable


@contextmanager
def batch_l2(case: Case) -> Iterator[Callable[[], Tensor]]:
    """`BatchL2Grad` on the N modules; a first-order extension needs no other module of the model extended."""
    from backpack import backpack, extend  # pyright: ignore[reportMissingImports]
    from backpack.context import CTX  # pyright: ignore[reportMissingImports]
    from backpack.extensions import BatchL2Grad  # pyright: ignore[reportMissingImports]

    weights = case.weights

    def run() -> Tensor:
        with backpack(BatchL2Grad()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first layer's inputs take no gradient, which it says each time
            case.losses().sum().backward()
        norms = torch.stack([weight.batch_l2.double().sqrt() for weight in weights], dim=1)  # pyright: ignore[reportAttributeAccessIssue]
        case.model.zero_grad()
        return norms

    with trainable(case.model, weights):
        for module in case.modules:
            extend(module)
        try:
            yield run
        finally:
            # There is no public way back.
            CTX.remove_hooks()
            for module in case.modules:
                del module._backpack_extend
                del module.weight.batch_l2  # pyright: ignore[reportAttributeAccessIssue]
