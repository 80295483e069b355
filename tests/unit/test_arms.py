"""Arms x seeds to a graph of stages."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

import gradprism.training.rl as rl_module
from gradprism.experiments import steps
from gradprism.experiments.arms import ExperimentConfig, arm_config, plan
from gradprism.experiments.config import RouteConfig, load_config
from gradprism.runtime.errors import ConfigError
from helpers.probes import make_probe

MINI = [Path("configs/alfworld-mini.toml"), Path("configs/webshop-mini.toml")]


def load(file, *overrides):
    return load_config(file, overrides, ExperimentConfig)


def kinds(planned, run):
    return [planned.graph.kinds[name] for name in run.stages]


def runs_of(planned, name):
    return [run for run in planned.runs if run.arm.name == name]


@pytest.mark.parametrize("file", MINI)
def test_every_arm_of_the_issue_is_there(file):
    config = load(file)
    names = {arm.name for arm in config.arms}
    assert names >= {"base", "sft", "grpo", "gigpo", "sft-then-rl", "random", "pass-rate", "gini", "cv", "kurtosis"}
    assert names >= {"inverse-gini", "inverse-cv", "inverse-kurtosis", "magnitude", "loss", "length", "uncertainty"}
    assert names >= {f"{metric}-{share}" for metric in ("gini", "cv") for share in (10, 30, 70, 90)}
    assert names >= {"gini-refreshed", "gini-soft"}
    assert all(len(config.seeds_of(arm)) >= 3 for arm in config.arms if arm.name != "base" and arm.group != "sweep")
    assert all(config.seeds_of(arm) == config.seeds for arm in config.arms if arm.group == "table1" and arm.name != "base")
    assert config.evaluation.seed == 0, "evaluations of all arms draw alike"


def test_what_arms_have_in_common_runs_once():
    planned = plan(load(MINI[0], "seeds=[0, 1]"))
    count = Counter(planned.graph.kinds.values())
    names = [stage.name for stage in planned.graph.stages]
    assert len(set(names)) == len(names)
    assert count["collect"] == 1
    assert count["probe"] == 1 + len(planned.audits) - 1, "one for all metrics, and those that the audit compares"
    assert count["evaluate"] == len(planned.runs)
    # Both seeds of Gini learn from one route; both of the random split have their own.
    assert len({run.route for run in runs_of(planned, "gini")}) == 1
    assert len({run.route for run in runs_of(planned, "random")}) == 2
    # SFT on everything is the first half of SFT then RL.
    for sft, both in zip(runs_of(planned, "sft"), runs_of(planned, "sft-then-rl"), strict=True):
        assert sft.stages[-1] in both.stages
    # The refreshed arm goes on from what Gini's SFT has learnt.
    [gini, _], [refreshed, _] = runs_of(planned, "gini"), runs_of(planned, "gini-refreshed")
    assert kinds(planned, gini) == ["probe", "route", "sft", "rl"]
    assert kinds(planned, refreshed) == ["probe", "route", "sft", "refresh", "sft", "rl"]
    assert refreshed.stages[:3] == gini.stages[:3]
    # What looks at no gradient pays for none.
    assert kinds(planned, runs_of(planned, "pass-rate")[0]) == ["pass-rates", "route", "sft", "rl"]
    assert kinds(planned, runs_of(planned, "random")[0]) == ["route", "sft", "rl"]
    assert kinds(planned, runs_of(planned, "loss")[0]) == ["probe", "route", "sft", "rl"]
    assert runs_of(planned, "base")[0].stages == ()
    # Of a probe whose losses alone are read, the forward pass.
    for arm in ("loss", "uncertainty"):
        assert runs_of(planned, arm)[0].forward_only == runs_of(planned, arm)[0].stages[:1]
    assert runs_of(planned, "gini")[0].forward_only == runs_of(planned, "random")[0].forward_only == ()


def test_earlier_groups_and_seeds_come_first():
    planned = plan(load(MINI[0], "seeds=[0, 1]"))
    order = [stage.name for stage in planned.graph.stages]
    last = {run.arm.group: order.index(run.evaluation) for run in planned.runs}
    assert list(last) == ["table1", "controls", "sweep", "refresh"] and sorted(last.values()) == list(last.values())
    table1 = [order.index(run.evaluation) for run in planned.runs if run.arm.group == "table1"]
    seeds = [run.seed for run in planned.runs if run.arm.group == "table1"]
    assert seeds == sorted(seeds) and table1 == sorted(table1)


def test_an_arms_part_of_rl_is_its_share_and_seeds_are_the_trainings():
    config = load(MINI[0], "rl.rounds=30")
    arms = {arm.name: arm for arm in config.arms}
    assert {
        name: arm_config(config, arms[name], 1).rl.rounds for name in ("grpo", "gini", "gini-10", "gini-90", "sft-then-rl")
    } == {
        "grpo": 30,
        "gini": 15,
        "gini-10": 3,
        "gini-90": 27,
        "sft-then-rl": 30,
    }
    own = arm_config(config, arms["gigpo"], 2)
    assert (own.rl.algorithm, own.rl.seed, own.sft.seed, own.evaluation.seed) == ("gigpo", 2, 2, 0)


def test_an_arm_whose_share_is_not_known_yet_plays_in_proportion(tmp_path, monkeypatch):
    played = []
    monkeypatch.setattr(steps, "rl", lambda config, folder, inputs: played.append(config.rl.rounds) or {})
    lengths = {"corpus": 100, "route": 50, "tasks": 20, "none": 0}
    monkeypatch.setattr(steps, "read_corpus", lambda config, inputs: [SimpleNamespace(task=i) for i in range(lengths["corpus"])])
    monkeypatch.setattr(rl_module, "read_tasks", lambda path, environment: range(lengths[path.parts[-3]]))
    monkeypatch.setattr(steps, "playable", lambda config: SimpleNamespace(task=lambda i: SimpleNamespace(id=i)))
    config = load(MINI[0], "rl.rounds=30")
    arms = {arm.name: arm for arm in config.arms}

    def rounds(arm, **inputs):
        steps.rl_in_proportion(arm_config(config, arms[arm], 0), tmp_path, {role: tmp_path / name for role, name in inputs.items()})
        return played[-1]

    assert rounds("gini", route="route", tasks="route") == 15
    assert rounds("gini-refreshed", route="route", tasks="tasks") == 6, "20 of its 50 tasks are left"
    assert rounds("gini-refreshed", route="route", tasks="none") == 15, "nothing is left, so all are played"
    assert rounds("pass-rate-hpt", route="tasks", tasks="none", corpus="corpus") == 6, "nothing is left of its route"
    assert rounds("pass-rate-hpt", route="tasks", tasks="tasks", corpus="corpus") == 6, "20 of 100 lie above the threshold"
    assert rounds("grpo", corpus="corpus") == 30


def test_a_threshold_that_sends_nothing_to_rl_is_said_before_sft_is_paid_for(tmp_path):
    make_probe(tmp_path / "probe")
    config = load(MINI[0])
    nothing = config.model_copy(update={"route": RouteConfig(policy="length", threshold=1e9)})
    with pytest.raises(ConfigError, match="nothing scores above 1e\\+09, so RL would have no task"):
        steps.route(nothing, tmp_path / "out", {"probe": tmp_path})


def test_a_threshold_is_part_of_a_route_and_needs_the_corpus_for_its_share():
    planned = plan(load(MINI[0], "seeds=[0]"))
    stages = {stage.name: stage for stage in planned.graph.stages}
    [hpt, *_] = runs_of(planned, "pass-rate-hpt")
    [pass_rate, *_] = runs_of(planned, "pass-rate")
    for run, has_it in ((hpt, True), (pass_rate, False)):
        assert run.route is not None and run.model is not None
        assert ("threshold" in stages[run.route].reads["route"]) == ("corpus" in stages[run.model].needs) == has_it
    assert hpt.stages[0] == pass_rate.stages[0], "the base is asked once"


def test_a_changed_setting_changes_only_what_depends_on_it():
    before, after = (plan(load(MINI[0], "seeds=[0]", *more)) for more in ([], ["rl.learning_rate=0.001"]))
    same = {stage.name for stage in before.graph.stages} & {stage.name for stage in after.graph.stages}
    assert {before.graph.kinds[name] for name in same} == {"collect", "probe", "route", "sft", "pass-rates", "refresh", "evaluate"}
    changed = {stage.name for stage in before.graph.stages} - same
    assert {before.graph.kinds[name] for name in changed} == {"rl", "evaluate"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["full_rl_arm=ppo"], r"no arm is called ppo"),
        (['claims=[{text="x", better="gini", worse="nobody"}]'], r"no arm is called nobody"),
        (["seeds=[]"], r"seeds: "),
        (["arms=[]"], r"arms: "),
        (["seeds=[-1]"], r"seeds\.0: .*greater than or equal to 0"),
        (["seeds=[4294967296]"], r"seeds\.0: .*less than 4294967296"),
        (["seeds=[0, 1, 0]"], r"seeds: 0, 1, 0 has one twice"),
        (["arms=[{name='a', route={rl_share=0.3, threshold=1}}]"], r"arms\.0\.route: .*either rl_share or threshold"),
        (["audit.context_lengths=[4]"], r"audit\.context_lengths\.0: .*greater than or equal to 8"),
        (['corpus.files=["a.jsonl"]'], r"corpus: .*either files or collect"),
        (["evaluation.splits={hidden=3}", "rl.evaluate_split=hidden", "rl.evaluate_tasks=3"], r"split 'hidden'"),
    ],
)
def test_mistakes_are_said_before_anything_runs(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        plan(load(MINI[0], *overrides))
    assert "Value error" not in str(caught.value) and len(str(caught.value)) < 250, "no configuration is poured out"


def test_two_arms_of_one_name_are_refused(tmp_path):
    text = MINI[0].read_text().replace('name = "cv"', 'name = "gini"').replace("../models", str(Path("models").resolve()))
    (tmp_path / "twice.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"arms gini: appear twice"):
        load(tmp_path / "twice.toml")
