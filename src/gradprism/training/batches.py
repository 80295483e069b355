"""Episodes to rows of tokens, rows to micro-batches of tensors.

Letters: B rows, T tokens of the longest, K tokens of actions, row by row.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gradprism.rollouts.episode import Episode

LossKind = Literal["dapo", "dr_grpo", "grpo"]


@dataclass(slots=True)
class Row:
    """Input of one forward pass: tokens, which of them are an action's, and for each of these its log-probability when it was sampled
    and its advantage."""

    ids: list[int] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class Batch:
    """`ids` [B, T], padded on the right, and `chosen` [B, T], true on the tokens of actions; for each of these [K] its advantage, the
    `weights` with which its loss counts, and log-probabilities: when it was `sampled`, before the round's first update (`old`), and under
    the `reference`. `tokens` and `actions` count without padding; 0 for one that only keeps a process in step with others."""

    ids: Tensor
    chosen: Tensor
    advantages: Tensor
    weights: Tensor
    sampled: Tensor
    tokens: int
    actions: int
    old: Tensor | None = None
    reference: Tensor | None = None
    correction: Tensor | None = None


def training_rows(episode: Episode, advantages: np.ndarray) -> list[Row]:
    """One row for a growing conversation; one per step where the prompt was rebuilt at every step; none without an action."""
    rows: list[Row] = []
    for turn, advantage in zip(episode.turns, advantages, strict=True):
        if not rows or not episode.grows:
            rows.append(Row())
        n = len(turn.completion_ids)
        rows[-1].ids.extend([*turn.prompt_ids, *turn.completion_ids])
        rows[-1].chosen.extend([False] * len(turn.prompt_ids) + [True] * n)
        rows[-1].logprobs.extend(turn.logprobs)
        rows[-1].advantages.extend([float(advantage)] * n)
    return rows


def split_rows(rows: Sequence[Row], parts: int, seed: int) -> list[list[Row]]:
    """The rows, shuffled, in `parts` lists of nearly equal length."""
    order = list(rows)
    if parts > 1:
        random.Random(seed).shuffle(order)
    return [order[len(order) * i // parts : len(order) * (i + 1) // parts] for i in range(parts)]


def pack(rows: Sequence[Row], budget: int) -> list[list[Row]]:
    """Rows of similar length together, each list of at most `budget` padded tokens or of a single row."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=len):
        if batches and len(row) * (len(batches[-1]) + 1) <= budget:  # the longest so far
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def make_batch(rows: Sequence[Row], weights: Sequence[float], device: torch.device) -> Batch:
    """The tensors of some rows; each token of row i counts `weights[i]` times in the loss. No rows make a batch that counts nothing."""
    tokens, actions = sum(map(len, rows)), sum(len(row.logprobs) for row in rows)
    if not rows:
        rows, weights = [Row([0, 0], [False, True], [0.0], [0.0])], [0.0]
    width = max(map(len, rows))

    def flat(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    return Batch(
        torch.tensor([row.ids + [0] * (width - len(row)) for row in rows], device=device),
        torch.tensor([row.chosen + [False] * (width - len(row)) for row in rows], device=device),
        flat([value for row in rows for value in row.advantages]),
        flat([weight for row, weight in zip(rows, weights, strict=True) for _ in row.logprobs]),
        flat([value for row in rows for value in row.logprobs]),
        tokens,
        actions,
    )


def row_weight(row: Row, kind: LossKind, n_rows: float, n_actions: float, context_length: int) -> float:
    """Number of times that each action token of a row counts in the loss of an update of `n_rows` rows with `n_actions` such tokens.

    dapo (arXiv 2503.14476): all tokens alike. grpo (2402.03300): each row alike. dr_grpo (2503.20783): each token alike, whatever was
    sampled.
    """
    if kind == "dapo":
        return 1 / max(1.0, n_actions)
    return 1 / (max(1.0, n_rows) * (context_length if kind == "dr_grpo" else max(1, len(row.logprobs))))
