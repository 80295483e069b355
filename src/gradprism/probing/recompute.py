"""A layer's input without keeping it: made again from what the autograd graph holds anyway.

The backward pass of a frozen linear layer needs no input, so the probe would be alone in keeping it. But inputs are mostly the result
of a product (`up · act(gate)`, `weight · normed`) whose factors autograd keeps for its own use: the same product gives the same bits.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def remake(A: Tensor) -> Callable[[], Tensor] | None:
    """A function that makes A again, valid until the backward pass has gone through A's graph; None where it cannot be made.

    Works for products and conversions of saved tensors; what the function holds on to are nodes of the graph, no tensors.
    """
    node = A.grad_fn
    if node is None or not _can_remake(node):
        return None
    return lambda: _remade(node)


def _can_remake(node: Any) -> bool:
    if node.name() == "ToCopyBackward0":
        return _follow(node, 0)
    if node.name() != "MulBackward0":
        return False
    factors = (node._saved_self, node._saved_other)
    if factors[0] is None and factors[1] is None:
        return False
    # A factor is kept only if the other one needs a gradient; where one is missing, it is made again in its turn.
    return all(factor is not None or _follow(node, index) for index, factor in enumerate(factors))


def _follow(node: Any, index: int) -> bool:
    following = node.next_functions[index][0]
    return following is not None and _can_remake(following)


@torch.no_grad()
def _remade(node: Any) -> Tensor:
    if node.name() == "ToCopyBackward0":
        return _remade(node.next_functions[0][0]).to(node._input_metadata[0].dtype)
    left, right = node._saved_self, node._saved_other
    left = _remade(node.next_functions[0][0]) if left is None else left
    right = _remade(node.next_functions[1][0]) if right is None else right
    return left * right
