"""Costs of arms by hand."""

import json
from pathlib import Path

import pytest

from gradprism.experiments import costs
from gradprism.experiments.results import Cost, Point, Run, Stage, check_results
from gradprism.reporting.pages import write_tables
from gradprism.runtime.errors import DataError
from helpers.experiments import synthetic

STAGES = {
    "probe": Stage(kind="probe", wall_seconds=10, flops=6, peak_memory_mib=500, tokens_forward=7),
    "route": Stage(kind="route", wall_seconds=2),
    "sft": Stage(kind="sft", wall_seconds=120, evaluation_seconds=20, cpu_seconds=150, flops=60, peak_memory_mib=900),
    "rl": Stage(kind="rl", wall_seconds=400, evaluation_seconds=100, flops=200, environment_steps=50),
    "all": Stage(kind="rl", wall_seconds=700, evaluation_seconds=100, flops=600),
    "slow": Stage(kind="rl", wall_seconds=1000, flops=600),
    "refresh": Stage(kind="refresh", wall_seconds=5),
}


def point(stage: str, fraction: float, success: float) -> Point:
    return Point(stage=stage, fraction=fraction, success=success, tasks=10)


def run(*stages: str, curve: list[Point] | None = None, forward_only: list[str] | None = None) -> Run:
    return Run(seed=0, stages=list(stages), curve=curve or [], forward_only=forward_only or [])


RUN = run(
    *("probe", "route", "sft", "rl", "sft"),
    curve=[point("base", 0, 0.1), point("sft", 0.5, 0.2), point("rl", 0.25, 0.3), point("rl", 1, 0.5)],
)
FULL = [costs.run_cost(run(name), STAGES) for name in ("all", "slow")]


def test_flops_by_hand() -> None:
    assert costs.stage_flops(10, 5, 3) == 10 * (2 * 5 + 4 * 3)
    assert costs.stage_flops(10, 0, 0) == 0


def test_a_run_costs_each_of_its_stages_once_less_evaluations() -> None:
    cost = costs.run_cost(RUN, STAGES)
    assert cost == Cost(
        wall_seconds=10 + 2 + 100 + 300,
        cpu_seconds=150 * 100 / 120,  # the share of the evaluations taken off
        flops=266,
        tokens_forward=7,
        environment_steps=50,
        peak_memory_mib=900,
    )
    choosing, training = (costs.run_cost(RUN, STAGES, choosing=side).wall_seconds for side in (True, False))
    assert (choosing, training) == (12, 400)
    assert costs.run_cost(run(), STAGES).wall_seconds == 0


def test_means_take_the_largest_peak() -> None:
    mean = costs.mean_cost([Cost(**dict.fromkeys(Cost.model_fields, x)) for x in (1.0, 3.0)])
    assert (mean.wall_seconds, mean.peak_memory_mib) == (2.0, 3.0)


def test_a_sum_may_be_beyond_what_one_stage_can_cost() -> None:
    stages = {name: Stage(kind="rl", wall_seconds=1e10, flops=1e30) for name in ("a", "b")}
    cost = costs.run_cost(run("a", "b"), stages)
    assert (cost.wall_seconds, cost.flops) == (2e10, 2e30)
    assert costs.mean_cost([cost, cost]) == cost


COSTS = [*Cost.model_fields, "evaluation_seconds"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({name: 1e308}, rf"stages\.rl-gini-0\.{name}: Input should be less than or equal to 10+;") for name in COSTS),
        *(({name: float("nan")}, rf"stages\.rl-gini-0\.{name}: Input should be ") for name in COSTS),
        ({"wall_seconds": 29.5}, r"stages\.rl-gini-0: evaluation_seconds is 30, more than its wall_seconds, 29\.5"),
        ({"wall_seconds": 1e-320}, r"stages\.rl-gini-0: evaluation_seconds is 30, more than its wall_seconds, "),
    ],
)
def test_a_cost_that_nothing_can_have_is_a_mistake_of_the_file(tmp_path: Path, changes: dict[str, float], message: str) -> None:
    results = synthetic()
    for stage in results["stages"]:
        if stage.startswith("rl-gini-"):
            results["stages"][stage] |= changes
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(DataError, match=message) as caught:
        write_tables(tmp_path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(tmp_path / "results.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    (tmp_path / "results.json").write_text(json.dumps(synthetic() | {"model": {"id": "x", "parameters": 10**400}}))
    with pytest.raises(DataError, match=r"model\.parameters: Input should be less than or equal to 10+;"):
        write_tables(tmp_path)


def test_speedup_is_a_ratio_of_means_with_the_range_of_runs() -> None:
    arm = [costs.run_cost(run(stage), STAGES) for stage in ("sft", "rl")]
    found = costs.speedup(arm, FULL, "wall_seconds")
    assert found == costs.Speedup(800 / 200, 800 / 300, 800 / 100)
    assert costs.speedup(FULL, FULL, "wall_seconds") == costs.Speedup(1.0, 0.8, 800 / 600)
    assert costs.speedup([], FULL, "flops") is None
    assert costs.speedup(arm, [], "flops") is None
    assert costs.speedup([costs.run_cost(run("route"), STAGES)], FULL, "flops") is None


@pytest.mark.parametrize(("probe", "pays"), [(10.0, True), (397.0, True), (398.0, False)])
def test_choosing_pays_while_it_costs_less_than_training_saves(probe: float, pays: bool) -> None:
    stages = {**STAGES, "probe": STAGES["probe"].model_copy(update={"wall_seconds": probe})}
    found = costs.saving([RUN], FULL, stages, "wall_seconds")
    assert found == costs.Saving(probe + 2, 800 - 400)
    assert found is not None and found.pays is pays


def test_there_is_no_saving_without_choosing_or_without_full_rl() -> None:
    assert costs.saving([run("sft")], FULL, STAGES, "wall_seconds") is None
    assert costs.saving([RUN], [], STAGES, "wall_seconds") is None
    assert costs.saving([], FULL, STAGES, "wall_seconds") is None


@pytest.mark.parametrize(
    ("stage", "fraction", "cost"),
    [("base", 0.0, 0.0), ("sft", 0.0, 12.0), ("sft", 0.5, 62.0), ("rl", 0.25, 187.0), ("rl", 1.0, 412.0)],
)
def test_cost_grows_evenly_within_a_stage(stage: str, fraction: float, cost: float) -> None:
    assert costs.cost_at(RUN, STAGES, stage, fraction, "wall_seconds") == cost


def test_what_comes_after_a_stage_is_not_paid_for_within_it() -> None:
    refreshed = run("probe", "sft", "refresh", "rl")
    assert costs.cost_at(refreshed, STAGES, "sft", 1.0, "wall_seconds") == 110
    assert costs.cost_at(refreshed, STAGES, "rl", 0.0, "wall_seconds") == 115


def test_probing_again_between_two_stages_of_a_kind_is_part_of_them() -> None:
    stages = {**STAGES, "more": Stage(kind="sft", wall_seconds=45)}
    refreshed = run("probe", "sft", "refresh", "more", "rl")
    assert costs.cost_at(refreshed, stages, "sft", 1.0, "wall_seconds") == 10 + 100 + 5 + 45
    assert costs.cost_at(refreshed, stages, "rl", 0.0, "wall_seconds") == 160


def test_cost_to_reach_is_that_of_the_first_point_there() -> None:
    assert costs.cost_to_reach(RUN, STAGES, 0.05, "wall_seconds") == 0
    assert costs.cost_to_reach(RUN, STAGES, 0.3, "wall_seconds") == 187
    assert costs.cost_to_reach(RUN, STAGES, 0.3, "flops") == 66 + 0.25 * 200
    assert costs.cost_to_reach(RUN, STAGES, 0.51, "wall_seconds") is None
    assert costs.cost_to_reach(run(), STAGES, 0.1, "wall_seconds") is None
    assert costs.cost_to_reach(RUN, STAGES, sum([0.1] * 5), "wall_seconds") == 412


def test_final_success_is_the_mean_of_last_points() -> None:
    assert costs.final_success([RUN, run(curve=[point("rl", 1, 0.7)]), run()]) == pytest.approx(0.6)
    assert costs.final_success([run()]) is None


def test_what_needs_no_backward_pass_is_charged_for_none() -> None:
    probe = Stage(kind="probe", wall_seconds=9, cpu_seconds=18, tokens_forward=100, tokens_backward=100, flops=600)
    stages = {**STAGES, "both": probe}
    whole, forward = (costs.run_cost(run("both", "sft", forward_only=only), stages, choosing=True) for only in ([], ["both"]))
    # Of 2 + 4 per token a forward pass is 2.
    assert whole.flops == 600 and forward.flops == pytest.approx(200)
    assert (forward.wall_seconds, forward.cpu_seconds) == (pytest.approx(3), pytest.approx(6))
    assert (forward.tokens_forward, forward.tokens_backward) == (100, 0)
    assert costs.cost_at(run("both", "sft", forward_only=["both"]), stages, "sft", 0.5, "wall_seconds") == pytest.approx(3 + 50)


def test_a_mean_curve_is_of_the_points_that_all_runs_have() -> None:
    runs = [
        run(curve=[point("rl", 0.5, 0.9), point("rl", 1, 0.4)]),
        run(curve=[point("rl", 0.25, 1.0), point("rl", 0.5, 0.3), point("rl", 1, 0.5)]),
    ]
    assert costs.mean_curve(runs) == [("rl", 0.5, pytest.approx(0.6)), ("rl", 1, pytest.approx(0.45))]
    assert costs.mean_curve([run()]) == []


def test_hours_of_full_rl_are_projected_from_a_run_that_played_a_share() -> None:
    results = synthetic(seeds=1)
    results["arms"] = [arm for arm in results["arms"] if arm["name"] in ("base", "gini")]
    # 58 minutes and half a minute of evaluations for half of the trajectories; SFT took 7.5.
    full, routed = costs.projected_hours(check_results(results))
    assert (full, routed) == (pytest.approx(2 * 58.5 / 60), pytest.approx((58.5 + 7.5) / 60))
    results["arms"] = results["arms"][:1]
    with pytest.raises(DataError, match="no run with a route and RL"):
        costs.projected_hours(check_results(results))
