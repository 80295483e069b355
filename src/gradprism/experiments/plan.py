"""Arms × seeds as stages; what two arms have in common is one stage, and runs once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from gradprism.environments.protocol import Environment
from gradprism.environments.registry import make_environment
from gradprism.evaluation.config import EvaluationConfig
from gradprism.experiments.arms import ArmConfig
from gradprism.experiments.config import ExperimentConfig
from gradprism.experiments.results import Part
from gradprism.experiments.stage import AnyStage
from gradprism.experiments.stages import (
    Audit,
    Base,
    Collect,
    Corpus,
    Evaluate,
    Files,
    HeldOutLoss,
    PassRates,
    PassRatesOf,
    Probe,
    Refresh,
    Rl,
    Route,
    Sft,
    World,
)
from gradprism.probing.pass_scores import PASS_SCORES, check_pass_scores
from gradprism.rollouts.config import RolloutConfig
from gradprism.routing.policies import FROM_PASS_RATES
from gradprism.routing.split import metrics_with
from gradprism.runtime.errors import ConfigError
from gradprism.training.rl_config import RlConfig

# Policies whose routes differ from seed to seed; all others route alike for every training seed.
SEEDED = frozenset({"random", "soft", *FROM_PASS_RATES})
# Policies that look at no gradient: whoever routes so pays for no probe, though here the probe lists the corpus for them too.
WITHOUT_PROBE = frozenset({"random", "length", *FROM_PASS_RATES})
# Policies that need a probe's losses alone, and so no backward pass: their arms are charged for a forward pass.
FORWARD_ONLY = frozenset({"loss", "uncertainty"})
_MANY = 10_000  # tasks that are listed in a moment


@dataclass(frozen=True)
class PlannedRun:
    """An arm with a seed: the stages that make its model, in order, and the one that evaluates it.

    Of the stages in `forward_only` it needs the forward pass alone. `watched` evaluates it where its curve would else not end, `further`
    are its other evaluations by name. `held_out` measures its loss on demonstrations.
    """

    arm: ArmConfig
    seed: int
    stages: tuple[AnyStage, ...]
    evaluation: Evaluate
    route: Route | None = None
    forward_only: tuple[AnyStage, ...] = ()
    watched: Evaluate | None = None
    further: Mapping[str, Evaluate] = field(default_factory=dict)
    held_out: HeldOutLoss | None = None


class Surroundings(Part):
    """What an experiment depends on of an environment that is made of these options: its contents by hash, and its dev split."""

    name: str
    options: dict[str, str | int | float | bool]
    contents: dict[str, str]
    dev_split: str


def _look_around(config: ExperimentConfig) -> Surroundings:
    named = config.environment
    environment = make_environment(named.name, **named.options)
    _check_splits(config, environment)
    return Surroundings(name=named.name, options=named.options, contents=environment.contents(), dev_split=environment.dev_split)


def _check_splits(config: ExperimentConfig, environment: Environment) -> None:
    """Raises `ConfigError` for splits and tasks that the environment has not, and for curves of more tasks than the evaluation has."""
    collect, splits, rl = config.corpus.collect, config.evaluation.splits, config.rl
    named = {"evaluation.splits": list(splits), "corpus.collect.split": [collect.split] if collect and collect.split else []}
    named |= {"rl.evaluate_split": [rl.evaluate_split]} if rl.evaluate_every and rl.evaluate_split else {}
    for key, wanted in named.items():
        for split in wanted:
            if split not in environment.splits:
                has = ", ".join(environment.splits)
                raise ConfigError(f"{key}: environment {environment.name!r} has no split {split!r}; it has {has}")
            environment.tasks(split, 1)
    main, first = next(iter(splits)), config.evaluation
    for split, count in splits.items():
        _check_tasks(environment, "evaluation", split, count, first.start, first.task_type)
    if rl.evaluate_every:
        _check_tasks(environment, "rl.evaluate_tasks", rl.evaluate_split or environment.dev_split or main, rl.evaluate_tasks)
    if collect:
        _check_tasks(environment, "corpus.collect", collect.split or environment.splits[0], collect.count, collect.skip)
    _check_held_out(config, environment)
    if rl.evaluate_every and rl.evaluate_split == main and rl.evaluate_tasks > splits[main]:
        raise ConfigError(
            f"rl.evaluate_tasks: {main!r}, the evaluation's first split, has {splits[main]} tasks there; give no more, so that curves "
            "end where the evaluation does, or another rl.evaluate_split"
        )


def _check_tasks(environment: Environment, key: str, split: str, count: int, start: int = 0, task_type: str | None = None) -> None:
    """Raises `ConfigError` with the key for tasks that the environment has not."""
    try:
        # So many tasks of a split without end would take long to list, and are there.
        endless = count > _MANY and environment.size(split) is None
        environment.tasks(split, 1 if endless else count, start, task_type)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


def _check_held_out(config: ExperimentConfig, environment: Environment) -> None:
    """Raises `ConfigError` for tasks that are not there, and for those that the corpus is collected from."""
    wanted, trained = config.held_out and config.held_out.collect, config.corpus.collect
    if not wanted or not wanted.split:
        return
    _check_tasks(environment, "held_out.collect", wanted.split, wanted.count, wanted.skip)
    if trained and wanted.split == (trained.split or environment.splits[0]):
        begin, end = max(wanted.skip, trained.skip), min(wanted.skip + wanted.count, trained.skip + trained.count)
        if begin < end:
            raise ConfigError(
                f"held_out.collect.split: tasks {begin} to {end} of {wanted.split!r} are the corpus's, which arms train on; name "
                f"another split, or give held_out.collect.skip = {trained.skip + trained.count}"
            )


class Plan:
    """The runs of all arms and seeds as stages: those of earlier groups first, and within a group a seed at a time.

    `probe` is the one that they share, `audit` its audit (None where nothing is routed), `labels` tell a person of a stage by its name.
    `surroundings` are what the keys depend on of the environment. Where they are given, of a plan that was made before, the environment
    is not asked: its packages may not be here. Raises `ConfigError` for files, splits or models that cannot work, before anything is paid
    for.
    """

    def __init__(self, config: ExperimentConfig, surroundings: Surroundings | None = None) -> None:
        self.config, self.labels = config, dict[str, str]()
        self.surroundings = surroundings or _look_around(config)
        self.base, self.world = Base.of(config.model, config.threads), World.of(config.environment, self.surroundings.contents)
        collect = config.corpus.collect
        self.corpus: Corpus = Files.of(config.corpus) if collect is None else Collect(self.world, collect)
        self.main_split = next(iter(config.evaluation.splits))
        rl = config.rl
        if rl.evaluate_every and not (rl.evaluate_split or self.surroundings.dev_split):
            rl = rl.model_copy(update={"evaluate_split": self.main_split})  # RL by itself would take the environment's own choice
        watched = rl.evaluate_split or self.surroundings.dev_split
        self.curve_split = watched if rl.evaluate_every else self.main_split
        # An episode may have as many tokens as a trajectory, unless its own settings say otherwise.
        length = config.model.context_length
        self.rl_config = rl.model_copy(update={"context_length": rl.context_length or length})
        own_length = config.evaluation.context_length or length
        self.evaluation = config.evaluation.model_copy(update={"context_length": own_length})
        routed_by = {arm.route.metric for arm in config.all_arms}
        self.scores = check_pass_scores([*config.probe.scores, *(name for name in PASS_SCORES if name in routed_by)])
        self.probe = Probe(self.base, self.corpus, config.probe.batch_tokens, scores=self.scores)
        self.demonstrations = self._demonstrations()

        groups = dict.fromkeys(arm.group for arm in config.all_arms)
        self.runs = [
            self._run(arm, seed)
            for group in groups
            for seed in config.all_seeds
            for arm in config.all_arms
            if arm.group == group and seed in config.seeds_of(arm)
        ]
        self.audit = self._audit() if any(run.route for run in self.runs) else None

    def wanted(self, groups: Sequence[str] = (), arms: Sequence[str] = ()) -> list[AnyStage]:
        """The evaluations of these arms and those of the groups (default all), the audit where one of them is routed, and what waits for
        all else: further evaluations and losses.

        Raises `ConfigError` for a group that no arm is in, and for an unknown arm.
        """
        in_groups, names = {run.arm.group for run in self.runs}, {run.arm.name for run in self.runs}
        if unknown := sorted(set(groups) - in_groups):
            raise ConfigError(f"--group {unknown[0]}: no arm is in it; choose from {', '.join(sorted(in_groups))}")
        if unknown := sorted(set(arms) - names):
            raise ConfigError(f"--arm {unknown[0]}: no such arm; choose from {', '.join(sorted(names))}")
        runs = [run for run in self.runs if not (groups or arms) or run.arm.group in groups or run.arm.name in arms]
        first = [stage for run in runs for stage in (run.evaluation, *([run.watched] if run.watched else []))]
        further = [stage for run in runs for stage in run.further.values()]
        held_out = [run.held_out for run in runs if run.held_out]
        audit = [self.audit] if self.audit and any(run.route for run in runs) else []
        return [*first, *audit, *further, *held_out]

    def _demonstrations(self) -> Files | Collect | None:
        """The demonstrations that no arm trains on; raises `ConfigError` for a file that is the corpus's too."""
        config = self.config.held_out
        if config is None:
            return None
        if config.collect:
            stage = Collect(self.world, config.collect)
            self.labels[stage.name] = "collect held-out demonstrations"
            return stage
        files = Files.of(config, "held_out")
        known = self.corpus.sha256 if isinstance(self.corpus, Files) else ()
        for path, sha256 in zip(files.paths, files.sha256, strict=True):
            if sha256 in known:
                raise ConfigError(f"held_out.files: {path}: is one of the corpus, which arms train on; give other demonstrations")
        return files

    def _told(self, stage: AnyStage, label: str) -> None:
        """Gives the stage, and all that it needs, a label, unless an earlier run has."""
        for need in stage.needs:
            of_base = isinstance(need, Probe) and need.model is None
            shared = "the corpus" if isinstance(need, Collect) else "the base" if of_base else label
            self._told(need, shared)
        self.labels.setdefault(stage.name, f"{stage.kind} {label}")

    def _run(self, arm: ArmConfig, seed: int) -> PlannedRun:
        config, stages = self.config, []
        own = config.sft if config.seeds is None else config.sft.model_copy(update={"seed": seed})
        scored = Sft(self.base, own, self.corpus) if arm.scored == "after_sft" else None
        stages += [scored] if scored else []
        route = self._route(arm, seed, scored) if arm.is_routed else None
        if route:
            stages += [] if arm.route.policy in WITHOUT_PROBE else [route.probe]
            stages += [route.pass_rates] if route.pass_rates else []
            stages.append(route)
        model: Sft | Rl | None = scored
        tasks: Files | Collect | Route | Refresh = route if route and arm.rl == "routed" else self.corpus
        if arm.sft != "none" and not scored:
            ordered = own.model_copy(update={"order": "given"}) if arm.route.order and arm.sft == "routed" else own
            model = Sft(self.base, ordered, route if route and arm.sft == "routed" else self.corpus)
            stages.append(model)
            if arm.refresh.after_sft and route:
                tasks = Refresh(self.base, route, model)
                model = Sft(self.base, own, tasks, model)
                stages += [tasks, model]
        if arm.rl != "none":
            model = self._rl(arm, seed, tasks, route, model)
            stages.append(model)
        evaluation = self._evaluation(self.evaluation, model, f"{arm.name}/{seed}")
        forward_only = (route.probe,) if route and arm.route.policy in FORWARD_ONLY else ()
        watched = self._watched(model, f"of {arm.name}/{seed} on {self.curve_split}")
        further = {
            each.name: self._evaluation(each.of(self.evaluation), model, f"{each.name} of {arm.name}/{seed}")
            for each in config.evaluations
            if each.is_of(arm, seed)
        }
        held_out = HeldOutLoss(self.base, self.demonstrations, model) if self.demonstrations else None
        if held_out:
            self._told(held_out, f"of {arm.name}/{seed}")
        return PlannedRun(arm, seed, tuple(stages), evaluation, route, forward_only, watched, further, held_out)

    def _evaluation(self, config: EvaluationConfig, model: Sft | Rl | None, label: str) -> Evaluate:
        stage = Evaluate(self.base, self.world, config, model)
        self._told(stage, label)
        return stage

    def _watched(self, model: Sft | Rl | None, label: str) -> Evaluate | None:
        """The evaluation of the model on the curves' tasks; None where the first evaluation has them, or RL ends with one of its own."""
        config = self.config.rl
        if self.curve_split == self.main_split:
            return None
        if isinstance(model, Rl):
            knows = model.share_of is None and not (config.keep_best or config.stop_when)
            if knows and model.config.rounds % config.evaluate_every == 0:
                return None
        tasks = {"splits": {self.curve_split: config.evaluate_tasks}, "start": 0, "task_type": None}
        return self._evaluation(self.evaluation.model_copy(update=tasks), model, label)

    def _route(self, arm: ArmConfig, seed: int, model: Sft | None) -> Route:
        own_seed = seed if arm.route.policy in SEEDED else self.config.seed
        rates = self.pass_rates(own_seed, model) if arm.route.policy in FROM_PASS_RATES else None
        # What asks for no gradient needs the list of the corpus alone, which the base's probe has.
        of_base = model is None or arm.route.policy in WITHOUT_PROBE
        probe = self.probe if of_base else Probe(self.base, self.corpus, self.config.probe.batch_tokens, model, self.scores)
        return Route(probe, arm.route, own_seed, rates)

    def pass_rates(self, seed: int, model: Sft | None = None) -> PassRates:
        """The stage in which the base, or a checkpoint, plays the corpus's tasks."""
        play = RolloutConfig(**{name: getattr(self.rl_config, name) for name in RolloutConfig.model_fields})
        of = (self.base, self.corpus, self.world, self.config.pass_rate.rollouts, play, seed)
        return PassRates(*of) if model is None else PassRatesOf(*of, model)

    def _rl(
        self, arm: ArmConfig, seed: int, tasks: Files | Collect | Route | Refresh, route: Route | None, model: Sft | None
    ) -> Rl:
        # What a threshold or cuts send to RL, or a refresh leaves, is known once it is routed: RL then takes that share of the rounds.
        known = arm.route.known_rl_share if arm.rl == "routed" else 1.0
        share_of = self.corpus if known is None else route if isinstance(tasks, Refresh) else None
        whole = self.config.rl.rounds
        rounds = whole if arm.rounds == "full" else arm.rounds or max(1, round(whole * (1.0 if known is None else known)))
        values = self.rl_config.shortened(rounds).model_dump()
        values |= {} if self.config.seeds is None else {"seed": seed}
        values |= {} if arm.algorithm is None else {"algorithm": arm.algorithm}
        values |= {"order": "given"} if arm.route.order and arm.rl == "routed" else {}
        refresh_every = arm.refresh.every_k_steps if arm.rl == "routed" else 0
        config = RlConfig.model_validate(values)
        return Rl(self.base, self.world, config, tasks, model, None if arm.rounds else share_of, refresh_every)

    def _audit(self) -> Audit:
        """The audit of the probe, with the other probes that it is compared with; what is one probe under two labels comes once."""
        config, seen, labels = self.config, {self.probe.name: self.probe}, []

        def add(label: str, base: Base, model: Sft | Rl | None = None) -> None:
            probe = Probe(base, self.corpus, config.probe.batch_tokens, model, self.scores)
            if probe.name not in seen:
                seen[probe.name] = probe
                labels.append(label)
                self.labels.setdefault(probe.name, f"probe {label}")

        for dtype in config.audit.dtypes:
            add(f"dtype {dtype}", replace(self.base, dtype=dtype))
        for length in config.audit.context_lengths:
            add(f"cut to {length} tokens", replace(self.base, context_length=length))
        for name in config.audit.checkpoints:
            first = next(run for run in self.runs if run.arm.name == name)
            add(f"after {name}", self.base, first.evaluation.model)
        of_routes = [run.route.pass_rates for run in self.runs if run.route]
        rates = next((rates for rates in of_routes if rates and not isinstance(rates, PassRatesOf)), None)
        metrics = metrics_with(*(run.arm.route.metric for run in self.runs if run.route))
        audit = Audit(self.probe, tuple(labels), tuple(seen.values())[1:], tuple(metrics), config.seed, rates)
        self._told(audit, "of the probes")
        return audit
