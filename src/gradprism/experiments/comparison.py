"""Arms of an experiment compared: means, differences and p values of their successes, costs and speed-ups."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradprism.evaluation.summary import wilson_interval
from gradprism.experiments.costs import Measure, Speedup, run_cost, speedup
from gradprism.experiments.results import Claim, Cost, Results, Run
from gradprism.experiments.statistics import (
    Interval,
    at_most,
    detectable_difference,
    difference,
    holm,
    interval,
    permutation_p,
    training_p,
)

MAIN_GROUP = "table1"
What = Literal["success", "score"]
T = TypeVar("T")
K = TypeVar("K")


@dataclass(frozen=True)
class Tested:
    """A claim's difference "better less worse" on the main split, a fraction, over `seeds` in common, and p values of no difference:
    given these models, and for any trainings, both Holm's over its family of `comparisons` claims; with the difference that such an
    experiment detects. None for what is not known. `measured`: both arms have runs there, be it of other seeds."""

    difference: Interval | None
    p_models: float | None
    p_trainings: float | None
    seeds: int
    comparisons: int
    detectable: float | None
    measured: bool


def corrected(p_values: Mapping[K, float | None]) -> dict[K, float]:
    """Those that are known, corrected by Holm's method for the number of all: one that is not known yet counts as 1, so that what is
    measured first is not told more lightly."""
    found = holm([1.0 if p is None else p for p in p_values.values()])
    return {key: value for (key, p), value in zip(p_values.items(), found, strict=True) if p is not None}


class Comparison:
    """The statistics of the arms of results; arms and seeds may be missing while an experiment runs."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.arms = {arm.name: arm for arm in results.arms}
        self.splits = list(results.tasks)
        self._kept: dict[tuple[str, ...], object] = {}

    def _keep(self, key: tuple[str, ...], make: Callable[[], T]) -> T:
        """The value of `make`, made once: ten thousand draws are not free, and the same figure stands in several tables."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]  # pyright: ignore[reportReturnType] # a key belongs to one type

    @property
    def is_run(self) -> bool:
        """Whether it is a run, with one seed for all."""
        return len(self.results.seeds) == 1

    def of_group(self, group: str) -> list[str]:
        """Names of the arms of a group, in order."""
        return [name for name, arm in self.arms.items() if arm.group == group]

    def title(self, arm: str) -> str:
        """Title of an arm in tables."""
        return self.arms[arm].title if arm in self.arms else arm

    def runs(self, arm: str | None, split: str | None = None) -> list[Run]:
        """The arm's runs that have been evaluated on a split (default the first), in the order of their seeds; none where it is absent."""
        split = split or self.splits[0]
        runs = self.arms[arm].runs if arm in self.arms else []
        return sorted((run for run in runs if run.success.get(split)), key=lambda run: run.seed)

    def plays(self, run: Run) -> bool:
        """Whether RL is among the stages of a run."""
        return any(self.results.stages[name].kind == "rl" for name in run.stages)

    def played(self, run: Run) -> int | None:
        """Tasks that RL plays of a routed run: none without RL, though results may tell how many its route would have sent there."""
        return run.n_rl if self.plays(run) or run.n_rl is None else 0

    def values(self, arm: str, split: str, what: What = "success") -> NDArray[np.float64]:
        """Success (0 or 1) or score of every run and task, `[S, T]`; S is 0 where nothing is there, or a run lacks its score."""
        runs = [(run.success if what == "success" else run.score).get(split) for run in self.runs(arm, split)]
        known = [list(map(float, values)) for values in runs if values]
        known = known if len(known) == len(runs) else []
        return np.array(known, dtype=np.float64).reshape(len(known), len(self.results.tasks[split]))

    def mean(self, arm: str | None, split: str | None = None, what: What = "success") -> Interval | None:
        """Mean and interval of an arm on a split (default the first), a fraction; the parts of the interval outside 0 and 1 are cut off.

        Where no arm has a second seed, the interval of successes is Wilson's, as that of an evaluation by itself; so it is where all
        tasks end alike, and half of any other interval would be cut off.
        """
        split = split or self.splits[0]
        values = self.values(arm, split, what) if arm else np.zeros((0, 0))
        if not (arm and values.size):
            return None
        found = self._keep(("mean", arm, split, what), lambda: interval(values))
        if what == "success" and ((len(values) == 1 and self.is_run) or not np.ptp(values)):
            low, high = wilson_interval(int(values[0].sum()), values.shape[1])
            return replace(found, low=low, high=high)
        return _within_share(found)

    def scores(self, arms: Sequence[str], split: str | None = None) -> dict[str, Interval | None]:
        """Each arm's mean score on a split (default the first), where any differs from its success; else nothing."""
        scores = {arm: self.mean(arm, split, "score") for arm in arms}
        means = [self.mean(arm, split) for arm in arms]
        graded = any(s and m and abs(s.mean - m.mean) > 1e-9 for s, m in zip(scores.values(), means, strict=True))
        return scores if graded else {}

    def pairs(self, first: str, second: str, split: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Successes `[S, T]` of two arms with the seeds that both have; an arm that trains nothing is the same with every seed.

        S is 0 where they have none in common.
        """
        return _aligned(self.runs(first, split), self.values(first, split), self.runs(second, split), self.values(second, split))

    def _paired(self, statistic: Callable[..., T], first: str, second: str, split: str | None) -> T | None:
        """A statistic of two arms' successes over the seeds that both have, on a split (default the first); None where there are none."""
        split = split or self.splits[0]
        a, b = self.pairs(first, second, split)
        return self._keep((statistic.__name__, first, second, split), lambda: statistic(a, b)) if a.size else None

    def difference(self, first: str, second: str, split: str | None = None) -> Interval | None:
        """Mean of `first` less that of `second` over the seeds that both have, a fraction; None where there are none."""
        return self._paired(difference, first, second, split)

    def p(self, first: str, second: str, split: str | None = None) -> float | None:
        """Paired permutation p of two arms' successes over the seeds that both have, not corrected; None where there are none."""
        return self._paired(permutation_p, first, second, split)

    def training_p(self, first: str, second: str, split: str | None = None) -> float | None:
        """p of two arms' successes for other seeds and tasks, not corrected; None where they have not two seeds in common,
        or only one task."""
        return self._paired(training_p, first, second, split)

    def sampled(self, arm: str, evaluation: str, split: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Successes of a further evaluation, `[S, T, attempts]`, and those of the first one on the same tasks, `[S, T]`; S is 0 where no
        run has it.
        """
        [sampling] = [sampling for sampling in self.results.evaluations if sampling.name == evaluation]
        runs = self._sampled_runs(arm, evaluation, split)
        T = min(sampling.splits.get(split, 0), len(self.results.tasks[split]))
        many = np.array([list(run.sampled[evaluation].success[split]) for run in runs], dtype=np.float64)
        greedy = np.array([list(run.success[split][:T]) for run in runs], dtype=np.float64)
        return many.reshape(len(runs), T, sampling.attempts), greedy.reshape(len(runs), T)

    def _sampled_runs(self, arm: str, evaluation: str, split: str) -> list[Run]:
        return [run for run in self.runs(arm, split) if evaluation in run.sampled and split in run.sampled[evaluation].success]

    def sampled_mean(self, arm: str, evaluation: str, split: str | None = None, *, any_attempt: bool = False) -> Interval | None:
        """Mean success of a further evaluation over attempts, or of any of a task's (pass@k); None where no run has it.

        The parts of the interval outside 0 and 1 are cut off.
        """
        many, _ = self.sampled(arm, evaluation, split or self.splits[0])
        return _within_share(interval(many.max(2) if any_attempt else many.mean(2))) if many.size else None

    def sampled_difference(self, first: str, second: str, evaluation: str, split: str | None = None) -> Interval | None:
        """Mean of `first` less that of `second` in a further evaluation, over the seeds that both have; None where there are none."""
        split = split or self.splits[0]
        runs = [self._sampled_runs(arm, evaluation, split) for arm in (first, second)]
        means = [self.sampled(arm, evaluation, split)[0].mean(2) for arm in (first, second)]
        a, b = _aligned(runs[0], means[0], runs[1], means[1])
        return difference(a, b) if a.size else None

    def held_out_runs(self, arm: str) -> list[Run]:
        """The arm's runs whose loss on held-out demonstrations is known, in the order of their seeds."""
        return [run for run in self.runs(arm) if run.held_out]

    def held_out_losses(self, arm: str) -> NDArray[np.float64]:
        """Their losses, `[S, 1]`."""
        losses = [run.held_out.loss for run in self.held_out_runs(arm) if run.held_out]
        return np.array(losses, dtype=np.float64).reshape(-1, 1)

    def held_out_loss(self, arm: str) -> Interval | None:
        """Mean held-out loss of an arm, in nats, with the interval for other training seeds and these demonstrations; None where no run
        has one. Of one seed the interval has no width, and says nothing.
        """
        losses = self.held_out_losses(arm)
        return interval(losses) if losses.size else None

    def held_out_difference(self, first: str, second: str) -> Interval | None:
        """Mean held-out loss of `first` less that of `second` over the seeds that both have; None where there are none."""
        runs, losses = zip(*((self.held_out_runs(arm), self.held_out_losses(arm)) for arm in (first, second)), strict=True)
        a, b = _aligned(runs[0], losses[0], runs[1], losses[1])
        return difference(a, b) if a.size else None

    def costs(self, arm: str | None) -> list[Cost]:
        """Cost of each run of an arm; none for an arm without stages (the base)."""
        return [run_cost(run, self.results.stages) for run in self.runs(arm) if run.stages]

    def speedup(self, arm: str, measure: Measure = "wall_seconds") -> Speedup | None:
        """Speed-up of an arm over full RL; None also of times that cannot be compared."""
        if measure != "flops" and not self.times_compare(arm):
            return None
        return speedup(self.costs(arm), self.costs(self.results.full_rl_arm), measure)

    def times_compare(self, arm: str) -> bool:
        """Whether an arm's stages and full RL's all ran on one kind of machine."""
        if not self.results.machines:
            return True
        runs = [*self.runs(arm), *self.runs(self.results.full_rl_arm)]
        places = {self.results.stages[name].machine for run in runs for name in run.stages}
        machines = [self.results.machines[place] for place in places]
        return all(a.compares(b) for a in machines for b in machines)

    def detectable(self, comparisons: int | None = None) -> float | None:
        """Smallest difference on the main split, a fraction, that 80 % of such experiments would find: over Table 1 and the references.

        By the interval of one comparison by itself; or as one of a family of so many `comparisons`, be it the only one, corrected by
        Holm's first step, by the p for any trainings. None where no two arms have two seeds in common, or there is one task: one says
        nothing of others.
        """
        arms, split = self.of_group(MAIN_GROUP), self.splits[0]
        known = [
            (found, self.pairs(arm, other, split)[0].shape)
            for other in self.results.reference_arms
            for arm in arms
            if arm not in (other, self.results.base_arm) and (found := self.difference(arm, other))
        ]
        found = [each if comparisons is None else at_most(each, S - 1) for each, (S, T) in known if S > 1 and T > 1]
        return detectable_difference(found, 0.05 / (comparisons or 1)) if found else None

    def detectable_between(self, first: str, second: str, comparisons: int = 1) -> float | None:
        """The same of two arms by the spread of their own difference, as one of so many `comparisons`, by the p for any trainings."""
        found, (S, T) = self.difference(first, second), self.pairs(first, second, self.splits[0])[0].shape
        return detectable_difference([at_most(found, S - 1)], 0.05 / comparisons) if found and S > 1 and T > 1 else None

    def tested(self, claims: Sequence[Claim]) -> list[Tested]:
        """Each claim's test, in the order given; the claims of a family are corrected together."""
        sizes, of_models, of_trainings = families(claims), dict[int, float](), dict[int, float]()
        for family in sizes:
            own = {i: claim for i, claim in enumerate(claims) if claim.family == family}
            of_models |= corrected({i: self.p(claim.better, claim.worse) for i, claim in own.items()})
            of_trainings |= corrected({i: self.training_p(claim.better, claim.worse) for i, claim in own.items()})
        return [
            Tested(
                self.difference(claim.better, claim.worse),
                of_models.get(i),
                of_trainings.get(i),
                len(self.pairs(claim.better, claim.worse, self.splits[0])[0]),
                sizes[claim.family],
                self.detectable_between(claim.better, claim.worse, sizes[claim.family]),
                bool(self.runs(claim.better) and self.runs(claim.worse)),
            )
            for i, claim in enumerate(claims)
        ]


def families(claims: Sequence[Claim]) -> dict[str, int]:
    """The number of claims in each family, over which p values are corrected."""
    names = [claim.family for claim in claims]
    return {name: names.count(name) for name in dict.fromkeys(names)}


def _within_share(found: Interval) -> Interval:
    """The interval of a fraction, without what lies outside 0 and 1."""
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def _aligned(
    runs_a: Sequence[Run], a: NDArray[np.float64], runs_b: Sequence[Run], b: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values `[S, T]` of two arms' runs with the seeds that both have; an arm that trains nothing is the same with every seed."""
    if not a.size or not b.size:
        return a[:0], b[:0]
    if not any(run.stages for run in runs_a):
        return np.repeat(a[:1], len(b), 0), b
    if not any(run.stages for run in runs_b):
        return a, np.repeat(b[:1], len(a), 0)
    seeds_a, seeds_b = [run.seed for run in runs_a], [run.seed for run in runs_b]
    both = [seed for seed in seeds_a if seed in seeds_b]
    return a[[seeds_a.index(seed) for seed in both]], b[[seeds_b.index(seed) for seed in both]]
