"""An experiment's `results.json`, checked, and the statistics of its arms that tables and figures show."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gradprism.experiments.costs import Cost, Speedup, run_cost, speedup
from gradprism.experiments.statistics import (
    Interval,
    at_most,
    detectable_difference,
    difference,
    interval,
    permutation_p,
    training_p,
)
from gradprism.reporting.tables import printable
from gradprism.runtime.errors import DataError, MissingFileError
from gradprism.runtime.files import read_json

MAIN_GROUP = "table1"

Count = Annotated[float, Field(ge=0)]


class _Part(BaseModel):
    """A part of `results.json`; what the tables do not read is not checked."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Task(_Part):
    id: str
    task_type: str | None = None


class _Regime(_Part):
    base_low: float = 0.05
    base_high: float = 0.20
    ceiling: float = 0.95


class _Claim(_Part):
    text: str
    better: str
    worse: str


class _Sweep(_Part):
    title: str
    arms: dict[str, str]


class _Point(_Part):
    stage: str
    fraction: Annotated[float, Field(ge=0, le=1)]
    success: float
    tasks: int | None = None


class _Run(_Part):
    seed: int
    success: dict[str, Annotated[str, Field(pattern=r"^[01]*$")]] = {}
    score: dict[str, list[float]] = {}
    n_sft: int | None = None
    n_rl: int | None = None
    n_rl_by_chance: int | None = None
    stages: list[str] = []
    evaluation: str | None = None
    forward_only: list[str] = []
    curve: list[_Point] = []


class _Arm(_Part):
    name: str
    title: str
    group: str
    seeds: list[int] = []
    runs: list[_Run] = []


class _Stage(_Part):
    kind: str
    wall_seconds: Count
    cpu_seconds: Count = 0
    gpu_seconds: Count = 0
    peak_memory_mib: Count | None = None
    peak_gpu_memory_mib: Count = 0
    tokens_forward: Count = 0
    tokens_backward: Count = 0
    tokens_generated: Count = 0
    environment_steps: Count = 0
    flops: Count = 0
    evaluation_seconds: Count = 0
    machine: Annotated[int, Field(ge=0)] = 0


class _Results(_Part):
    name: str
    environment: str
    tasks: dict[str, list[_Task]] = Field(min_length=1)
    arms: list[_Arm]
    stages: dict[str, _Stage]
    splits: list[str] = []
    seeds: list[int] = []
    created: str | None = None
    machines: list[dict[str, Any]] = []
    model: dict[str, Any] = {}
    corpus: dict[str, Any] = {}
    reference_arms: list[str] = []
    full_rl_arm: str | None = None
    base_arm: str | None = None
    sft_arm: str | None = None
    regime: _Regime = _Regime()
    claims: list[_Claim] = []
    sweeps: list[_Sweep] = []
    audits: dict[str, Any] = {}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"two arms have the same name: {sorted({n for n in names if names.count(n) > 1})}")
        if self.splits and sorted(self.splits) != sorted(self.tasks):
            raise ValueError(f"splits are {', '.join(self.splits)}, but there are tasks of {', '.join(self.tasks)}")
        for name, stage in self.stages.items():
            if stage.machine >= max(1, len(self.machines)):  # without any, all are of one that is not known
                raise ValueError(f"the machine of stage {name!r} is not among the machines")
        for arm in self.arms:
            for run in arm.runs:
                where = f"arm {arm.name!r}, seed {run.seed}"
                for split, values in [*run.success.items(), *run.score.items()]:
                    if split not in self.tasks or len(values) != len(self.tasks[split]):
                        raise ValueError(f"{where}: {split!r} has {len(values)} results, tasks {len(self.tasks.get(split, []))}")
                for stage in run.stages:
                    if stage not in self.stages:
                        raise ValueError(f"{where}: stage {stage!r} is not among the stages")
                if run.evaluation is not None and run.evaluation not in self.stages:
                    raise ValueError(f"{where}: evaluation {run.evaluation!r} is not among the stages")
            seeds = [run.seed for run in arm.runs]
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"arm {arm.name!r} has two runs of one seed")
        return self


class Experiment:
    """The content of a `results.json`, checked, with the statistics of its arms; arms and seeds may be missing while it runs.

    Raises `DataError` naming `source` and the key that is wrong.
    """

    def __init__(self, results: Any, source: str = "results.json") -> None:
        try:
            checked = _Results.model_validate(results)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "the whole file"
            message = printable(first["msg"].removeprefix("Value error, "))
            raise DataError(f"{source}: {printable(key)}: {message}; correct it, or run `gradprism experiment` again") from None
        self.results: dict[str, Any] = checked.model_dump()
        self.arms: dict[str, dict[str, Any]] = {arm["name"]: arm for arm in self.results["arms"]}
        self.stages: dict[str, dict[str, Any]] = self.results["stages"]
        self.splits: list[str] = self.results["splits"] or list(self.results["tasks"])
        self._kept: dict[tuple[Any, ...], Any] = {}

    def _keep(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What `make` gives, made once: ten thousand draws are not free, and the same figure stands in several tables."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def of_group(self, group: str) -> list[str]:
        """Names of the arms of a group, in order."""
        return [name for name, arm in self.arms.items() if arm["group"] == group]

    def title(self, arm: str) -> str:
        """What tables call an arm."""
        return self.arms[arm]["title"] if arm in self.arms else arm

    def runs(self, arm: str, split: str | None = None) -> list[dict[str, Any]]:
        """The arm's runs that have been evaluated on a split (default the first), in the order of their seeds; none where it is absent."""
        split = split or self.splits[0]
        runs = self.arms[arm]["runs"] if arm in self.arms else []
        return sorted((run for run in runs if run["success"].get(split)), key=lambda run: run["seed"])

    def values(self, arm: str, split: str, what: str = "success") -> NDArray[np.float64]:
        """Success (0 or 1) or score of every run and task, `[S, T]`; S is 0 where nothing is there, or a run lacks its score."""
        runs = [run[what].get(split) for run in self.runs(arm, split)]
        known = [list(map(float, values)) for values in runs if values]
        return np.array(known if len(known) == len(runs) else [], dtype=np.float64).reshape(-1, len(self.results["tasks"][split]))

    def mean(self, arm: str, split: str | None = None, what: str = "success") -> Interval | None:
        """Mean and interval of an arm on a split (default the first), a fraction; what lies outside 0 and 1 is cut off the interval."""
        values = self.values(arm, split or self.splits[0], what)
        if not values.size:
            return None
        found: Interval = self._keep(("mean", arm, split or self.splits[0], what), lambda: interval(values))
        return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))

    def scores(self, arms: Sequence[str], split: str | None = None) -> dict[str, Interval | None]:
        """Each arm's mean score on a split (default the first), where any differs from its success; else nothing."""
        scores = {arm: self.mean(arm, split, "score") for arm in arms}
        means = [self.mean(arm, split) for arm in arms]
        graded = any(s and m and abs(s.mean - m.mean) > 1e-9 for s, m in zip(scores.values(), means, strict=True))
        return scores if graded else {}

    def pairs(self, first: str, second: str, split: str, what: str = "success") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Values `[S, T]` of two arms with the seeds that both have; an arm that trains nothing is the same with every seed.

        S is 0 where they have none in common.
        """
        a, b = self.values(first, split, what), self.values(second, split, what)
        runs_a, runs_b = self.runs(first, split), self.runs(second, split)
        seeds_a, seeds_b = [run["seed"] for run in runs_a], [run["seed"] for run in runs_b]
        if not a.size or not b.size:
            return a[:0], b[:0]
        if not any(run["stages"] for run in runs_a):
            return np.repeat(a[:1], len(b), 0), b
        if not any(run["stages"] for run in runs_b):
            return a, np.repeat(b[:1], len(a), 0)
        both = [seed for seed in seeds_a if seed in seeds_b]
        return a[[seeds_a.index(seed) for seed in both]], b[[seeds_b.index(seed) for seed in both]]

    def difference(self, first: str, second: str, split: str | None = None, what: str = "success") -> Interval | None:
        """Mean of `first` less that of `second` over the seeds that both have, a fraction; None where there are none."""
        split = split or self.splits[0]
        a, b = self.pairs(first, second, split, what)
        return self._keep(("difference", first, second, split, what), lambda: difference(a, b)) if a.size else None

    def p(self, first: str, second: str, split: str | None = None) -> float | None:
        """Paired permutation p of two arms' successes over the seeds that both have, not corrected; None where there are none."""
        split = split or self.splits[0]
        a, b = self.pairs(first, second, split)
        return self._keep(("p", first, second, split), lambda: permutation_p(a, b)) if a.size else None

    def training_p(self, first: str, second: str, split: str | None = None) -> float | None:
        """p of two arms' successes for other seeds and tasks, not corrected; None where they have not two seeds in common."""
        split = split or self.splits[0]
        a, b = self.pairs(first, second, split)
        return self._keep(("training_p", first, second, split), lambda: training_p(a, b)) if a.size else None

    def costs(self, arm: str) -> list[Cost]:
        """What each run of an arm cost; none for an arm without stages (the base)."""
        return [run_cost(run, self.stages) for run in self.runs(arm) if run["stages"]]

    def speedup(self, arm: str, what: str = "wall_seconds") -> Speedup | None:
        """Speed-up of an arm over full RL; None also of times that cannot be compared."""
        if what != "flops" and not self.times_compare(arm):
            return None
        return speedup(self.costs(arm), self.costs(self.results["full_rl_arm"] or ""), what)

    def times_compare(self, arm: str) -> bool:
        """Whether an arm's stages and full RL's all ran on one kind of machine; versions of libraries may differ."""
        runs = [*self.runs(arm), *self.runs(self.results["full_rl_arm"] or "")]
        places = {self.stages[name]["machine"] for run in runs for name in run["stages"]}
        machines = [self.results["machines"][place] for place in places] if self.results["machines"] else []
        hosts = {tuple(machine.get(key) for key in ("cpu", "cores", "threads")) for machine in machines}
        # A stage that has no use for a GPU does not say which there is.
        return len(hosts) <= 1 and len({machine["gpu"] for machine in machines if "gpu" in machine}) <= 1

    def detectable(self, comparisons: int = 1) -> float | None:
        """Smallest difference on the main split, a fraction, that 80 % of such experiments would find: over Table 1 and the references.

        By the interval of one comparison by itself; or as one of several `comparisons`, corrected by Holm's first step, by the p for any
        trainings. None where no two arms have two seeds in common: one says nothing of other trainings.
        """
        references, arms, split = self.results["reference_arms"], self.of_group(MAIN_GROUP), self.splits[0]
        known = [
            (found, len(self.pairs(arm, other, split)[0]))
            for other in references
            for arm in arms
            if arm not in (other, self.results["base_arm"]) and (found := self.difference(arm, other))
        ]
        found = [each if comparisons == 1 else at_most(each, S - 1) for each, S in known if S > 1]
        return detectable_difference(found, 0.05 / comparisons) if found else None


def read_experiment(folder: Path) -> Experiment:
    """Reads and checks `folder`/results.json; raises `MissingFileError`, or `DataError` with the file and the key that is wrong."""
    path = Path(folder) / "results.json"
    if not path.is_file():
        what = "holds no results.json" if Path(folder).is_dir() else "no such folder"
        raise MissingFileError(f"{folder}: {what}; name a folder that `gradprism experiment` has written")
    return Experiment(read_json(path), str(path))
