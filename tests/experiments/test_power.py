"""The detectable difference that is told beforehand, against simulated experiments."""

import numpy as np
import pytest

from gradprism.experiments.comparison import families
from gradprism.experiments.config import load_config
from gradprism.experiments.power import detectable, expected, seeds_of_claim
from gradprism.experiments.results import Power
from gradprism.experiments.statistics import detectable_difference, difference, interval, training_p
from gradprism.reporting.checks import power_tables
from helpers.cli import assert_refused

MINI = "configs/alfworld-mini.toml"


def simulated(rng: np.random.Generator, power: Power, S: int, T: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Successes of two arms: every training and, in the difference, every task is better or worse; tasks are alike beside that."""
    task = rng.normal(0, power.task_sd, T) / 2
    arms = []
    for sign in (1, -1):
        chance = power.success + sign * (gain / 2 + task) + rng.normal(0, power.seed_sd, (S, 1))
        arms.append((rng.random((S, T)) < np.clip(chance, 0, 1)).astype(float))
    return arms[0], arms[1]


@pytest.mark.parametrize(("S", "T"), [(3, 300), (5, 150)])
def test_the_expected_interval_is_as_wide_as_those_of_simulated_experiments(S: int, T: int) -> None:
    power, rng = Power(seed_sd=0.05, task_sd=0.2, success=0.5), np.random.default_rng(0)
    found = [difference(*simulated(rng, power, S, T, 0.0)) for _ in range(300)]
    said = expected(power, S, T)
    assert np.sqrt(np.mean([i.standard_error**2 for i in found])) == pytest.approx(said.standard_error, rel=0.06)
    assert said.high == pytest.approx(-said.low) and S - 1 <= said.degrees < (S - 1) * (T - 1)


@pytest.mark.parametrize(("S", "family"), [(4, 1), (5, 5)])
def test_four_of_five_experiments_find_the_detectable_difference(S: int, family: int) -> None:
    power, rng, T = Power(seed_sd=0.04, task_sd=0.2, success=0.5), np.random.default_rng(1), 300
    said = detectable(power, S, T, family)
    assert said is not None
    found = [training_p(*simulated(rng, power, S, T, said.in_family)) for _ in range(400)]
    assert np.mean([p is not None and p < 0.05 / family for p in found]) == pytest.approx(0.8, abs=0.07)


def test_more_seeds_and_fewer_claims_detect_less() -> None:
    power = Power()
    by_seeds = [detectable(power, S, 300, 5) for S in (2, 3, 5, 10)]
    values = [each.in_family for each in by_seeds if each]
    assert values == sorted(values, reverse=True) and len(values) == 4
    assert all(each.alone < each.in_family for each in by_seeds if each)
    assert detectable(power, 1, 300, 5) is None, "one seed says nothing of others"
    assert detectable(power, 5, 1, 5) is None, "nor one task"
    certain = detectable(Power(seed_sd=0, task_sd=0, success=1), 3, 300, 5)
    equal = interval(np.zeros((3, 300)))
    assert certain is not None and certain.alone == pytest.approx(detectable_difference([equal])), "what an experiment finds then"
    assert 0 < certain.alone < certain.in_family < 0.05


def test_a_claim_has_the_seeds_of_both_arms() -> None:
    config = load_config(MINI, ["seeds=[0, 1, 2, 3, 4]"])
    claims = {claim.text: claim for claim in config.claims}
    sizes = families(config.claims)
    assert sizes["main"] == 5 and sum(sizes.values()) == len(config.claims)
    arms = [arm.model_copy(update={"max_seeds": 3}) if arm.name == "inverse-gini" else arm for arm in config.arms]
    config = config.model_copy(update={"arms": arms})
    assert seeds_of_claim(config, claims["PRISM (Gini) beats a random split"]) == 5
    assert seeds_of_claim(config, claims["Inverting the route hurts (Gini)"]) == 3
    assert seeds_of_claim(config, claims["RL on everything beats SFT on everything"].model_copy(update={"worse": "base"})) == 5


def test_power_is_told_before_anything_runs(cli, tmp_path, monkeypatch) -> None:
    code, out, err = cli("experiment", "power", MINI, "--seed-sd", "4", "--task-sd", "20", "--set", "seeds=[0,1,2,3,4]")
    assert (code, err) == (0, "")
    assert "standard deviation of 4 points over an arm's training seeds, and of 20 points over tasks" in out
    said = detectable(Power(seed_sd=0.04, task_sd=0.2, success=0.45), 5, 300, 5)
    assert said is not None and f"{100 * said.alone:.1f}" in out and f"{100 * said.in_family:.1f}" in out
    assert cli("experiment", "power", MINI, "--seed-sd", "0", "--task-sd", "0", "--success", "100")[0] == 0, "nothing varies"
    assert cli("experiment", "power", MINI, "--set", "evaluation.splits={unseen=1}")[0] == 0, "one task tells nothing"
    one = "claims=[{text='it does', better='gini', worse='random', family='main'}]"
    said = detectable(Power(seed_sd=0.04, task_sd=0.2, success=0.45), 5, 300, 1)
    code, out, _ = cli("experiment", "power", MINI, "--seed-sd", "4", "--task-sd", "20", "--set", "seeds=[0,1,2,3,4]", "--set", one)
    assert code == 0 and power_tables(load_config(MINI, [one]), Power())[1].headings == ["seeds", "alone", "the one claim"]
    assert said is not None and said.alone < said.in_family and out.count(f"{100 * said.in_family:.1f}") == 2
    assert_refused(cli("experiment", "power", MINI, "--seed-sd", "-4"), "--seed-sd")
    assert_refused(cli("experiment", "power", "nowhere.toml"), "no such file")
