"""bergson: its hooks and its per-sample gradients, without projection."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from peers.case import Case, gradient_norms, trainable


@contextmanager
def collector(case: Case) -> Iterator[Callable[[], Tensor]]:
    """A collector that takes the norm of each matrix's per-sample gradients as they come, and drops them.

    bergson's own collectors keep all of them, n times the weights; this is kinder to it. As it does itself, the model is frozen but
    for the embeddings, with which the backward pass begins.
    """
    from bergson.collector.collector import HookCollectorBase  # pyright: ignore[reportMissingImports]

    norms: dict[str, Tensor] = {}

    class NormCollector(HookCollectorBase):
        def setup(self) -> None: ...

        def teardown(self) -> None: ...

        def process_batch(self, indices: list[int], **kwargs: object) -> None: ...

        def backward_hook(self, module: nn.Module, g: Tensor) -> None:
            norms[str(module._name)] = gradient_norms(self._compute_gradient(module, g).unflatten(1, module.weight.shape))

    listener = NormCollector(model=case.model, target_modules=set(case.paths))

    def run() -> Tensor:
        with listener.with_batch():
            case.losses().sum().backward()
        case.model.zero_grad()
        return torch.stack([norms.pop(path) for path in case.paths], dim=1)

    with trainable(case.model, [case.model.get_input_embeddings().weight]):
        yield run
