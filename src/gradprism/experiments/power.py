"""The difference that an experiment can detect, told before it is run: by its seeds and tasks, and by what is assumed of both."""

import math
from dataclasses import dataclass

from gradprism.experiments.config import ExperimentConfig
from gradprism.experiments.results import Claim, Power
from gradprism.experiments.statistics import Interval, at_most, detectable_difference


def expected(power: Power, S: int, T: int) -> Interval:
    """The interval of no difference between two arms of S trainings each on the same T tasks, as wide as it is expected to be.

    The mean squares of `statistics.interval`, at their expectations. Seeds: an arm's success varies by `seed_sd`, so the difference of
    two by twice its variance. Tasks: the difference varies by `task_sd`. The rest: a task is won or not, which for two arms of a mean
    success p is at most 2·p(1 − p); it is less where tasks are easy or hard for all, so this errs on the wide side.
    """
    rest = 2 * power.success * (1 - power.success)
    ms_seeds, ms_tasks = T * 2 * power.seed_sd**2 + rest, S * power.task_sd**2 + rest
    total = ms_seeds + ms_tasks - rest
    spread = ms_seeds**2 / (S - 1) + ms_tasks**2 / (T - 1) + rest**2 / ((S - 1) * (T - 1))
    # Where nothing varies all values are equal, and the interval is as wide as it is then.
    error, degrees = (math.sqrt(total / (S * T)), total**2 / spread) if spread else (1 / T, T - 1.0)
    return at_most(Interval(0.0, 0.0, 0.0, error, degrees), math.inf)


@dataclass(frozen=True)
class Detectable:
    """What is detected in 80 % of experiments, as fractions: by one comparison's interval, and as one of a family of claims."""

    alone: float
    in_family: float


def detectable(power: Power, S: int, T: int, family: int) -> Detectable | None:
    """The difference that S trainings of each arm on T tasks detect; None for a single training or task, which says nothing of others.

    In a family of so many claims by Holm's first step, with the at most S − 1 degrees of freedom of the p for any trainings.
    """
    if S < 2 or T < 2:
        return None
    found = expected(power, S, T)
    return Detectable(detectable_difference([found]), detectable_difference([at_most(found, S - 1)], 0.05 / family))


def seeds_of_claim(config: ExperimentConfig, claim: Claim) -> int:
    """Training seeds that both arms of a claim have; an arm that trains nothing is everyone's pair."""
    arms = {arm.name: arm for arm in config.all_arms}
    pair = [arms[claim.better], arms[claim.worse]]
    trained = [set(config.seeds_of(arm)) for arm in pair if (arm.sft, arm.rl) != ("none", "none")]
    return len(set.intersection(*trained)) if trained else 0
