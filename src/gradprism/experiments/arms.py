"""Arms x seeds as one graph of stages; what two arms have in common is one stage and runs once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from gradprism.experiments import steps
from gradprism.experiments.config import RefreshConfig, RouteConfig, RunConfig, Section
from gradprism.experiments.reads import Reads
from gradprism.experiments.stages import Stage, StageGraph, Step, stage_key
from gradprism.runtime.errors import ConfigError
from gradprism.training.rl_config import RlConfig

# Policies whose routes differ from seed to seed; all others route alike for every training seed.
SEEDED = frozenset({"random", "soft", "pass_rate"})
# Policies that look at no gradient: whoever routes so pays for no probe, though here the probe lists the corpus for them too.
WITHOUT_PROBE = frozenset({"random", "length", "pass_rate"})
# Policies that need a probe's losses alone, and so no backward pass: their arms are charged for a forward pass.
FORWARD_ONLY = frozenset({"loss", "uncertainty"})
# What stages import, for some seconds, by kind; all that are not named here load a model.
IMPORTS = {"collect": (), "route": (), "sft": ("gradprism.training.sft_trainer",), "rl": ("gradprism.training.episode_trainer",)}
LOADS_A_MODEL = ("transformers.modeling_utils",)
Data = Literal["none", "routed", "all"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class ArmConfig(Section):
    """One way to spend the corpus: what SFT learns, what RL plays, and how the two are parted."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="Name, in lower case.")
    title: str = Field(default="", description="What tables call it; default the name.")
    group: str = Field(default="table1", description="Table that it belongs to.")
    sft: Data = Field(default="routed", description="What SFT learns: nothing, its part of the route, or everything.")
    rl: Data = Field(default="routed", description="Whose tasks RL plays; its steps are that share of `rl.rounds`.")
    route: RouteConfig = Field(default=RouteConfig(), description="The route.")
    refresh: RefreshConfig = Field(default=RefreshConfig(), description="Routing again while the model changes.")
    algorithm: Literal["grpo", "gigpo"] | None = Field(default=None, description="RL's, where it is not `rl.algorithm`.")
    max_seeds: int | None = Field(default=None, ge=1, description="Only so many of the experiment's seeds, the first.")

    @property
    def is_routed(self) -> bool:
        """Whether it needs a route."""
        return "routed" in (self.sft, self.rl)


class ClaimConfig(Section):
    """A claim to be checked: arm `better` succeeds more often than arm `worse`."""

    text: str
    better: str
    worse: str


class SweepConfig(Section):
    """Arms along one axis, by the value on it."""

    title: str
    arms: dict[str, str]


class RegimeConfig(Section):
    """Where arms can be told apart: the base is weak but not hopeless, and none has learnt everything."""

    base_low: float = 0.05
    base_high: float = 0.20
    ceiling: float = 0.95


class AuditConfig(Section):
    """Probes beside the experiment's own, to see what routes depend on."""

    dtypes: list[Literal["float32", "bfloat16"]] = Field(default=[], description="Types of the weights.")
    context_lengths: list[Annotated[int, Field(ge=8)]] = Field(default=[], description="Lengths that trajectories are cut to.")
    checkpoints: list[str] = Field(default=[], description="Arms whose first seed's model is probed.")


class ExperimentConfig(RunConfig):
    """Everything that `gradprism experiment` does. `rl.rounds` are for the whole corpus."""

    seeds: list[Seed] = Field(default=[0, 1, 2], min_length=1, description="Training seeds.")
    arms: list[ArmConfig] = Field(min_length=1, description="Arms, in the order of the tables; earlier groups run first.")
    base_arm: str = Field(default="base", description="Arm that trains nothing.")
    sft_arm: str = Field(default="sft", description="Arm of SFT on everything.")
    full_rl_arm: str = Field(default="grpo", description="Arm of RL on everything, to which costs are compared.")
    reference_arms: list[str] = Field(default=["random", "sft-then-rl"], description="Arms that every other is tested against.")
    claims: list[ClaimConfig] = Field(default=[], description="Claims to check.")
    sweeps: list[SweepConfig] = Field(default=[], description="Arms along an axis.")
    regime: RegimeConfig = RegimeConfig()
    audit: AuditConfig = AuditConfig()

    def seeds_of(self, arm: ArmConfig) -> list[int]:
        """The training seeds of an arm."""
        return self.seeds[: arm.max_seeds]

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [arm.name for arm in self.arms]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"arms {', '.join(sorted(twice))}: appear twice")
        wanted = {self.base_arm, self.sft_arm, self.full_rl_arm, *self.reference_arms, *self.audit.checkpoints}
        wanted |= {name for claim in self.claims for name in (claim.better, claim.worse)}
        wanted |= {name for sweep in self.sweeps for name in sweep.arms.values()}
        if missing := wanted - set(names):
            raise ValueError(f"no arm is called {', '.join(sorted(missing))}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {', '.join(map(str, self.seeds))} has one twice")
        for arm in self.arms:
            if arm.refresh != RefreshConfig() and arm.route.policy == "pass_rate":
                raise ValueError(f"arm {arm.name}: a refresh probes again, which tells no pass rates")
        main = next(iter(self.evaluation.splits))
        if self.rl.evaluate_every and (self.rl.evaluate_split != main or self.rl.evaluate_tasks > self.evaluation.splits[main]):
            raise ValueError(
                f"rl.evaluate_split: must be {main!r}, the evaluation's first split, and rl.evaluate_tasks no more than its "
                f"{self.evaluation.splits[main]} tasks, so that curves end where the evaluation does"
            )
        return self


@dataclass(frozen=True)
class Run:
    """An arm with a seed: the stages that make its model, in order, and the one that evaluates it; `model` is None for the base.

    `forward_only` are those of its stages of which it needs the forward pass alone.
    """

    arm: ArmConfig
    seed: int
    stages: tuple[str, ...]
    evaluation: str
    route: str | None = None
    model: str | None = None
    forward_only: tuple[str, ...] = ()


@dataclass
class Plan:
    """The graph, and which stages belong to which run."""

    graph: StageGraph
    runs: list[Run]
    audits: dict[str, str] = field(default_factory=dict)  # label -> stage, `probe` among them
    labels: dict[str, str] = field(default_factory=dict)  # stage -> what a person is told


class _Builder:
    """Adds stages under the name `kind-key`, each once."""

    def __init__(self) -> None:
        self.stages: dict[str, Stage] = {}
        self.keys: dict[str, str] = {}
        self.labels: dict[str, str] = {}

    def add(
        self,
        kind: str,
        label: str,
        config: RunConfig,
        step: Step,
        reads: dict[str, Any],
        needs: dict[str, str],
        resumes: bool = False,
    ) -> str:
        stage = Stage("", partial(step, config), reads, needs, resumes, kind)
        key = stage_key(stage, self.keys)
        name = f"{kind}-{key}"
        if name not in self.stages:
            self.stages[name] = Stage(name, stage.run, reads, needs, resumes, kind, IMPORTS.get(kind, LOADS_A_MODEL))
            self.keys[name], self.labels[name] = key, f"{kind} {label}"
        return name


def plan(config: ExperimentConfig) -> Plan:
    """The stages of all arms and seeds, those of earlier groups first, and within a group a seed at a time."""
    builder, runs = _Builder(), []
    groups = list(dict.fromkeys(arm.group for arm in config.arms))
    for group in groups:
        arms = [arm for arm in config.arms if arm.group == group]
        for seed in config.seeds:
            runs += [_run(builder, config, arm, seed) for arm in arms if seed in config.seeds_of(arm)]
    audits = _audits(builder, config, runs)
    return Plan(StageGraph(config.folder, list(builder.stages.values())), runs, audits, builder.labels)


def arm_config(config: ExperimentConfig, arm: ArmConfig, seed: int) -> RunConfig:
    """What an arm does with a seed, as the configuration of a run."""
    # What a threshold sends to RL is known once it is routed: `steps.rl_in_proportion` then takes that share of the rounds.
    share = {"none": 0.0, "all": 1.0, "routed": arm.route.rl_share if arm.route.threshold is None else 1.0}[arm.rl]
    rl: dict[str, Any] = {"seed": seed, "rounds": max(1, round(config.rl.rounds * share))}
    if arm.algorithm is not None:
        rl["algorithm"] = arm.algorithm
    return _plain(config).model_copy(
        update={
            "seed": seed if arm.route.policy in SEEDED else config.seed,
            "route": arm.route,
            "refresh": arm.refresh,
            "sft": config.sft.model_copy(update={"seed": seed}),
            "rl": RlConfig.model_validate({**config.rl.model_dump(), **rl}),
        }
    )


def _run(builder: _Builder, config: ExperimentConfig, arm: ArmConfig, seed: int) -> Run:
    own = arm_config(config, arm, seed)
    reads, label, corpus = Reads.of(own), f"{arm.name}/{seed}", _corpus(builder, config)
    cost, model, route, tasks, probe = [], None, None, None, None
    if arm.is_routed:
        probe = _probe(builder, config, corpus)
        needs = {"probe": probe}
        if arm.route.policy not in WITHOUT_PROBE:
            cost.append(probe)
        if arm.route.policy == "pass_rate":
            needs["pass_rates"] = builder.add("pass-rates", label, own, steps.pass_rates, reads.pass_rates, corpus)
            cost.append(needs["pass_rates"])
        route = tasks = builder.add("route", label, own, steps.route, reads.route, needs)
        cost.append(route)
    if arm.sft != "none":
        needs = {"route": route} if arm.sft == "routed" and route else corpus
        model = builder.add("sft", label, own, steps.sft, reads.sft, needs, resumes=True)
        cost.append(model)
    if arm.refresh.after_sft:
        if not (model and route and probe and arm.rl == "routed"):
            raise ConfigError(f"arm {arm.name}: refresh.after_sft needs an SFT stage and routed RL")
        needs = {"probe": probe, "route": route, "model": model}
        tasks = builder.add("refresh", label, own, steps.refresh, reads.refresh, needs, resumes=True)
        model = builder.add("sft", f"{label} refreshed", own, steps.sft, reads.sft, {"route": tasks, "model": model}, resumes=True)
        cost += [tasks, model]
    if arm.rl != "none":
        needs = {"model": model} if model else {}
        if arm.rl == "routed" and probe and route and tasks:
            needs |= {"probe": probe, "route": route, "tasks": tasks}
        if arm.rl == "all" or arm.route.threshold is not None:
            needs |= corpus
        play, of_rl = steps.rl, reads.rl
        if arm.rl == "routed" and (arm.refresh.after_sft or arm.route.threshold is not None):  # how many tasks is not known yet
            play, of_rl = steps.rl_in_proportion, {**reads.rl, "rounds": "in proportion"}
        model = builder.add("rl", label, own, play, of_rl, needs, resumes=True)
        cost.append(model)
    needs = {"model": model} if model else {}
    evaluation = builder.add("evaluate", label, own, steps.evaluate, reads.evaluate, needs)
    forward_only = (probe,) if probe and arm.route.policy in FORWARD_ONLY else ()
    return Run(arm, seed, tuple(cost), evaluation, route, model, forward_only)


def _corpus(builder: _Builder, config: RunConfig) -> dict[str, str]:
    if config.corpus.collect is None:
        return {}
    return {"corpus": builder.add("collect", "the corpus", config, steps.collect, Reads.of(config).collect, {})}


def _probe(builder: _Builder, config: RunConfig, corpus: dict[str, str], label: str = "the base", model: str | None = None) -> str:
    needs = corpus | ({"model": model} if model else {})
    return builder.add("probe", label, config, steps.probe, Reads.of(config).probe, needs, resumes=True)


def _audits(builder: _Builder, config: ExperimentConfig, runs: Sequence[Run]) -> dict[str, str]:
    """The probes that the audit compares, by label."""
    if not any(run.route for run in runs):
        return {}
    plain = _plain(config)
    corpus = _corpus(builder, config)
    probes = {"probe": _probe(builder, config, corpus)}
    for dtype in config.audit.dtypes:
        changed = plain.model_copy(update={"model": plain.model.model_copy(update={"dtype": dtype})})
        probes[f"dtype {dtype}"] = _probe(builder, changed, corpus, f"in {dtype}")
    for length in config.audit.context_lengths:
        changed = plain.model_copy(update={"model": plain.model.model_copy(update={"context_length": length})})
        probes[f"cut to {length} tokens"] = _probe(builder, changed, corpus, f"cut to {length} tokens")
    for name in config.audit.checkpoints:
        [first, *_] = [run for run in runs if run.arm.name == name]
        probes[f"after {name}"] = _probe(builder, config, corpus, f"after {name}", first.model)
    return probes


def _plain(config: ExperimentConfig) -> RunConfig:
    return RunConfig.model_construct(**{name: getattr(config, name) for name in RunConfig.model_fields})
