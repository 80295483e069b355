"""Episodes to numbers: success and score with 95 % intervals, by task type."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gradprism.rollouts.episode import Episode, StopReason

Z = 1.959963984540054  # of a 95 % interval


@dataclass(frozen=True, slots=True)
class SuccessRow:
    """The episodes of a split of one task type, or of `all`.

    `success` is the share won, with its 95 % interval `low` to `high` (Wilson 1927); `score` the mean score, with an interval by the
    normal approximation; all in [0, 1]. `mean_steps` are actions per episode, `invalid_share` the share of actions that the environment
    refused. `failures` are episodes that the engine broke off, `cut_by_context` those that ran out of context, `out_of_steps` of steps.
    """

    split: str
    task_type: str
    episodes: int
    successes: int
    success: float
    low: float
    high: float
    score: float
    score_low: float
    score_high: float
    mean_steps: float
    invalid_share: float
    failures: int
    cut_by_context: int
    out_of_steps: int


def wilson_interval(successes: int, episodes: int, z: float = Z) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion (Wilson 1927), as fractions; (0, 1) for no episodes."""
    if episodes == 0:
        return 0.0, 1.0
    p, z2 = successes / episodes, z * z
    centre = (p + z2 / (2 * episodes)) / (1 + z2 / episodes)
    half = z / (1 + z2 / episodes) * math.sqrt(p * (1 - p) / episodes + z2 / (4 * episodes * episodes))
    # At 0 and at all successes an end of the interval is the proportion itself, up to rounding.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == episodes else centre + half)


def summarise(episodes: Sequence[Episode]) -> list[SuccessRow]:
    """One row per split and task type, after one with task type `all`; splits in order of first appearance."""
    rows = []
    for split in dict.fromkeys(episode.task.split for episode in episodes):
        of_split = [episode for episode in episodes if episode.task.split == split]
        for task_type in ["all", *sorted({episode.task.task_type for episode in of_split})]:
            chosen = [episode for episode in of_split if task_type in ("all", episode.task.task_type)]
            rows.append(_row(split, task_type, chosen))
    return rows


def _row(split: str, task_type: str, episodes: Sequence[Episode]) -> SuccessRow:
    n, successes = len(episodes), sum(episode.success for episode in episodes)
    turns = [turn for episode in episodes for turn in episode.turns]
    score = sum(episode.score for episode in episodes) / n
    # Of one episode nothing is known: the whole range of scores.
    half = Z * math.sqrt(sum((e.score - score) ** 2 for e in episodes) / (n - 1) / n) if n > 1 else 1.0
    low, high = wilson_interval(successes, n)
    return SuccessRow(
        split,
        task_type,
        episodes=n,
        successes=successes,
        success=successes / n,
        low=low,
        high=high,
        score=score,
        score_low=max(0.0, score - half),
        score_high=min(1.0, score + half),
        mean_steps=len(turns) / n,
        invalid_share=sum(not turn.valid for turn in turns) / max(1, len(turns)),
        failures=sum(bool(episode.failure) for episode in episodes),
        cut_by_context=sum(episode.stop_reason == StopReason.CONTEXT for episode in episodes),
        out_of_steps=sum(episode.stop_reason == StopReason.STEPS for episode in episodes),
    )


def headline(rows: Iterable[SuccessRow]) -> str:
    """`unseen 12.5 % [6.9, 21.5] · seen …`: one line for a log."""
    return " · ".join(
        f"{row.split} {100 * row.success:.1f} % [{100 * row.low:.1f}, {100 * row.high:.1f}]"
        for row in rows
        if row.task_type == "all"
    )
