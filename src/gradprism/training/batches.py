"""Trees of rows to micro-batches of tensors.

Letters: B trees, T tokens of the longest, N tokens of actions, each once for all rows that share it, K tokens of actions, row by row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradprism.attention import AttentionMasks
from gradprism.training.head import Places
from gradprism.training.rows import Row
from gradprism.training.trees import Tree, make_trees


@dataclass(slots=True)
class Batch:
    """`inputs` of the model: ids [B, T], padded on the right, and for trees that branch positions [B, T] and a mask.

    `places` [N] are the actions' tokens there, and `repeated` [K] says which of them each token of an action is: equal tokens after an
    equal beginning are one place. Of each [K]: its advantage, the `weights` with which its loss counts, and log-probabilities: when it was
    `sampled`, before the round's first update (`old`), and under the `reference`. `tokens` are those that are computed, `actions` the
    rows', both without padding; 0 for one that only keeps a process in step with others.
    """

    inputs: dict[str, Any]
    places: Places
    repeated: Tensor
    advantages: Tensor
    weights: Tensor
    sampled: Tensor
    tokens: int
    actions: int
    old: Tensor | None = None
    reference: Tensor | None = None
    correction: Tensor | None = None


def make_batch(trees: Sequence[Tree], weights: Sequence[float], device: torch.device, masks: AttentionMasks | None = None) -> Batch:
    """The tensors of some trees; each token of an action counts `weights[i]` times in the loss, i its row's number over all trees.

    No trees make a batch that counts nothing. Trees that branch need the model's `masks`.
    """
    tokens, actions = sum(map(len, trees)), sum(len(row.logprobs) for tree in trees for row in tree.rows)
    if not trees:
        trees, weights = make_trees([Row([0, 0], [False, True], [0.0], [0.0])]), [0.0]
    width = max(map(len, trees))
    number: dict[tuple[int, int], int] = {}  # of a place
    repeated = [
        number.setdefault((b, node), len(number))
        for b, tree in enumerate(trees)
        for row, path in zip(tree.rows, tree.paths, strict=True)
        for node, chosen in zip(path, row.chosen, strict=True)
        if chosen
    ]
    rows = [row for tree in trees for row in tree.rows]

    def whole(values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, device=device)

    def flat(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    inputs: dict[str, Any] = {"input_ids": whole([tree.ids + [0] * (width - len(tree)) for tree in trees])}
    if any(tree.branches for tree in trees):
        assert masks is not None
        seen = np.tile(
            np.eye(width, dtype=np.bool_), (len(trees), 1, 1)
        )  # padding sees itself, so that its softmax is over something
        for b, tree in enumerate(trees):
            seen[b, : len(tree), : len(tree)] = tree.seen()
        positions = whole([tree.depth + [0] * (width - len(tree)) for tree in trees])
        inputs |= {"position_ids": positions, "attention_mask": masks.of(torch.from_numpy(seen).to(device), positions, positions)}
    places = Places(
        whole([b for b, _ in number]),
        whole([trees[b].parent[node] for b, node in number]),
        whole([trees[b].ids[node] for b, node in number]),
    )
    return Batch(
        inputs,
        places,
        whole(repeated),
        flat([value for row in rows for value in row.advantages]),
        flat([weight for row, weight in zip(rows, weights, strict=True) for _ in row.logprobs]),
        flat([value for row in rows for value in row.logprobs]),
        tokens,
        actions,
    )
