"""The results of an experiment: one typed schema, and the only module that reads and writes `results.json`.

A run is an experiment of one seed. Every evaluated episode, the cost of every stage and the audits are in it, so that all tables and
figures can be made from this file alone; arms and seeds may be missing while an experiment runs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gradprism.runtime.errors import DataError, MissingFileError
from gradprism.runtime.files import read_json, write_json
from gradprism.runtime.progress import printable
from gradprism.runtime.settings import wrong_value

RESULTS = "results.json"

# Bounds far above anything that is measured, so that sums and squares of what a file tells are finite.
Seconds = Annotated[float, Field(ge=0, le=1e10)]
Count = Annotated[float, Field(ge=0, le=1e18)]
Flops = Annotated[float, Field(ge=0, le=1e30)]
Parameters = Annotated[int, Field(ge=0, le=10**18)]
Share = Annotated[float, Field(ge=0, le=1)]
Outcomes = Annotated[str, Field(pattern=r"^[01]*$")]  # one character per task


class Part(BaseModel):
    """A part of the results: values of exactly these types, and nothing besides."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Cost(Part):
    """Costs of a stage or of several: those of `Usage`, seconds of a GPU, floating-point operations (an estimate), peaks in MiB."""

    wall_seconds: Seconds = 0
    cpu_seconds: Seconds = 0
    gpu_seconds: Seconds = 0
    flops: Flops = 0
    tokens_forward: Count = 0
    tokens_backward: Count = 0
    tokens_generated: Count = 0
    environment_steps: Count = 0
    peak_memory_mib: Count = 0
    peak_gpu_memory_mib: Count = 0


class TrainingStep(Part):
    """One line of a training's log: the loss of SFT, or success while sampling of RL."""

    step: int
    loss: float | None = None
    success: float | None = None


class Stage(Cost):
    """A stage that was run; `machine` is its place among the machines. Its times hold the evaluations that it stopped for. `warnings` are
    a training's.
    """

    kind: str
    machine: Annotated[int, Field(ge=0)] = 0
    evaluation_seconds: Seconds = 0
    history: list[TrainingStep] = []
    warnings: list[str] = []

    @model_validator(mode="after")
    def _holds_its_evaluations(self) -> Self:
        if self.evaluation_seconds > self.wall_seconds:
            raise ValueError(
                f"evaluation_seconds is {self.evaluation_seconds:g}, more than its wall_seconds, {self.wall_seconds:g}"
            )
        return self


class Machine(Part):
    """The machine of a measurement; `threads` are torch's, a GPU is named where the stage used one."""

    cpu: str | None = None
    cores: int | None = None
    memory_gib: int | None = None
    python: str | None = None
    threads: int | None = None
    gpu: str | None = None
    versions: dict[str, str] = {}

    def compares(self, other: "Machine") -> bool:
        """Whether wall clocks of both may be compared; versions of libraries may differ, and a stage without a GPU names none."""
        same = (self.cpu, self.cores, self.threads) == (other.cpu, other.cores, other.threads)
        return same and (self.gpu == other.gpu or None in (self.gpu, other.gpu))


class Model(Part):
    """The base model; `matmul` are the parameters that every token is multiplied by."""

    id: str
    parameters: Parameters | None = None
    matmul: Parameters = 0


class Task(Part):
    """A task of the evaluation."""

    id: str
    task_type: str | None = None


class Point(Part):
    """Success on the first `tasks` of the curves' split when `fraction` of the training by `stage` was done.

    Stage `kept`: of the weights that RL ended with, where those are the best evaluation's and not the last ones.
    """

    stage: str
    fraction: Share
    success: float
    tasks: int | None = None


class Ends(Part):
    """Episodes of an evaluation that were cut short: by the limit of steps, by the context, by a failure of the engine."""

    out_of_steps: int
    cut_by_context: int
    failures: int


class Sampled(Part):
    """A further evaluation of a run: by split the successes of every attempt, those of a task side by side, and every task's mean score."""

    stage: str
    success: dict[str, Outcomes]
    score: dict[str, list[float]]


class HeldOut(Part):
    """Mean loss in nats over `tokens` response tokens of `trajectories` that no arm trains on, each token counted alike."""

    stage: str
    loss: Count
    tokens: Annotated[int, Field(ge=1)]
    trajectories: Annotated[int, Field(ge=1)]


class Run(Part):
    """An arm with one seed: success and score of every task by split, what it was trained on, and the stages that made its model.

    Of the stages in `forward_only` it needs the forward pass alone. `ends` by split, as are `parts`: means of the score's named parts.
    `sampled`: further evaluations by their names; `held_out`: its loss on demonstrations. `watched` is the stage of the evaluation with
    which its curve ends, where that is another one.
    """

    seed: int
    success: dict[str, Outcomes] = {}
    score: dict[str, list[float]] = {}
    ends: dict[str, Ends] = {}
    parts: dict[str, dict[str, Share]] = {}
    n_sft: int | None = None
    n_rl: int | None = None
    n_rl_by_chance: int | None = None
    n_none: int | None = None
    n_both: int | None = None
    stages: list[str] = []
    forward_only: list[str] = []
    route: str | None = None
    evaluation: str | None = None
    curve: list[Point] = []
    watched: str | None = None
    sampled: dict[str, Sampled] = {}
    held_out: HeldOut | None = None


class Arm(Part):
    """A way to spend the corpus, with its runs; `seeds` are those that it is to have."""

    name: str
    title: str
    group: str
    seeds: list[int] = []
    runs: list[Run] = []


class Routing(Part):
    """Scores of a route: bins of `width` from `start` on with the trajectories in each to SFT alone, to RL alone and, of a route by
    several `cuts`, to neither and to both; and these numbers by task type."""

    metric: str
    policy: str
    threshold: float
    start: float
    width: float
    sft: list[int]
    rl: list[int]
    none: list[int] = []
    both: list[int] = []
    cuts: list[float] = []
    task_types: dict[str, list[int]] = {}


class HeatMap(Part):
    """Mean gradient norm over the corpus of every matrix, by layer and kind; None where a layer has none of the kind."""

    layers: list[int]
    kinds: list[str]
    mean_norms: list[list[float | None]]

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        if len(self.mean_norms) != len(self.layers) or any(len(row) != len(self.kinds) for row in self.mean_norms):
            raise ValueError("mean_norms is not one row per layer and one value per kind")
        return self


class Agreement(Part):
    """Agreement of two splits: share on the same side, overlap of the RL sides, rank correlation; `rl` is the side of a plain measure."""

    same_side: float | None = None
    jaccard: float | None = None
    spearman: float | None = None
    shared: int | None = None
    rl: str | None = None


class MetricAudit(Part):
    """The audit of the experiment's probe for one metric."""

    spearman: dict[str, float | None] = {}
    eta_squared: float | None = None
    agreement: dict[str, Agreement] = {}
    threshold_standard_error: float | None = None
    share_within_one_standard_error: float | None = None
    stability: dict[str, Agreement] = {}
    warnings: list[str] = []


class Claim(Part):
    """A claim to be checked: arm `better` succeeds more often than arm `worse`. p values are corrected over the claims of its `family`."""

    text: str
    better: str
    worse: str
    family: str = ""


class Sweep(Part):
    """Arms along one axis, by the value on it."""

    title: str
    arms: dict[str, str]


class Regime(Part):
    """Where arms can be told apart, as in the paper: the base is weak but not hopeless, and no arm has reached the ceiling."""

    base_low: float = 0.05
    base_high: float = 0.20
    ceiling: float = 0.95


class Bars(Part):
    """What RL must do before its arms say anything of routing: gains of RL over the base and of RL after SFT over SFT, and the most that
    it may have fallen from its best evaluation when it ends; fractions."""

    rl_gain: float = 0.20
    sft_then_rl_gain: float = 0.08
    collapse: float = 0.03


class Power(Part):
    """What is assumed of arms before they are run, to say which difference they can detect: the standard deviation of an arm's success
    over training seeds, that over tasks of the difference of two arms, and the success around which they lie; fractions."""

    seed_sd: Share = 0.04
    task_sd: Share = 0.20
    success: Share = 0.50


class Sampling(Part):
    """A further evaluation: how it was sampled, and the number of tasks of each split, the first of those of `tasks`."""

    name: str
    temperature: float
    attempts: int = 1
    splits: dict[str, int]


class Design(BaseModel):
    """The question of an experiment: its arms by their parts, the claims and sweeps, and where it can show anything.

    `base_arm` trains nothing, `sft_arm` is SFT on everything, `full_rl_arm` RL on everything, to which costs are compared,
    `sft_then_rl_arm` both on everything; every other arm is tested against the `reference_arms`.
    """

    name: str = Field(description="Name; the run folder is `runs/<name>` unless `out` says otherwise.")
    base_arm: str = Field(default="base", description="Arm that trains nothing.")
    sft_arm: str = Field(default="sft", description="Arm of SFT on everything.")
    full_rl_arm: str | None = Field(default=None, description="Arm of RL on everything, to which costs are compared.")
    sft_then_rl_arm: str | None = Field(default=None, description="Arm of SFT on everything, then RL on everything.")
    reference_arms: list[str] = Field(default=["base"], description="Arms that every other is tested against.")
    claims: list[Claim] = Field(default=[], description="Claims to check.")
    sweeps: list[Sweep] = Field(default=[], description="Arms along an axis.")
    regime: Regime = Regime()
    bars: Bars = Bars()
    power: Power | None = Field(default=None, description="What is assumed beforehand, for the difference that can be detected.")


class Results(Design, Part):
    """The content of a `results.json`. The first split of `tasks` is the main one."""

    environment: str
    created: str | None = None
    model: Model | None = None
    trajectories: int | None = None
    machines: list[Machine] = []
    seeds: list[int] = []
    arms: list[Arm]
    audits: dict[str, MetricAudit] = {}
    heat_map: HeatMap | None = None
    routes: dict[str, Routing] = {}
    stages: dict[str, Stage]
    tasks: dict[str, list[Task]] = Field(min_length=1)
    evaluations: list[Sampling] = []
    curve_split: str | None = None  # of the curves, where it is not the main one
    remarks: list[str] = []  # the environment's about these tasks

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if error := next(self._contradictions(), None):
            raise ValueError(error)
        return self

    def _contradictions(self) -> Iterator[str]:
        names = [arm.name for arm in self.arms]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            yield f"two arms have the same name: {twice}"
        for name, stage in self.stages.items():
            if stage.machine >= max(1, len(self.machines)):  # without any, all are of one that is not known
                yield f"the machine of stage {name!r} is not among the machines"
        for arm in self.arms:
            seeds = [run.seed for run in arm.runs]
            if len(set(seeds)) < len(seeds):
                yield f"arm {arm.name!r} has two runs of one seed"
            for run in arm.runs:
                where = f"arm {arm.name!r}, seed {run.seed}"
                for split, values in [*run.success.items(), *run.score.items()]:
                    if split not in self.tasks or len(values) != len(self.tasks[split]):
                        yield f"{where}: {split!r} has {len(values)} results, tasks {len(self.tasks.get(split, []))}"
                yield from self._of_sampled(run, where)
                beside = [*run.sampled.values(), *([run.held_out] if run.held_out else [])]
                for stage in filter(None, [*run.stages, run.evaluation, run.watched, *(each.stage for each in beside)]):
                    if stage not in self.stages:
                        yield f"{where}: stage {stage!r} is not among the stages"
        if len({(of.tokens, of.trajectories) for arm in self.arms for run in arm.runs if (of := run.held_out)}) > 1:
            yield "held-out losses are of other demonstrations from run to run"

    def _of_sampled(self, run: Run, where: str) -> Iterator[str]:
        known = {sampling.name: sampling for sampling in self.evaluations}
        for name, sampled in run.sampled.items():
            if name not in known:
                yield f"{where}: evaluation {name!r} is not among the evaluations"
                continue
            for split, values in sampled.success.items():
                n = min(known[name].splits.get(split, 0), len(self.tasks.get(split, [])))
                found = (len(values), len(sampled.score.get(split, [])))
                if found != (n * known[name].attempts, n):
                    yield f"{where}: {name} of {split!r} has {found[0]} results and {found[1]} scores of {n} tasks"


def read_results(folder: Path) -> Results:
    """Reads and checks `folder`/results.json; raises `MissingFileError`, or `DataError` with the file and the key that is wrong."""
    path = Path(folder) / RESULTS
    if not path.is_file():
        what = f"holds no {RESULTS}" if Path(folder).is_dir() else "no such folder"
        raise MissingFileError(f"{folder}: {what}; name a folder that `gradprism run` or `gradprism experiment` has written")
    return check_results(read_json(path), str(path))


def shown_results(folder: Path) -> Results:
    """`read_results` with all names and texts fit to be shown: each is one line of letters, which steers no terminal."""
    return check_results(_shown(read_results(folder).model_dump(mode="json")), str(Path(folder) / RESULTS))


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {printable(key): _shown(part) for key, part in value.items()}
    return [_shown(part) for part in value] if isinstance(value, list) else printable(value) if isinstance(value, str) else value


def check_results(content: Any, source: str = RESULTS) -> Results:
    """The results that a JSON document holds; raises `DataError` naming `source` and the key that is wrong."""
    try:
        return Results.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{source}: {wrong_value(error)}; correct it, or run the experiment again") from None


def write_results(folder: Path, results: Results) -> None:
    """Writes `folder`/results.json, in the order of the schema and without what is at its default."""
    write_json(Path(folder) / RESULTS, results.model_dump(mode="json", exclude_defaults=True), sort_keys=False)


def has_results(folder: Path) -> bool:
    """Whether a folder holds results."""
    return (Path(folder) / RESULTS).is_file()
