"""The regime and the bars of an experiment: each condition met or not, with its figures."""

from typing import Any

import pytest

from gradprism.reporting import checks, numbers
from helpers.experiments import comparison, synthetic

NAMES = ("base", "sft", "grpo", "sft-then-rl")


def experiment(successes: dict[str, float], **more: Any) -> Any:
    """With arms that win so many of 60 tasks, all seeds the same ones but the first task."""
    results = {**synthetic(), "sft_then_rl_arm": "sft-then-rl", **more}
    for arm in results["arms"]:
        for run in arm["runs"]:
            if arm["name"] in successes:
                n = round(60 * successes[arm["name"]])
                run["success"]["unseen"] = str(run["seed"] % 2) + "1" * n + "0" * (59 - n)
    return comparison(results)


@pytest.mark.parametrize(
    ("successes", "regime", "expected"),
    [
        ((0.1, 0.3, 0.4, 0.6), {}, [True, True, True, True]),
        ((0.1, 0.4, 0.3, 0.6), {}, [True, False, True, True]),
        ((0.1, 0.3, 0.6, 0.4), {}, [True, True, False, True]),
        ((0.1, 0.3, 0.3, 0.3), {}, [True, True, False, True]),
        ((0.3, 0.3, 0.4, 0.6), {}, [False, True, True, True]),
        ((0.1, 0.3, 0.4, 0.6), {"ceiling": 0.5}, [True, True, True, False]),
    ],
)
def test_the_regime_is_the_papers(successes: tuple[float, ...], regime: dict[str, float], expected: list[bool]) -> None:
    found = experiment(dict(zip(NAMES, successes, strict=True)), regime=regime)
    assert [check.met for check in checks.regime(found)] == expected
    text = checks.regime_text(found)
    assert (text.count(": pass."), text.count(": **fail**.")) == (expected.count(True), expected.count(False))
    assert f"{numbers.points(found.difference('grpo', 'sft'))} points to SFT, all" in text


@pytest.mark.parametrize(
    ("successes", "expected"),
    [
        ((0.1, 0.3, 0.4, 0.6), [True, True]),
        ((0.1, 0.3, 0.28, 0.6), [False, True]),
        ((0.1, 0.3, 0.4, 0.37), [True, False]),
    ],
)
def test_rl_must_gain_what_the_bars_say(successes: tuple[float, ...], expected: list[bool]) -> None:
    found = experiment(dict(zip(NAMES, successes, strict=True)))
    assert [check.met for check in checks.bars(found)[:2]] == expected
    assert "RL on everything gains 20 points over the base, its interval above zero: +" in checks.bars_text(found)
    assert "points with 3 seeds" in checks.bars_text(found)


def test_a_gain_that_is_not_clear_of_zero_is_none() -> None:
    results = {**synthetic(), "sft_then_rl_arm": "sft-then-rl", "bars": {"sft_then_rl_gain": 0.05}}
    for arm in results["arms"]:
        for run in arm["runs"]:
            if arm["name"] in ("sft", "sft-then-rl"):
                won = 30 if arm["name"] == "sft" else (12, 40, 58)[run["seed"]]
                run["success"]["unseen"] = "1" * won + "0" * (60 - won)
    check = checks.bars(comparison(results))[1]
    assert check.met is False and "+11.1 [−" in check.text


@pytest.mark.parametrize(("last", "met"), [(0.60, True), (0.58, True), (0.55, False)])
def test_rl_must_not_fall_before_it_ends(last: float, met: bool) -> None:
    results = {**synthetic(), "sft_then_rl_arm": "sft-then-rl", "curve_split": "dev"}
    for arm in results["arms"]:
        for run in arm["runs"]:
            levels = ((0.0, 0.2), (0.5, 0.6), (1.0, last if arm["name"] == "grpo" else 0.6))
            run["curve"] = [{"stage": "rl", "fraction": f, "success": s, "tasks": 48} for f, s in levels]
            run["curve"].append({"stage": "kept", "fraction": 1.0, "success": 0.6, "tasks": 48})
    check = checks.bars(comparison(results))[2]
    assert check.met is met, "weights that were kept do not hide it"
    assert f"GRPO, all has 60.0 % at best and ends at {100 * last:.1f} %" in check.text and "on dev tasks" in check.text
    for arm in results["arms"]:
        for run in arm["runs"]:
            run["curve"] = []
    assert checks.bars(comparison(results))[2].met is None


def test_one_seed_decides_nothing() -> None:
    found = comparison({**synthetic(seeds=1), "sft_then_rl_arm": "sft-then-rl"})
    assert [check.met for check in (*checks.regime(found), *checks.bars(found)[:2])] == [True, None, None, True, None, None]
    assert "by itself: –; as one of the 4 claims, corrected: –." in checks.regime_text(found)


def test_one_seed_in_common_decides_nothing() -> None:
    results = {**synthetic(), "sft_then_rl_arm": "sft-then-rl"}
    for arm in results["arms"]:
        arm["runs"] = arm["runs"][:1] if arm["name"] == "sft" else arm["runs"]
    assert [check.met for check in checks.regime(comparison(results))][1:3] == [None, None]


def test_an_arm_that_is_not_named_is_not_judged() -> None:
    assert "SFT then RL on everything is above both: no arm is named so: not known." in checks.regime_text(comparison())
    assert "no arm is named so: not known." in checks.bars_text(comparison())
