"""Rows that begin alike, passed through the model as a tree: what they share at their beginning is computed once.

The episodes of a task share its prompt, and often their first actions too. A tree's tokens stand one after the other as a walk through it
meets them; each sees the tokens between it and the root, and has the position that it has in its rows. So hidden states, and gradients
summed over the rows, are those of the rows by themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradprism.rollouts.episode import Episode
from gradprism.training.rows import Row

LARGEST = 8192  # tokens of a tree that branches: each is masked for every other


@dataclass(slots=True)
class Tree:
    """`ids`, `depth` and `parent` (-1 for a beginning) of each token of the walk; `paths[i]` says which of them are those of `rows[i]`."""

    rows: list[Row] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def branches(self) -> bool:
        """Whether a token comes after another than the one that it stands behind."""
        return len(self.rows) > 1 and any(len(path) < len(self) for path in self.paths)

    def shared(self, row: Row) -> int:
        """Number of tokens that a row has in common with the beginning of the last one."""
        if not self.rows:
            return 0
        last = self.rows[-1].ids
        most = min(len(last), len(row))
        return next((i for i in range(most) if last[i] != row.ids[i]), most)

    def add(self, row: Row) -> None:
        """Adds a row that comes after all others in the order of their tokens, so that it shares most with the last one."""
        common = self.shared(row)
        path = self.paths[-1][:common] if self.rows else []
        for token in row.ids[common:]:
            self.parent.append(path[-1] if path else -1)
            self.depth.append(len(path))
            path.append(len(self.ids))
            self.ids.append(token)
        self.rows.append(row)
        self.paths.append(path)

    def seen(self) -> NDArray[np.bool_]:
        """[T, T]: token t sees token k, which is itself or stands between it and the beginning."""
        seen = np.eye(len(self), dtype=np.bool_)
        for t, parent in enumerate(self.parent):
            if parent >= 0:
                seen[t] |= seen[parent]
        return seen


def make_trees(rows: Sequence[Row], weight: float = 0.0) -> list[Tree]:
    """All rows in trees; of one row each where `weight` is 0.

    A row joins the tree before it where that costs less than a pass by itself. Costs are counted in keys: a token costs `weight` of them
    for the linear layers (`linear_weight`), and as many as it is masked for, the whole tree's, or by itself those before it.
    """
    trees: list[Tree] = []
    for row in sorted(rows, key=lambda row: row.ids):
        if weight and trees and _is_cheaper(trees[-1], row, weight):
            trees[-1].add(row)
        else:
            trees.append(Tree())
            trees[-1].add(row)
    return trees


def _is_cheaper(tree: Tree, row: Row, weight: float) -> bool:
    before, new = len(tree), len(row) - tree.shared(row)
    after = before + new
    squares = before**2 if tree.branches else before**2 / 2
    joined = after**2 - squares if new else 0  # an equal row, or a beginning of the last one
    return after <= LARGEST and new * weight + joined < len(row) * weight + len(row) ** 2 / 2


def linear_weight(model: Any) -> float:
    """Number of keys whose attention costs a token of a `transformers` model as much as its linear layers do."""
    config = model.config.get_text_config()
    ends = {id(p): p for part in (model.get_input_embeddings(), model.get_output_embeddings()) for p in part.parameters()}
    linear = sum(p.numel() for p in model.get_decoder().parameters() if id(p) not in ends)
    width = config.num_attention_heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return linear / (2 * width * config.num_hidden_layers)  # 2 FLOPs per weight; 4 per key, layer and width


def pack(trees: Sequence[Tree], budget: int) -> list[list[Tree]]:
    """Trees of similar length together, each list of at most `budget` padded tokens or of a single tree."""
    batches: list[list[Tree]] = []
    for tree in sorted(trees, key=len):
        if batches and len(tree) * (len(batches[-1]) + 1) <= budget:  # the longest so far
            batches[-1].append(tree)
        else:
            batches.append([tree])
    return batches


def shared_prompt(episode: Episode) -> int:
    """Tokens that the episodes of a task have in common for certain: its prompt."""
    return len(episode.turns[0].prompt_ids) if episode.turns else 0
