"""Arms × seeds as stages; what two arms have in common is one stage, and runs once."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gradprism.experiments.config import ArmConfig, ExperimentConfig
from gradprism.experiments.stage import AnyStage
from gradprism.experiments.stages import (
    Audit,
    Base,
    Collect,
    Corpus,
    Evaluate,
    Files,
    PassRates,
    Probe,
    Refresh,
    Rl,
    Route,
    Sft,
    World,
)
from gradprism.rollouts.config import RolloutConfig
from gradprism.routing.split import metrics_with
from gradprism.runtime.errors import ConfigError
from gradprism.training.rl_config import RlConfig

# Policies whose routes differ from seed to seed; all others route alike for every training seed.
SEEDED = frozenset({"random", "soft", "pass_rate"})
# Policies that look at no gradient: whoever routes so pays for no probe, though here the probe lists the corpus for them too.
WITHOUT_PROBE = frozenset({"random", "length", "pass_rate"})
# Policies that need a probe's losses alone, and so no backward pass: their arms are charged for a forward pass.
FORWARD_ONLY = frozenset({"loss", "uncertainty"})


@dataclass(frozen=True)
class PlannedRun:
    """An arm with a seed: the stages that make its model, in order, and the one that evaluates it.

    Of the stages in `forward_only` it needs the forward pass alone.
    """

    arm: ArmConfig
    seed: int
    stages: tuple[AnyStage, ...]
    evaluation: Evaluate
    route: Route | None = None
    forward_only: tuple[AnyStage, ...] = ()


@dataclass
class Plan:
    """The runs of all arms and seeds, the probe that they share and its audit (None where nothing is routed), and labels of stages."""

    runs: list[PlannedRun] = field(default_factory=list)
    probe: Probe | None = None
    audit: Audit | None = None
    labels: dict[str, str] = field(default_factory=dict)

    def wanted(self, groups: Sequence[str] = (), but: Sequence[str] = ()) -> list[AnyStage]:
        """The evaluations of the groups' arms (default all) but those of the given names, and the audit.

        Raises `ConfigError` for a group that no arm is in.
        """
        known = {run.arm.group for run in self.runs}
        if unknown := sorted(set(groups) - known):
            raise ConfigError(f"--group {unknown[0]}: no arm is in it; choose from {', '.join(sorted(known))}")
        runs = [run.evaluation for run in self.runs if not groups or run.arm.group in groups]
        return [stage for stage in [*runs, *([self.audit] if self.audit else [])] if stage.name not in but]


def plan_experiment(config: ExperimentConfig) -> Plan:
    """The stages of all arms and seeds, those of earlier groups first, and within a group a seed at a time.

    Raises `ConfigError` for files, splits or models that cannot work, before anything is paid for.
    """
    return _Planner(config).plan()


class _Planner:
    """Makes the stages of arms from what all of them share."""

    def __init__(self, config: ExperimentConfig) -> None:
        self.config, self.made = config, Plan()
        self.base, self.world = Base.of(config.model, config.threads), World.of(config.environment)
        collect = config.corpus.collect
        self.corpus: Corpus = Files.of(config.corpus) if collect is None else Collect(self.world, collect)
        environment = self.world.make()
        for split in [*config.evaluation.splits, *([collect.split] if collect and collect.split else [])]:
            environment.tasks(split, 1)
        # An episode may have as many tokens as a trajectory, unless its own settings say otherwise.
        length = config.model.context_length
        self.rl_config = config.rl.model_copy(update={"context_length": config.rl.context_length or length})
        own_length = config.evaluation.context_length or length
        self.evaluation = config.evaluation.model_copy(update={"context_length": own_length})
        self.probe = Probe(self.base, self.corpus, config.probe.batch_tokens)

    def plan(self) -> Plan:
        groups = list(dict.fromkeys(arm.group for arm in self.config.all_arms))
        for group in groups:
            arms = [arm for arm in self.config.all_arms if arm.group == group]
            for seed in self.config.all_seeds:
                self.made.runs += [self.run(arm, seed) for arm in arms if seed in self.config.seeds_of(arm)]
        if any(run.route for run in self.made.runs):
            self.made.probe, self.made.audit = self.probe, self.audit()
        return self.made

    def told(self, stage: AnyStage, label: str) -> None:
        """Gives the stage, and all that it needs, a label, unless an earlier run has."""
        for need in stage.needs:
            shared = "the corpus" if isinstance(need, Collect) else "the base" if isinstance(need, Probe) else label
            self.told(need, shared)
        self.made.labels.setdefault(stage.name, f"{stage.kind} {label}")

    def run(self, arm: ArmConfig, seed: int) -> PlannedRun:
        config, stages = self.config, []
        route = self.route(arm, seed) if arm.is_routed else None
        if route:
            stages += [] if arm.route.policy in WITHOUT_PROBE else [self.probe]
            stages += [route.pass_rates] if route.pass_rates else []
            stages.append(route)
        model: Sft | Rl | None = None
        tasks: Files | Collect | Route | Refresh = route if route and arm.rl == "routed" else self.corpus
        if arm.sft != "none":
            own = config.sft if config.seeds is None else config.sft.model_copy(update={"seed": seed})
            model = Sft(self.base, own, route if route and arm.sft == "routed" else self.corpus)
            stages.append(model)
            if arm.refresh.after_sft and route:
                tasks = Refresh(self.base, route, model)
                model = Sft(self.base, own, tasks, model)
                stages += [tasks, model]
        if arm.rl != "none":
            model = self.rl(arm, seed, tasks, route, model)
            stages.append(model)
        evaluation = Evaluate(self.base, self.world, self.evaluation, model)
        self.told(evaluation, f"{arm.name}/{seed}")
        forward_only = (self.probe,) if route and arm.route.policy in FORWARD_ONLY else ()
        return PlannedRun(arm, seed, tuple(stages), evaluation, route, forward_only)

    def route(self, arm: ArmConfig, seed: int) -> Route:
        own_seed = seed if arm.route.policy in SEEDED else self.config.seed
        rates = self.pass_rates(own_seed) if arm.route.policy == "pass_rate" else None
        return Route(self.probe, arm.route, own_seed, rates)

    def pass_rates(self, seed: int) -> PassRates:
        play = RolloutConfig(**{name: getattr(self.rl_config, name) for name in RolloutConfig.model_fields})
        return PassRates(self.base, self.corpus, self.world, self.config.pass_rate.rollouts, play, seed)

    def rl(self, arm: ArmConfig, seed: int, tasks: Files | Collect | Route | Refresh, route: Route | None, model: Sft | None) -> Rl:
        # What a threshold sends to RL, or a refresh leaves, is known once it is routed: RL then takes that share of the rounds.
        by_threshold = arm.rl == "routed" and arm.route.threshold is not None
        share = arm.route.rl_share if arm.rl == "routed" and not by_threshold else 1.0
        share_of = self.corpus if by_threshold else route if isinstance(tasks, Refresh) else None
        values = self.rl_config.model_dump() | {"rounds": arm.rounds or max(1, round(self.config.rl.rounds * share))}
        values |= {} if self.config.seeds is None else {"seed": seed}
        values |= {} if arm.algorithm is None else {"algorithm": arm.algorithm}
        refresh_every = arm.refresh.every_k_steps if arm.rl == "routed" else 0
        config = RlConfig.model_validate(values)
        return Rl(self.base, self.world, config, tasks, model, None if arm.rounds else share_of, refresh_every)

    def audit(self) -> Audit:
        """The audit of the probe, with the other probes that it is compared with; what is one probe under two labels comes once."""
        config, seen, labels = self.config, {self.probe.name: self.probe}, []

        def add(label: str, base: Base, model: Sft | Rl | None = None) -> None:
            probe = Probe(base, self.corpus, config.probe.batch_tokens, model)
            if probe.name not in seen:
                seen[probe.name] = probe
                labels.append(label)
                self.made.labels.setdefault(probe.name, f"probe {label}")

        for dtype in config.audit.dtypes:
            add(f"dtype {dtype}", replace(self.base, dtype=dtype))
        for length in config.audit.context_lengths:
            add(f"cut to {length} tokens", replace(self.base, context_length=length))
        for name in config.audit.checkpoints:
            first = next(run for run in self.made.runs if run.arm.name == name)
            add(f"after {name}", self.base, first.evaluation.model)
        rates = next((run.route.pass_rates for run in self.made.runs if run.route and run.route.pass_rates), None)
        metrics = metrics_with(*(run.arm.route.metric for run in self.made.runs if run.route))
        audit = Audit(self.probe, tuple(labels), tuple(seen.values())[1:], tuple(metrics), config.seed, rates)
        self.told(audit, "of the probes")
        return audit
