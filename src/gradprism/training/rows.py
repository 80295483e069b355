"""Episodes to rows of tokens, and how much each counts in the loss."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from gradprism.rollouts.episode import Episode

LossKind = Literal["dapo", "dr_grpo", "grpo"]


@dataclass(slots=True)
class Row:
    """Input of one forward pass: tokens, which of them are an action's, and for each of these its log-probability when it was sampled
    and its advantage. `group` numbers the task's group in its round."""

    ids: list[int] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    group: int = 0

    def __len__(self) -> int:
        return len(self.ids)


def training_rows(episode: Episode, advantages: np.ndarray, group: int = 0) -> list[Row]:
    """One row for a growing conversation; one per step where the prompt was rebuilt at every step; none without an action."""
    rows: list[Row] = []
    for turn, advantage in zip(episode.turns, advantages, strict=True):
        if not rows or not episode.grows:
            rows.append(Row(group=group))
        n = len(turn.completion_ids)
        rows[-1].ids.extend([*turn.prompt_ids, *turn.completion_ids])
        rows[-1].chosen.extend([False] * len(turn.prompt_ids) + [True] * n)
        rows[-1].logprobs.extend(turn.logprobs)
        rows[-1].advantages.extend([float(advantage)] * n)
    return rows


def row_lengths(episodes: Sequence[Episode]) -> list[int]:
    """Tokens of each training row."""
    return [len(row) for episode in episodes for row in training_rows(episode, np.zeros(len(episode.turns)))]


def split_rows(rows: Sequence[Row], parts: int, seed: int) -> list[list[Row]]:
    """The rows in `parts` lists of nearly equal length, their groups shuffled but together: what a group shares is computed once."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    shuffled = list(groups.values())
    if parts > 1:
        random.Random(seed).shuffle(shuffled)
    order = [row for group in shuffled for row in group]
    return [order[len(order) * i // parts : len(order) * (i + 1) // parts] for i in range(parts)]


def row_weight(row: Row, kind: LossKind, n_rows: float, n_actions: float, context_length: int) -> float:
    """Number of times that each action token of a row counts in the loss of an update of `n_rows` rows with `n_actions` such tokens.

    dapo (arXiv 2503.14476): all tokens alike. grpo (2402.03300): each row alike. dr_grpo (2503.20783): each token alike, whatever was
    sampled.
    """
    if kind == "dapo":
        return 1 / max(1.0, n_actions)
    return 1 / (max(1.0, n_rows) * (context_length if kind == "dr_grpo" else max(1, len(row.logprobs))))
