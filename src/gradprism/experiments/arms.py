"""The arms of an experiment: what each trains on, how its trajectories are routed, and how its model is evaluated besides."""

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from gradprism.evaluation.config import EvaluationConfig
from gradprism.probing.scores import check_metric, check_scaled
from gradprism.routing.policies import FROM_PASS_RATES, POLICIES
from gradprism.routing.split import Order, Side, check_division, check_weights
from gradprism.routing.strata import Stratum, check_strata
from gradprism.routing.weights import Form
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.settings import Settings

Data = Literal["none", "routed", "all"]


class Section(Settings):
    """A part of the configuration."""


def _check_policy(name: str) -> str:
    if name == "target":
        raise ConfigError(
            "policy 'target': an experiment has no target set; give `gradprism route --policy target` one with --target"
        )
    return POLICIES.checked(name)


class RouteConfig(Section):
    """The routing."""

    # Settings that came when there were results already; at their defaults they change none.
    added: ClassVar[frozenset[str]] = frozenset(("cuts", "shares", "sides", "within", "order", "weights", "temperature"))

    metric: Annotated[str, AfterValidator(check_metric)] = Field(
        default="gini", description="Concentration metric: gini, cv, kurtosis or a registered one, or a score of the probe's pass."
    )
    policy: Annotated[str, AfterValidator(_check_policy)] = Field(
        default="concentration", description="What trajectories are ranked by; see `gradprism route`."
    )
    normalise: Literal["none", "per_parameter", "per_weight_norm", "per_corpus_median"] = Field(
        default="none",
        description="What norms are divided by before they are compared: nothing, each matrix's size, or its median over the corpus.",
    )
    rl_share: float = Field(default=0.5, gt=0, lt=1, description="Share that goes to RL; 0.5 splits at the median.")
    threshold: float | None = Field(default=None, description="Send what scores above this number to RL, whatever share that is.")

    cuts: tuple[float, ...] = Field(
        default=(), description="Several numbers in place of a threshold, ascending, that part the scores into ranges."
    )
    shares: tuple[float, ...] = Field(
        default=(), description="Shares of the trajectories in the ranges, lowest first, with the sum 1, in place of cuts."
    )
    sides: tuple[Side, ...] = Field(default=(), description="Where each range goes, lowest first: sft, rl, none or both.")
    within: tuple[Stratum, ...] = Field(
        default=(), description="Rank scores within fifths of the response length (length), within the task_type, or both."
    )

    order: Order | None = Field(
        default=None,
        description="SFT and RL begin with the lowest scores (ascending) or the highest (descending), in their first pass.",
    )

    weights: Form | None = Field(
        default=None,
        description="In place of sides: weights of SFT's loss and of RL's draws by the score's rank, linear or logistic.",
    )
    temperature: float | None = Field(default=None, description="Of logistic weights, default 0.1.")

    @model_validator(mode="after")
    def _one_cut(self) -> Self:
        check_division(self.rl_share, self.threshold, self.cuts, self.shares, self.sides)
        check_weights(
            self.weights, self.temperature, self.rl_share, self.threshold, self.sides or self.cuts or self.shares, self.order
        )
        check_strata(self.within)
        check_scaled(self.metric, self.normalise)
        return self

    @property
    def known_rl_share(self) -> float | None:
        """RL's share of the corpus, by its weights where it has some; None where it is known only when that is routed."""
        if self.threshold is not None or self.cuts:
            return None
        to_rl = [share for share, side in zip(self.shares, self.sides, strict=True) if side in ("rl", "both")]
        return math.fsum(to_rl) if self.shares else self.rl_share


class RefreshConfig(Section):
    """Routing again while the model changes; the threshold stays the first route's."""

    after_sft: bool = Field(
        default=False,
        description="Probe what is left for RL on the SFT checkpoint; train by SFT on what now falls below the threshold.",
    )
    every_k_steps: int = Field(
        default=0,
        ge=0,
        description="During RL, probe again every so many steps and play only what is above the threshold; 0 for never.",
    )


class ArmConfig(Section):
    """One way to spend the corpus: what SFT trains on, what RL plays, and how the two are parted."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="Name, in lower case.")
    title: str = Field(default="", description="Its title in tables; default the name.")
    group: str = Field(default="table1", description="Table that it belongs to.")
    sft: Data = Field(default="routed", description="What SFT trains on: nothing, its part of the route, or everything.")
    rl: Data = Field(default="routed", description="Whose tasks RL plays; its rounds are that share of `rl.rounds`.")
    rounds: Annotated[int, Field(ge=1)] | Literal["full"] | None = Field(
        default=None, description="RL's rounds, where they are not that share; full: all of `rl.rounds`."
    )
    scored: Literal["base", "after_sft"] = Field(
        default="base", description="What the route's scores are of: the base, or the checkpoint of SFT on everything."
    )
    route: RouteConfig = Field(default=RouteConfig(), description="The route.")
    refresh: RefreshConfig = Field(default=RefreshConfig(), description="Routing again while the model changes.")
    algorithm: Literal["grpo", "gigpo"] | None = Field(default=None, description="RL's, where it is not `rl.algorithm`.")
    max_seeds: int | None = Field(default=None, ge=1, description="Only so many of the experiment's seeds, the first.")

    @property
    def is_routed(self) -> bool:
        """Whether it needs a route."""
        return "routed" in (self.sft, self.rl)

    @model_validator(mode="after")
    def _refreshes(self) -> Self:
        if self.refresh.after_sft and not (self.sft != "none" and self.rl == "routed"):
            raise ValueError(f"arm {self.name}: refresh.after_sft needs an SFT stage and routed RL")
        if self.refresh != RefreshConfig() and self.route.policy in FROM_PASS_RATES:
            raise ValueError(f"arm {self.name}: a refresh probes again, which tells no pass rates")
        if self.refresh != RefreshConfig() and (
            self.route.sides
            or self.route.weights
            or self.route.order
            or self.route.within
            or self.route.normalise == "per_corpus_median"
        ):
            raise ValueError(
                f"arm {self.name}: a refresh cuts what is left at the first route's threshold, which cuts, shares, within, weights, order "
                "and per_corpus_median have not"
            )
        if self.scored == "after_sft" and (self.sft != "all" or self.rl != "routed" or self.refresh.after_sft):
            raise ValueError(f"arm {self.name}: scored after_sft needs sft = all and rl = routed, and no refresh.after_sft")
        return self


class FurtherEvaluation(Section):
    """An evaluation beside the greedy one, on tasks of that: sampled, or several attempts per task for pass@k."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="Name, in lower case.")
    temperature: float = Field(gt=0, description="Sampling temperature.")
    attempts: int = Field(default=1, ge=1, description="Episodes per task; with several, pass@k says who solves it in any of them.")
    splits: dict[str, PositiveInt] = Field(
        default={}, description="Tasks per split, the first of the evaluation's, at most those; default all of its tasks."
    )
    groups: list[str] = Field(default=[], description="Only arms of these groups.")
    arms: list[str] = Field(default=[], description="Only these arms, and those of `groups`.")
    seeds: list[int] | None = Field(default=None, min_length=1, description="Only trainings of these seeds; default all.")

    def is_of(self, arm: ArmConfig, seed: int) -> bool:
        """Whether the arm's training of that seed is evaluated so."""
        chosen = not (self.groups or self.arms) or arm.group in self.groups or arm.name in self.arms
        return chosen and (self.seeds is None or seed in self.seeds)

    def tasks_of(self, config: EvaluationConfig) -> dict[str, int]:
        """Its numbers of tasks, of those that the first evaluation has."""
        return {split: min(n, config.splits[split]) for split, n in (self.splits or config.splits).items()}

    def of(self, config: EvaluationConfig) -> EvaluationConfig:
        """Its settings, those of the first evaluation for the rest."""
        own = {"temperature": self.temperature, "attempts": self.attempts, "splits": self.tasks_of(config)}
        return config.model_copy(update=own)
