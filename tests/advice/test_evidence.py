"""What the package says of the committed experiments is what their results say."""

import importlib.util
import itertools
import json
from pathlib import Path

import pytest

from gradprism.advice import evidence
from gradprism.advice.evidence import Experiment, Rule, Way, packaged
from gradprism.experiments.comparison import Comparison
from gradprism.experiments.results import Claim, read_results
from gradprism.experiments.statistics import holm

FOLDERS = sorted(path.parent for path in Path("results").glob("*/results.json"))


def script():
    spec = importlib.util.spec_from_file_location("evidence_script", "scripts/evidence.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_packaged_evidence_is_what_the_script_would_write(monkeypatch):
    assert script().gather() == evidence.PACKAGED.read_text(encoding="utf-8"), "run python scripts/evidence.py"
    monkeypatch.setattr("sys.argv", ["evidence.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        script().main()
    assert ended.value.code == 0


def test_the_check_fails_for_a_stale_file(monkeypatch, tmp_path):
    stale = tmp_path / "evidence.json"
    stale.write_text("[]\n")
    module = script()
    monkeypatch.setattr(module, "PACKAGED", stale)
    monkeypatch.setattr("sys.argv", ["evidence.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert "stale" in str(ended.value.code) and stale.read_text() == "[]\n"
    monkeypatch.setattr("sys.argv", ["evidence.py"])
    module.main()
    assert [found.name for found in packaged()] == [one["name"] for one in json.loads(stale.read_text())]


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_arms_have_the_success_and_the_price_of_their_runs(folder):
    results = read_results(folder)
    comparison, found = Comparison(results), Experiment.of(folder)
    runs = {arm.name: [run for run in arm.runs if run.success] for arm in results.arms}
    whole = next((arm.name for arm in found.arms if arm.way == Way(sft="all", rl="all")), None)

    def flops(name):
        return sum(cost.flops for cost in comparison.costs(name)) / len(runs[name])

    assert found.arms and found.trajectories == results.trajectories
    for arm in found.arms:
        successes = [int(won) for run in runs[arm.name] for won in run.success[comparison.splits[0]]]
        assert arm.success.mean == pytest.approx(sum(successes) / len(successes), abs=1e-4)
        assert arm.success.low <= arm.success.mean <= arm.success.high
        assert arm.seeds == len(runs[arm.name])
        if whole and flops(arm.name):
            assert arm.flops and arm.flops.mean == pytest.approx(flops(arm.name) / flops(whole), abs=1e-4)


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_rules_are_compared_with_chance_alike_in_all_but_the_choice(folder):
    found, comparison = Experiment.of(folder), Comparison(read_results(folder))
    claimed = {(claim.better, claim.worse): claim for claim in comparison.results.claims}
    raw = [comparison.training_p(c.first, c.second) for c in found.rules]
    assert all(p is not None for p in raw)
    corrected = holm([p for p in raw if p is not None])
    for contrast, p in zip(found.rules, corrected, strict=True):
        first, second = found.arm(contrast.first), found.arm(contrast.second)
        assert first.way == second.way and first.rule != second.rule
        assert second.rule and second.rule.policy == "random"
        measured = comparison.difference(contrast.first, contrast.second)
        assert measured and contrast.difference.mean == pytest.approx(measured.mean, abs=1e-4)
        if (contrast.first, contrast.second) not in claimed:
            assert contrast.p == pytest.approx(p, abs=1e-4)


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_claims_keep_the_p_of_their_family(folder):
    found, comparison = Experiment.of(folder), Comparison(read_results(folder))
    claims = comparison.results.claims
    seen = 0
    for claim, tested in zip(claims, comparison.tested(claims), strict=True):
        contrast = found.contrast(claim.better, claim.worse)
        if contrast and tested.p_trainings is not None:
            assert contrast.p == pytest.approx(tested.p_trainings, abs=1e-4)
            assert contrast.comparisons == sum(other.family == claim.family for other in claims)
            assert tested.difference and contrast.difference.mean == pytest.approx(tested.difference.mean, abs=1e-4)
            back = found.contrast(claim.worse, claim.better)
            assert back and (back.difference.low, back.shown) == (-contrast.difference.high, -contrast.shown)
            seen += 1
    assert seen


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_every_two_ways_are_compared(folder):
    found = Experiment.of(folder)
    plain = [arm.name for arm in found.arms if arm.rule is None or arm.rule.policy == "random"]
    better = [
        contrast.first for contrast in found.rules if contrast.p is not None and contrast.p < 0.05 and contrast.difference.low > 0
    ]
    expected = [*itertools.combinations(plain, 2), *itertools.product(better, plain)]
    assert [(c.first, c.second) for c in found.ways] == expected
    assert found.contrast(plain[0], "no such arm") is None


def test_a_claim_the_other_way_round_is_turned():
    comparison = Comparison(read_results(FOLDERS[-1]))
    first, second = "random", "sft"
    turned = comparison.results.model_copy(update={"claims": [Claim(text="", better=first, worse=second)]})
    [contrast] = evidence._contrasts(Comparison(turned), [(second, first)])
    measured = comparison.difference(second, first)
    assert measured and (contrast.first, contrast.second) == (second, first)
    assert contrast.difference.mean == pytest.approx(measured.mean, abs=1e-4)
    assert contrast.p == pytest.approx(comparison.training_p(second, first), abs=1e-4)


def test_ways_and_rules_are_told_in_words():
    ways = [Way(sft="all", rl="none"), Way(sft="none", rl="all"), Way(sft="routed", rl="routed", rl_share=0.3)]
    assert [str(way) for way in ways] == ["SFT on everything", "RL on everything", "SFT on 70 %, then RL on the other 30 %"]
    last = Way(sft="all", rl="routed", rl_share=0.5, rounds="full")
    assert str(last) == "SFT on everything, then RL on 50 % of the tasks in all rounds"
    assert [way.splits for way in (*ways, last)] == [False, False, True, True]
    assert (
        str(Rule(policy="inverse", metric="cv", normalise="per_parameter", within=("length",)))
        == "low cv (per_parameter, within length)"
    )
    assert str(Rule(policy="pass_rate")) == "pass rate"


def test_an_arm_whose_rule_is_shown_is_compared_with_every_way(tmp_path):
    ends = {"gini": "1" * 300, "random": "011" * 100}
    for name in ("results.json", "config.json"):
        values = json.loads((Path("results/webshop-mini") / name).read_text())
        values["claims"] = []
        if name == "results.json":  # of few arms, so that what is compared elsewhere corrects nothing here
            values["arms"] = [arm for arm in values["arms"] if arm["name"] in ("base", "sft", "grpo", "sft-then-rl", *ends, "cv")]
            for arm in values["arms"]:
                for run in arm["runs"] if arm["name"] in ends else []:
                    run["success"] = dict.fromkeys(run["success"], ends[arm["name"]][:300])
        (tmp_path / name).write_text(json.dumps(values))
    found = Experiment.of(tmp_path)
    assert [c.first for c in found.rules if c.shown > 0] == ["gini"]
    others = [arm.name for arm in found.arms if arm.rule is None or arm.rule.policy == "random"]
    assert all(found.contrast("gini", other) for other in others) and not found.contrast("cv", "sft")
    halves = found.arm("gini").way
    assert found.by_way({})[halves].name == "random"
    assert found.by_way({halves: Rule(policy="concentration")})[halves].name == "gini"
