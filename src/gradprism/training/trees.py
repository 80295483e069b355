"""Rows that begin alike, passed through the model as a tree: what they share at their beginning is computed once.

The episodes of a task share its prompt, and often their first actions too. A tree's tokens stand one after the other as a walk through it
meets them; each sees the tokens between it and the root, and has the position that it has in its rows. So hidden states, and gradients
summed over the rows, are those of the rows by themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gradprism.rollouts.episode import Episode
from gradprism.training.rows import Row, training_rows

# A row is put into a tree that saves it this share of its tokens, while the tree stays this small: every token of a tree is masked for
# every other, which costs attention their product.
SHARED = 0.2
LARGEST = 2048


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


def make_trees(rows: Sequence[Row], branching: bool) -> list[Tree]:
    """All rows in trees; of one row each where trees may not branch."""
    trees: list[Tree] = []
    for row in sorted(rows, key=lambda row: row.ids):
        common = trees[-1].shared(row) if trees and branching else 0
        if common and common >= SHARED * len(row) and len(trees[-1]) + len(row) - common <= LARGEST:
            trees[-1].add(row)
        else:
            trees.append(Tree())
            trees[-1].add(row)
    return trees


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
    """Tokens that the episodes of a task have in common for certain, where training passes them once."""
    first = training_rows(episode, np.zeros(len(episode.turns)))[:1]
    prompt = len(episode.turns[0].prompt_ids) if first else 0
    return prompt if first and prompt >= SHARED * len(first[0]) else 0
