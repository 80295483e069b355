"""Episodes to numbers: success and score with 95 % intervals, by task type."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean as mean

from gradprism.rollouts.episode import Episode, StopReason

Z = 1.959963984540054  # of a 95 % interval


@dataclass(frozen=True, slots=True)
class SuccessRow:
    """The episodes of a split of one task type, or of `all`.

    `success` is the share won, with its 95 % interval `low` to `high` (Wilson 1927); `score` the mean score, with an interval by the
    normal approximation; all in [0, 1]. Where each of `tasks` was played several times, episodes of a task are not independent: Wilson's
    interval is then of as many independent episodes as have the variance that the means of tasks show (Kish's effective sample size), and
    the score's is of its mean over tasks. `solved` is the share of tasks with a success in any attempt (pass@k), with its Wilson interval
    `solved_low` to `solved_high`. `mean_steps` are actions per episode, `invalid_share` the share of actions that the environment refused.
    `failures` are episodes that the engine broke off, `cut_by_context` those that ran out of context, `out_of_steps` of steps. `parts`
    are the means of the score's named parts, each over the episodes that have it.
    """

    split: str
    task_type: str
    tasks: int
    episodes: int
    successes: int
    success: float
    low: float
    high: float
    score: float
    score_low: float
    score_high: float
    solved: float
    solved_low: float
    solved_high: float
    mean_steps: float
    invalid_share: float
    failures: int
    cut_by_context: int
    out_of_steps: int
    parts: dict[str, float] = field(default_factory=dict)


def wilson_interval(successes: float, episodes: float, z: float = Z) -> tuple[float, float]:
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
    of_tasks: dict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        of_tasks[episode.task.id].append(episode)
    tasks, solved = len(of_tasks), sum(any(e.success for e in attempts) for attempts in of_tasks.values())
    low, high = wilson_interval(successes, n)
    if tasks < n:
        low, high = clustered_interval([mean(e.success for e in attempts) for attempts in of_tasks.values()], n)
    scores = [mean(e.score for e in attempts) for attempts in of_tasks.values()]
    score_low, score_high = normal_interval(scores)
    solved_low, solved_high = wilson_interval(solved, tasks)
    return SuccessRow(
        split,
        task_type,
        tasks=tasks,
        episodes=n,
        successes=successes,
        success=successes / n,
        low=low,
        high=high,
        score=mean(scores),
        score_low=score_low,
        score_high=score_high,
        solved=solved / tasks,
        solved_low=solved_low,
        solved_high=solved_high,
        mean_steps=len(turns) / n,
        invalid_share=sum(not turn.valid for turn in turns) / max(1, len(turns)),
        failures=sum(bool(episode.failure) for episode in episodes),
        cut_by_context=sum(episode.stop_reason == StopReason.CONTEXT for episode in episodes),
        out_of_steps=sum(episode.stop_reason == StopReason.STEPS for episode in episodes),
        parts=mean_parts(episodes),
    )


def mean_parts(episodes: Iterable[Episode]) -> dict[str, float]:
    """The mean of each named part of the score over the episodes that have it; parts in the order of their names."""
    values: dict[str, list[float]] = defaultdict(list)
    for episode in episodes:
        for name, value in episode.parts.items():
            values[name].append(value)
    return {name: mean(values[name]) for name in sorted(values)}


def clustered_interval(shares: Sequence[float], episodes: int) -> tuple[float, float]:
    """95 % interval of the mean of the tasks' shares of successes in so many episodes: Wilson's, of the number of independent episodes
    whose mean would vary as much, at most `episodes`; of as many as there are tasks where all or none is won and nothing varies."""
    tasks, p = len(shares), mean(shares)
    variance = sum((share - p) ** 2 for share in shares) / (tasks - 1) / tasks if tasks > 1 else 0.0
    if tasks == 1 or p in (0, 1):
        effective: float = tasks
    else:
        effective = min(p * (1 - p) / variance, episodes) if variance else episodes
    return wilson_interval(p * effective, effective)


def normal_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of values in [0, 1] by the normal approximation; Wilson's where all are 0 or all 1, which the
    approximation would call certain; of one value nothing is known: (0, 1)."""
    n, centre = len(values), mean(values)
    if n > 1 and centre in (0, 1):
        return wilson_interval(n * centre, n)
    half = Z * math.sqrt(sum((value - centre) ** 2 for value in values) / (n - 1) / n) if n > 1 else 1.0
    return max(0.0, centre - half), min(1.0, centre + half)


def solved_text(row: SuccessRow) -> str:
    """`, pass@8 40.0 % [31.1, 49.7]` where tasks were played several times, else nothing."""
    if row.tasks == row.episodes:
        return ""
    interval = f"[{100 * row.solved_low:.1f}, {100 * row.solved_high:.1f}]"
    return f", pass@{row.episodes // row.tasks} {100 * row.solved:.1f} % {interval}"


def parts_text(row: SuccessRow) -> str:
    """`ending 12.5 % · name 80.0 %` where the score has named parts, else nothing."""
    return " · ".join(f"{name} {100 * value:.1f} %" for name, value in row.parts.items())


def headline(rows: Iterable[SuccessRow]) -> str:
    """`unseen 12.5 % [6.9, 21.5] · seen …`: one line for a log."""
    return " · ".join(
        f"{row.split} {100 * row.success:.1f} % [{100 * row.low:.1f}, {100 * row.high:.1f}]{solved_text(row)}"
        for row in rows
        if row.task_type == "all"
    )
