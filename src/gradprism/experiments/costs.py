"""What an arm cost: stages added up, speed-ups over full RL, and whether choosing the data pays.

Runs and stages are the plain values of an experiment's `results.json`: a run names its stages, and `stages` holds what each cost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradprism.runtime.errors import DataError
from gradprism.runtime.files import read_json

Cost = dict[str, float]
ADDED = (
    "wall_seconds",
    "cpu_seconds",
    "gpu_seconds",
    "flops",
    "tokens_forward",
    "tokens_backward",
    "tokens_generated",
    "environment_steps",
)
PEAKS = ("peak_memory_mib", "peak_gpu_memory_mib")
# All else that an arm's model cost is the choosing: probing, routing, probing again, sampling for pass rates.
TRAINING = ("sft", "rl")


def stage_flops(parameters_in_matmuls: int, tokens_forward: float, tokens_backward: float) -> float:
    """Floating-point operations of a stage, estimated: 2 a parameter and token read, 4 a parameter and token of a backward pass.

    `parameters_in_matmuls` leaves out embeddings that are looked up. The counts are those of a stage's cost. `tokens_generated` is not
    asked for, since each is in `tokens_forward` already: generating reads every token but an answer's last, which is read with what
    follows it, and RL's count is what playing read and what its updates read (`training.rl`, `rollouts.generator`).

    In training, a backward pass forms the gradients of inputs and of weights, 2 each. A probe's forms those of inputs, 2, and for the
    norms at most as much again, since the cheaper of two forms is taken and the dearer is the weight gradient itself: it is charged
    in full, an upper bound. Left out are attention scores, the environment, the optimizer, activations computed twice, and RL's
    passes for old and reference log-probabilities, where it makes any.
    """
    return parameters_in_matmuls * (2.0 * tokens_forward + 4.0 * tokens_backward)


def stage_cost(stage: Mapping[str, Any], *, forward_only: bool = False) -> Cost:
    """The `ADDED` costs of a stage and its `PEAKS` in MiB (0 where unknown).

    Evaluations that it stopped for are no part of its times: their wall time was measured, and of CPU and GPU time the same share is
    taken off. With `forward_only`, what a probe would cost that stops before the backward pass: no backward tokens, and times by the
    share of the FLOPs that is left, an estimate.
    """
    cost = {name: float(stage.get(name) or 0) for name in ADDED}
    if cost["wall_seconds"]:
        kept = 1 - (stage.get("evaluation_seconds") or 0) / cost["wall_seconds"]
        cost |= {name: kept * cost[name] for name in _TIMES}
    if forward_only:
        forward, backward = (stage_flops(1, *tokens) for tokens in ((cost["tokens_forward"], 0), (0, cost["tokens_backward"])))
        left = forward / (forward + backward) if forward else 1.0
        cost |= {name: left * cost[name] for name in (*_TIMES, "flops")} | {"tokens_backward": 0.0}
    return {**cost, **{name: float(stage.get(name) or 0) for name in PEAKS}}


_TIMES = ("wall_seconds", "cpu_seconds", "gpu_seconds")


def total(costs: Sequence[Cost]) -> Cost:
    """Sum of the `ADDED` costs, and the largest of each peak."""
    return {
        **{name: sum(cost[name] for cost in costs) for name in ADDED},
        **{name: max((cost[name] for cost in costs), default=0.0) for name in PEAKS},
    }


def run_cost(run: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]], *, choosing: bool | None = None) -> Cost:
    """What a run's model cost: its distinct stages; only those that are not training (`choosing`), or only those that are."""
    return total([cost for kind, cost in _stage_costs(run, stages) if choosing is None or choosing == (kind not in TRAINING)])


def _stage_costs(run: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Cost]]:
    """Kind and cost of each of a run's distinct stages, in order; of those in `forward_only` it is charged only what it reads."""
    forward_only = run.get("forward_only") or ()
    names = dict.fromkeys(run["stages"])
    return [(stages[name]["kind"], stage_cost(stages[name], forward_only=name in forward_only)) for name in names]


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """Mean over an arm's runs; of the peaks the largest."""
    added = total(costs)
    return {name: value if name in PEAKS else value / len(costs) for name, value in added.items()}


@dataclass(frozen=True)
class Speedup:
    """How many times cheaper an arm is: ratio of means, and the least and greatest of its runs against the other's mean."""

    ratio: float
    low: float
    high: float


def speedup(arm: Sequence[Cost], full_rl: Sequence[Cost], name: str) -> Speedup | None:
    """Speed-up of an arm's runs over those of full RL in the cost `name`; None where either has no run, or a run costs nothing."""
    if not arm or not full_rl or not all(cost[name] > 0 for cost in (*arm, *full_rl)):
        return None
    whole = mean_cost(full_rl)[name]
    ratios = [whole / cost[name] for cost in arm]
    return Speedup(whole / mean_cost(arm)[name], min(ratios), max(ratios))


@dataclass(frozen=True)
class Saving:
    """What choosing the data costs, and what the smaller training saves against full RL, in the unit of the cost; means over runs."""

    choosing: float
    saved: float

    @property
    def pays(self) -> bool:
        """False is the failure signature "the probe costs more than it saves"."""
        return self.choosing < self.saved


def saving(
    runs: Sequence[Mapping[str, Any]], full_rl: Sequence[Cost], stages: Mapping[str, Mapping[str, Any]], name: str
) -> Saving | None:
    """Saving of an arm in the cost `name`; None where nothing was spent on choosing, or one of the arms has no run."""
    if not runs or not full_rl:
        return None
    choosing = mean_cost([run_cost(run, stages, choosing=True) for run in runs])[name]
    training = mean_cost([run_cost(run, stages, choosing=False) for run in runs])[name]
    return Saving(choosing, mean_cost(full_rl)[name] - training) if choosing > 0 else None


def cost_at(run: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]], stage: str, fraction: float, name: str) -> float:
    """What a run had cost, in `name`, when `fraction` of its training by `stage` ("base", "sft" or "rl") was done.

    Costs are taken to grow evenly from the first stage of that kind to the last; what comes before is paid for in full. The base
    costs nothing.
    """
    if stage == "base":
        return 0.0
    each = _stage_costs(run, stages)
    own, costs = [kind == stage for kind, _ in each], [cost[name] for _, cost in each]
    if not any(own):
        return sum(costs)
    first, last = own.index(True), len(own) - own[::-1].index(True)
    return sum(costs[:first]) + fraction * sum(costs[first:last])


def final_success(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean over an arm's runs of the last point of their training curves, a fraction; None where no run has one."""
    last = [run["curve"][-1]["success"] for run in runs if run.get("curve")]
    return sum(last) / len(last) if last else None


def mean_curve(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """Stage, fraction and mean success of the points that all runs with a curve have, in order; empty where there is none."""
    curves = [{(p["stage"], p["fraction"]): p["success"] for p in run["curve"]} for run in runs if run.get("curve")]
    shared = [point for point in (curves[0] if curves else {}) if all(point in curve for curve in curves)]
    return [(*point, sum(curve[point] for curve in curves) / len(curves)) for point in shared]


def cost_to_reach(run: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]], target: float, name: str) -> float | None:
    """The cost `name` of a run at the first point of its curve with a success of at least `target`; None where it has none."""
    for point in run.get("curve") or ():
        if point["success"] >= target - 1e-9:  # a mean of equal successes may be a rounding above each
            return cost_at(run, stages, point["stage"], point["fraction"], name)
    return None


def projected_hours(run: Path) -> tuple[float, float]:
    """Hours that RL on everything would take, and that SFT and RL as routed took, by the `results.json` of a `gradprism run`.

    The former is the run's RL over the share of the trajectories that it played. Raises `MissingFileError`, and `DataError` for a file
    that is of no finished run.
    """
    file = run / "results.json"
    results = read_json(file)
    try:
        seconds = {str(stage["name"]): float(stage["wall_seconds"]) for stage in results["stages"]}
        full_rl = seconds["rl"] * results["routing"]["n_trajectories"] / results["routing"]["n_rl"]
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise DataError(f"{file}: tells no stages and routing; give the folder of a finished `gradprism run`") from None
    return full_rl / 3600, sum(seconds.get(stage, 0.0) for stage in ("sft", "refresh", "sft-refreshed", "rl")) / 3600
