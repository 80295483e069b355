"""Costs of arms: stages added up, speed-ups over full RL, and whether choosing the data pays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gradprism.experiments.results import Cost, Results, Run, Stage
from gradprism.runtime.errors import DataError

Measure = Literal["wall_seconds", "cpu_seconds", "flops"]  # what speed-ups and savings are told in
Stages = Mapping[str, Stage]

_TIMES = ("wall_seconds", "cpu_seconds", "gpu_seconds")
_PEAKS = ("peak_memory_mib", "peak_gpu_memory_mib")
# All else that an arm's model cost is the choosing: probing, routing, probing again, sampling for pass rates.
TRAINING = ("sft", "rl")


def stage_flops(parameters_in_matmuls: int, tokens_forward: float, tokens_backward: float) -> float:
    """Floating-point operations of a stage, estimated: 2 per parameter and token read, 4 per parameter and token of a backward pass.

    `parameters_in_matmuls` leaves out embeddings that are looked up. `tokens_generated` is not asked for, since each is in
    `tokens_forward` already: generating reads every token but an answer's last, which is read with what follows it.

    In training, a backward pass forms the gradients of inputs and of weights, 2 each. A probe's forms those of inputs, 2, and for the
    norms at most as much again, since the cheaper of two forms is taken and the more expensive is the weight gradient itself: it is
    charged in full, an upper bound. Left out are attention scores, the environment, the optimizer, activations computed twice, and RL's
    passes for old and reference log-probabilities, where it makes any.
    """
    return parameters_in_matmuls * (2.0 * tokens_forward + 4.0 * tokens_backward)


def stage_cost(stage: Stage, *, forward_only: bool = False) -> Cost:
    """Cost of a stage without the evaluations that it stopped for.

    Their wall time was measured, and of CPU and GPU time the same share is taken off. With `forward_only`, the cost of a probe that
    stops before the backward pass: no backward tokens, and times by the share of the FLOPs that is left, an estimate.
    """
    cost = stage.model_dump(include=set(Cost.model_fields))
    if stage.wall_seconds:
        kept = 1 - stage.evaluation_seconds / stage.wall_seconds
        cost |= {name: kept * cost[name] for name in _TIMES}
    if forward_only:
        forward, whole = stage_flops(1, stage.tokens_forward, 0), stage_flops(1, stage.tokens_forward, stage.tokens_backward)
        left = forward / whole if forward else 1.0
        cost |= {name: left * cost[name] for name in (*_TIMES, "flops")} | {"tokens_backward": 0.0}
    return Cost(**cost)


def total(costs: Sequence[Cost]) -> Cost:
    """Sum of the costs; of the peaks the largest."""
    added = {name: sum(getattr(cost, name) for cost in costs) for name in Cost.model_fields if name not in _PEAKS}
    peaks = {name: max((getattr(cost, name) for cost in costs), default=0.0) for name in _PEAKS}
    return Cost().model_copy(update=added | peaks)  # a sum may be beyond the bounds of one stage


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """Mean over an arm's runs; of the peaks the largest."""
    added = total(costs)
    return added.model_copy(update={name: value / len(costs) for name, value in added if name not in _PEAKS})


def run_cost(run: Run, stages: Stages, *, choosing: bool | None = None) -> Cost:
    """Cost of a run's model: its distinct stages; only those that are not training (`choosing`), or only those that are."""
    return total([cost for kind, cost in _stage_costs(run, stages) if choosing is None or choosing == (kind not in TRAINING)])


def _stage_costs(run: Run, stages: Stages) -> list[tuple[str, Cost]]:
    """Kind and cost of each of a run's distinct stages, in order; of those in `forward_only` it is charged only what it reads."""
    return [
        (stages[name].kind, stage_cost(stages[name], forward_only=name in run.forward_only)) for name in dict.fromkeys(run.stages)
    ]


@dataclass(frozen=True)
class Speedup:
    """The factor by which an arm is cheaper: ratio of means, and the least and greatest of its runs against the other's mean."""

    ratio: float
    low: float
    high: float


def speedup(arm: Sequence[Cost], full_rl: Sequence[Cost], measure: Measure) -> Speedup | None:
    """Speed-up of an arm's runs over those of full RL; None where either has no run, or a run costs nothing."""
    if not arm or not full_rl or not all(getattr(cost, measure) > 0 for cost in (*arm, *full_rl)):
        return None
    whole = getattr(mean_cost(full_rl), measure)
    ratios = [whole / getattr(cost, measure) for cost in arm]
    return Speedup(whole / getattr(mean_cost(arm), measure), min(ratios), max(ratios))


@dataclass(frozen=True)
class Saving:
    """Cost of choosing the data, and what the smaller training saves against full RL, in the unit of the measure; means over runs."""

    choosing: float
    saved: float

    @property
    def pays(self) -> bool:
        """False is the failure signature "the probe costs more than it saves"."""
        return self.choosing < self.saved


def saving(runs: Sequence[Run], full_rl: Sequence[Cost], stages: Stages, measure: Measure) -> Saving | None:
    """Saving of an arm; None where nothing was spent on choosing, or one of the arms has no run."""
    if not runs or not full_rl:
        return None
    choosing, training = (
        getattr(mean_cost([run_cost(run, stages, choosing=side) for run in runs]), measure) for side in (True, False)
    )
    return Saving(choosing, getattr(mean_cost(full_rl), measure) - training) if choosing > 0 else None


def cost_at(run: Run, stages: Stages, stage: str, fraction: float, measure: Measure) -> float:
    """Cost of a run up to where `fraction` of its training by `stage` ("base", "sft" or "rl") was done.

    Costs are taken to grow evenly from the first stage of that kind to the last; what comes before is paid for in full. The base
    costs nothing.
    """
    if stage == "base":
        return 0.0
    each = _stage_costs(run, stages)
    own, costs = [kind == stage for kind, _ in each], [getattr(cost, measure) for _, cost in each]
    if not any(own):
        return sum(costs)
    first, last = own.index(True), len(own) - own[::-1].index(True)
    return sum(costs[:first]) + fraction * sum(costs[first:last])


def final_success(runs: Sequence[Run]) -> float | None:
    """Mean over an arm's runs of the last point of their training curves, a fraction; None where no run has one."""
    last = [run.curve[-1].success for run in runs if run.curve]
    return sum(last) / len(last) if last else None


def mean_curve(runs: Sequence[Run]) -> list[tuple[str, float, float]]:
    """Stage, fraction and mean success of the points that all runs with a curve have, in order; empty where there is none."""
    curves = [{(p.stage, p.fraction): p.success for p in run.curve} for run in runs if run.curve]
    shared = [point for point in (curves[0] if curves else {}) if all(point in curve for curve in curves)]
    return [(*point, sum(curve[point] for curve in curves) / len(curves)) for point in shared]


def cost_to_reach(run: Run, stages: Stages, target: float, measure: Measure) -> float | None:
    """Cost of a run at the first point of its curve with a success of at least `target`; None where it has none."""
    for point in run.curve:
        if point.success >= target - 1e-9:  # a mean of equal successes may be a rounding above each
            return cost_at(run, stages, point.stage, point.fraction, measure)
    return None


def projected_hours(results: Results) -> tuple[float, float]:
    """Hours that RL on everything would take, and that SFT and RL as routed took, by the last run of the results that has a route and RL.

    The former is its RL over the share of the trajectories that it played. Raises `DataError` where there is none.
    """
    found = last_routed(results)
    if found is None:
        raise DataError(f"{results.name}: tells of no run with a route and RL; give the folder of a finished `gradprism run`")
    return found.rl_seconds * (results.trajectories or found.n_sft + found.n_rl) / found.n_rl / 3600, found.routed_seconds / 3600


@dataclass(frozen=True)
class Routed:
    """Trajectories to both sides of a run's route, and the wall seconds of its SFT, of its RL, and of both with what was probed again."""

    n_sft: int
    n_rl: int
    sft_seconds: float
    rl_seconds: float
    routed_seconds: float


def last_routed(results: Results) -> Routed | None:
    """The last run of the results that has a route and RL; None where there is none."""
    for run in reversed([run for arm in results.arms for run in arm.runs]):
        kinds = [(results.stages[name].kind, results.stages[name].wall_seconds) for name in run.stages]
        sft, rl = (sum(seconds for kind, seconds in kinds if kind == wanted) for wanted in ("sft", "rl"))
        # What goes wholly to both, as by weights, tells no share of the tasks that RL played.
        if rl and run.n_rl and run.n_sft is not None and run.n_both != run.n_rl:
            routed = sum(seconds for kind, seconds in kinds if kind in (*TRAINING, "refresh"))
            return Routed(run.n_sft, run.n_rl, sft, rl, routed)
    return None
