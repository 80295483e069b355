"""The stages of measuring gain: groups of similar trajectories, and the outcomes of the base and of it trained on one group alone."""

from dataclasses import dataclass

from gradprism.evaluation.config import EvaluationConfig
from gradprism.experiments.results import Part
from gradprism.experiments.stage import Stage
from gradprism.experiments.stages import Base, Collect, PassRates, Probe, World
from gradprism.training.rl_config import RlConfig
from gradprism.training.sft_config import SftConfig

WORK = "gradprism.experiments.gain_work"


class Grouped(Part):
    """Trajectories by id, the rows of each group, and every score of every trajectory, None where it is not defined."""

    ids: list[str]
    groups: list[list[int]]
    scores: dict[str, list[float | None]]
    parameters: int


@dataclass(frozen=True)
class Groups(Stage[Grouped]):
    """The corpus in groups whose trajectories have similar scores."""

    kind = "groups"
    Found = Grouped
    runner = f"{WORK}:group_corpus"

    probe: Probe
    pass_rates: PassRates
    count: int


class Scored(Part):
    """Further scores of every trajectory, None where one is not defined."""

    ids: list[str]
    scores: dict[str, list[float | None]]


@dataclass(frozen=True)
class PassScores(Stage[Scored]):
    """Scores of the pass, and with a `target` the cosine of each gradient to its mean gradient.

    They have no part in the groups, so that they can be added when the trainings are done.
    """

    kind = "gain-scores"
    Found = Scored
    runner = f"{WORK}:score_pass"

    probe: Probe
    target: Probe | None


class Outcomes(Part):
    """Of a model: mean loss over the demonstrations' response tokens, in nats, and mean success and score of the played tasks."""

    loss: float
    success: float
    score: float


@dataclass(frozen=True)
class Measure(Stage[Outcomes]):
    """The outcomes of the base."""

    kind = "gain-base"
    Found = Outcomes
    runner = f"{WORK}:measure_base"

    base: Base
    world: World
    evaluation: EvaluationConfig
    demonstrations: Collect


@dataclass(frozen=True)
class MeasureSft(Measure):
    """The outcomes of the base after SFT on one group. The model itself is not kept."""

    kind = "gain-sft"
    runner = f"{WORK}:measure_sft"

    groups: Groups
    group: int
    config: SftConfig


@dataclass(frozen=True)
class MeasureRl(Measure):
    """The outcomes of the base after RL on the tasks of one group. The model itself is not kept."""

    kind = "gain-rl"
    runner = f"{WORK}:measure_rl"

    groups: Groups
    group: int
    config: RlConfig
