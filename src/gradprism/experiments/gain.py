"""What SFT and RL gain on groups of similar trajectories, each trained on by itself from the base, and which scores predict it."""

from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from gradprism.experiments.config import CollectConfig, ExperimentConfig
from gradprism.experiments.folders import CONFIG, GAIN, LOCK, check_holds_gain
from gradprism.experiments.gain_stages import Grouped, Groups, Measure, MeasureRl, MeasureSft, Outcomes, PassScores
from gradprism.experiments.plan import Plan
from gradprism.experiments.results import Machine, Part
from gradprism.experiments.schedule import Status, run_stages, status
from gradprism.experiments.stage import AnyStage, Store
from gradprism.experiments.stages import Collect
from gradprism.routing.agreement import correlation_ratio
from gradprism.runtime.errors import ConfigError, DataError, one_line
from gradprism.runtime.files import read_json, write_json
from gradprism.runtime.folders import exclusive_lock

METHODS = ("sft", "rl")
OUTCOMES = ("loss", "success", "score")  # of a loss less is gain


class Price(Part):
    """What the trainings or measurements of a kind took."""

    stages: int
    wall_seconds: float
    cpu_seconds: float


class Gain(Part):
    """The measured gains `[seeds][groups]` by method and outcome, groups' mean scores, and what they were measured with.

    A gain is the trained model's outcome less the base's on the same tasks, of a loss the base's less the trained model's. `spread` is η²,
    the share of each score's variance that lies between groups. Only groups that were measured by both methods with all seeds are here.
    """

    name: str
    created: str
    environment: str
    model: str
    parameters: int
    trajectories: int
    planned_groups: int
    sizes: list[int]
    seeds: list[int]
    tasks_per_seed: int
    temperature: float
    demonstrations: int
    base: dict[str, list[float]]
    gains: dict[str, dict[str, list[list[float]]]]
    scores: dict[str, list[float | None]]
    spread: dict[str, float | None]
    prices: dict[str, Price]
    machine: Machine = Field(default=Machine())

    def of(self, method: str, outcome: str) -> NDArray[np.float64]:
        """Gains `[S, G]` of a method, or of `difference`: RL's less SFT's."""
        if method == "difference":
            return self.of("rl", outcome) - self.of("sft", outcome)
        return np.array(self.gains[method][outcome])


@dataclass(frozen=True)
class GainPlan:
    """The stages: the groups, the scores of the pass that are asked for, the base's outcomes by seed, and those after each method by
    (method, seed, group)."""

    config: ExperimentConfig
    groups: Groups
    more: PassScores | None
    base: dict[int, Measure]
    trained: dict[tuple[str, int, int], MeasureSft | MeasureRl]

    @classmethod
    def of(cls, config: ExperimentConfig) -> "GainPlan":
        """Plans them, a seed at a time, so that a run that is cut short has whole seeds; raises `ConfigError` for what cannot work."""
        plan, seeds = Plan(config), config.all_seeds
        if len(config.evaluation.splits) != 1:
            raise ConfigError("evaluation.splits: name the one split on which gain is measured, with its number of tasks per seed")
        [(split, n)] = config.evaluation.splits.items()
        steps = (config.corpus.collect or config.evaluation).max_steps
        demonstrations = Collect(plan.world, CollectConfig(count=config.gain.demonstrations, split=split, max_steps=steps))
        groups = Groups(replace(plan.probe, scores=()), plan.pass_rates(config.seed), config.gain.groups)
        target = replace(plan.probe, corpus=demonstrations, scores=("sketch",)) if "sketch" in plan.probe.scores else None
        more = PassScores(plan.probe, target) if plan.probe.scores else None
        base, trained = {}, {}
        for place, seed in enumerate(seeds):
            # Other tasks and other draws for each seed, the same for all models: what seeds agree on is the group's own.
            own = {"start": config.evaluation.start + place * n, "seed": seed}
            first = Measure(plan.base, plan.world, plan.evaluation.model_copy(update=own), demonstrations)
            base[seed] = first
            sft = config.sft.model_copy(update={"seed": seed})
            rl = plan.rl_config.model_copy(update={"seed": seed})
            given = (first.base, first.world, first.evaluation, first.demonstrations, groups)
            for group in range(config.gain.groups):
                trained["sft", seed, group] = MeasureSft(*given, group, sft)
                trained["rl", seed, group] = MeasureRl(*given, group, rl)
        return cls(config, groups, more, base, trained)

    @property
    def stages(self) -> list[AnyStage]:
        """All of them, in order."""
        return [self.groups, *([self.more] if self.more else []), *self.base.values(), *self.trained.values()]

    @property
    def labels(self) -> dict[str, str]:
        """What a person is told of each."""
        of_base = {stage.name: f"base/{seed}" for seed, stage in self.base.items()}
        of_base |= {self.more.name: "scores of the pass"} if self.more else {}
        return of_base | {stage.name: f"{method}/{seed} on group {group}" for (method, seed, group), stage in self.trained.items()}


def measure_gain(config: ExperimentConfig, out: Path, jobs: int | None = None) -> Gain | None:
    """Runs what is not done, and writes `gain.json` and `config.json` into `out`; None before 5 groups are measured.

    Raises `FolderInUseError` for a folder that holds something else, and where another command runs the same.
    """
    check_holds_gain(out)
    plan, store = GainPlan.of(config), Store(config.folder)
    with exclusive_lock(store.folder, LOCK, "the experiment is being run"):
        try:
            run_stages(store, plan.stages, plan.labels, jobs, config.threads)
        finally:
            found = gather_gain(plan, store)
            if found:
                write_json(out / GAIN, found.model_dump(mode="json"), sort_keys=False)
                write_json(out / CONFIG, config.portable(out), sort_keys=False)
    return found


def gain_status(config: ExperimentConfig, jobs: int) -> Status:
    """The stages that are done, running and pending."""
    plan = GainPlan.of(config)
    return status(Store(config.folder), plan.stages, plan.labels, jobs)


def gather_gain(plan: GainPlan, store: Store) -> Gain | None:
    """What is measured so far: the groups that every seed and method has, of the seeds that have any; None for fewer than 5 groups."""
    if not store.is_done(plan.groups):
        return None
    done = {key: store.found(stage) for key, stage in plan.trained.items() if store.is_done(stage)}
    both = defaultdict(set)
    for _, seed, group in done:
        if {(each, seed, group) for each in METHODS} <= done.keys():
            both[seed].add(group)
    seeds = [seed for seed in plan.config.all_seeds if len(both[seed]) >= 5 and store.is_done(plan.base[seed])]
    # A seed that has only begun would throw away groups that the others have.
    whole = max((len(both[seed]) for seed in seeds), default=0)
    seeds = [seed for seed in seeds if len(both[seed]) == whole]
    groups = sorted(set.intersection(*(both[seed] for seed in seeds))) if seeds else []
    if len(groups) < 5:
        return None
    grouped, bases = store.found(plan.groups), [store.found(plan.base[seed]) for seed in seeds]
    rows = [grouped.groups[group] for group in groups]
    gains = {
        method: {
            outcome: [
                [round(_gain(base, done[method, seed, group], outcome), 6) for group in groups]
                for base, seed in zip(bases, seeds, strict=True)
            ]
            for outcome in OUTCOMES
        }
        for method in METHODS
    }
    told = grouped.scores | _more_scores(plan, store, grouped)
    scores = {name: np.array([np.nan if v is None else v for v in values]) for name, values in told.items()}
    config, example = plan.config, plan.base[seeds[0]]
    made = [store.record(stage) for stage in plan.stages if store.is_done(stage)]
    return Gain(
        name=config.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=config.environment.name,
        model=Path(config.model.path).name,
        parameters=grouped.parameters,
        trajectories=len(grouped.ids),
        planned_groups=len(grouped.groups),
        sizes=[len(row) for row in rows],
        seeds=seeds,
        tasks_per_seed=next(iter(example.evaluation.splits.values())) * example.evaluation.attempts,
        temperature=example.evaluation.temperature,
        demonstrations=config.gain.demonstrations,
        base={outcome: [getattr(base, outcome) for base in bases] for outcome in OUTCOMES},
        gains=gains,
        scores={name: [_mean(values[row]) for row in rows] for name, values in scores.items()},
        spread={name: _spread(values, grouped.groups) for name, values in scores.items()},
        prices={
            kind: Price(
                stages=len(of),
                wall_seconds=round(sum(r.cost.wall_seconds for r in of), 1),
                cpu_seconds=round(sum(r.cost.cpu_seconds for r in of), 1),
            )
            for kind in dict.fromkeys(r.kind for r in made)
            if (of := [r for r in made if r.kind == kind])
        },
        machine=made[-1].machine.model_copy(update={"threads": config.threads}),
    )


def _more_scores(plan: GainPlan, store: Store, grouped: Grouped) -> dict[str, list[float | None]]:
    """The scores of the pass of the grouped trajectories, in their order; none before they are taken."""
    if plan.more is None or not store.is_done(plan.more):
        return {}
    found = store.found(plan.more)
    places = {one: place for place, one in enumerate(found.ids)}
    return {name: [values[places[one]] for one in grouped.ids] for name, values in found.scores.items()}


def _gain(base: Outcomes, trained: Outcomes, outcome: str) -> float:
    change = getattr(trained, outcome) - getattr(base, outcome)
    return -change if outcome == "loss" else change


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _spread(values: NDArray[np.float64], groups: list[list[int]]) -> float | None:
    of = np.empty(len(values), dtype=int)
    for number, rows in enumerate(groups):
        of[rows] = number
    known = np.isfinite(values)
    return correlation_ratio(values[known], [str(g) for g in of[known]]) if known.any() else None


def read_gain(folder: Path) -> Gain:
    """The `gain.json` of a results folder; raises `MissingFileError`, or `DataError` with the file."""
    try:
        return Gain.model_validate(read_json(folder / GAIN))
    except ValidationError as error:
        raise DataError(f"{folder / GAIN}: holds no measured gains ({one_line(error)[:200]})") from None
