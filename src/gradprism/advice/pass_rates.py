"""What episodes of the base say of RL on a corpus's tasks: how often they are won, and how many groups would teach anything."""

import math
from collections import Counter
from collections.abc import Collection, Hashable, Sequence

from gradprism.advice.evidence import Span
from gradprism.evaluation.summary import wilson_interval
from gradprism.routing.split import Value
from gradprism.routing.tasks import PassRates
from gradprism.runtime.errors import DataError


class Start(Value):
    """How the base starts on `tasks` of the corpus, of `of_tasks` that it names.

    `success` is the mean over tasks of the share of episodes won. `varying` is the share of tasks whose group of `group_size` episodes
    has not one reward throughout, rewarding success; `varying_scores` the same rewarding the score, None where no score is told. Where
    a task has fewer episodes than a group, `at_least` so many vary. Without episodes, which rates do not tell, they are None.

    Intervals are Wilson's. Of some of the tasks n is their number, for they stand for the others. Where all are played, only what their
    episodes would be another time is uncertain, and n is that of the least independent draws: of episodes for success, of whole groups for
    what varies.
    """

    tasks: int
    of_tasks: int
    fewest_episodes: int | None
    most_episodes: int | None
    success: Span
    group_size: int
    varying: Span | None
    varying_scores: Span | None
    at_least: bool


def same_reward(counts: Sequence[int], group_size: int) -> float:
    """The probability that a group, drawn without replacement from episodes of which `counts` have each reward, has one reward throughout.

    Σ C(nᵥ, G)/C(k, G), the unbiased estimate of Σ pᵥᴳ from k episodes; with fewer episodes than a group, that for a group of all of them,
    which is at least as large.
    """
    k = sum(counts)
    G = min(k, group_size)
    return sum(math.comb(count, G) for count in counts) / math.comb(k, G)


def start(rates: PassRates, tasks: Collection[str], group_size: int) -> Start:
    """How the base starts on those of the corpus's `tasks` that it has played; raises `DataError` where these are none."""
    played = sorted({task for task in tasks if task in rates.rates})
    if not played:
        raise DataError(
            f"{rates.source}: hold none of the corpus's {len(tasks)} tasks; play those with "
            "gradprism evaluate --tasks PROBE_DIR/corpus.jsonl"
        )
    ends = None if rates.episodes is None else [rates.episodes[task] for task in played]
    counts = None if ends is None else [len(of_task) for of_task in ends]
    fewest = min(counts) if counts else None
    every = fewest if fewest and len(played) == len(tasks) else 1  # episodes of each task that count as draws
    scored = ends is not None and all(end.score is not None for of_task in ends for end in of_task)

    def varying(rewards: Sequence[Sequence[Hashable]]) -> Span:
        shares = [1 - same_reward(list(Counter(of_task).values()), group_size) for of_task in rewards]
        return mean_share(shares, max(1, every // group_size))

    return Start(
        tasks=len(played),
        of_tasks=len(tasks),
        fewest_episodes=fewest,
        most_episodes=max(counts) if counts else None,
        success=mean_share([rates.rates[task] for task in played], every),
        group_size=group_size,
        varying=varying([[end.success for end in of_task] for of_task in ends]) if ends else None,
        varying_scores=varying([[end.score for end in of_task] for of_task in ends]) if ends and scored else None,
        at_least=fewest is not None and fewest < group_size,
    )


def mean_share(values: Sequence[float], draws: int = 1) -> Span:
    """The mean of a number in [0, 1] per task, with Wilson's interval for `draws` independent ones per task.

    Of all such numbers with the same mean 0 and 1 vary most, of trials with different chances those with one chance (Hoeffding 1956), and
    a mean over all groups of episodes varies no more than one over disjoint groups (Hoeffding 1963): the interval errs on the wide side.
    """
    n, total = draws * len(values), draws * math.fsum(values)
    low, high = wilson_interval(total, n)
    return Span(mean=total / n, low=low, high=high)
