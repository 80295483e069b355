"""Arms × seeds to a graph of stages."""

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gradprism.environments.webshop.generated import generate_catalogue
from gradprism.experiments import data_work, model_work
from gradprism.experiments.config import RouteConfig, load_config
from gradprism.experiments.plan import Plan
from gradprism.experiments.stage import Store, with_needs
from gradprism.experiments.stages import Base, Collect, Files, Probe, Refresh, Rl, Route, Sft, World
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.files import write_json
from gradprism.trajectories.chat_options import ChatOptions
from helpers.probes import make_probe

MINI = [Path("configs/alfworld-mini.toml"), Path("configs/webshop-mini.toml")]


def plan(file, *overrides) -> Any:
    return Plan(load_config(file, overrides))


def all_stages(planned):
    return with_needs(planned.wanted())


def kinds(run):
    return [stage.kind for stage in run.stages]


def names(run):
    return [stage.name for stage in run.stages]


def runs_of(planned, name):
    return [run for run in planned.runs if run.arm.name == name]


@pytest.mark.parametrize("file", MINI)
def test_every_arm_of_the_issue_is_there(file):
    config = load_config(file)
    there = {arm.name for arm in config.arms}
    assert there >= {"base", "sft", "grpo", "gigpo", "sft-then-rl", "random", "pass-rate", "gini", "cv", "kurtosis"}
    assert there >= {"inverse-gini", "inverse-cv", "inverse-kurtosis", "magnitude", "loss", "length", "uncertainty"}
    assert there >= {f"{metric}-{share}" for metric in ("gini", "cv") for share in (10, 30, 70, 90)}
    assert there >= {"gini-refreshed", "gini-soft"}
    assert all(len(config.seeds_of(arm)) >= 3 for arm in config.arms if arm.name != "base" and arm.group != "sweep")
    assert all(config.seeds_of(arm) == config.seeds for arm in config.arms if arm.group == "table1" and arm.name != "base")
    assert config.evaluation.seed == 0, "evaluations of all arms draw alike"


def test_what_arms_have_in_common_runs_once():
    planned = plan(MINI[0], "seeds=[0, 1]")
    count = Counter(stage.kind for stage in all_stages(planned).values())
    assert planned.audit is not None
    assert (count["collect"], count["audit"]) == (1, 1)
    assert count["probe"] == 1 + len(planned.audit.others), "one for all metrics, and those that the audit compares"
    assert planned.audit.labels == ("dtype bfloat16", "cut to 256 tokens", "after sft")
    assert count["evaluate"] == len(planned.runs)
    # Both seeds of Gini are trained on one route; both of the random split have their own.
    assert len({run.route.name for run in runs_of(planned, "gini")}) == 1
    assert len({run.route.name for run in runs_of(planned, "random")}) == 2
    # SFT on everything is the first half of SFT then RL.
    for sft, both in zip(runs_of(planned, "sft"), runs_of(planned, "sft-then-rl"), strict=True):
        assert names(sft)[-1] in names(both)
    # The refreshed arm goes on from Gini's SFT.
    [gini, _], [refreshed, _] = runs_of(planned, "gini"), runs_of(planned, "gini-refreshed")
    assert kinds(gini) == ["probe", "route", "sft", "rl"]
    assert kinds(refreshed) == ["probe", "route", "sft", "refresh", "sft", "rl"]
    assert names(refreshed)[:3] == names(gini)[:3]
    # What looks at no gradient pays for none.
    assert kinds(runs_of(planned, "pass-rate")[0]) == ["pass-rates", "route", "sft", "rl"]
    assert kinds(runs_of(planned, "random")[0]) == ["route", "sft", "rl"]
    assert kinds(runs_of(planned, "loss")[0]) == ["probe", "route", "sft", "rl"]
    assert runs_of(planned, "base")[0].stages == ()
    # Of a probe whose losses alone are read, the forward pass.
    for arm in ("loss", "uncertainty"):
        assert runs_of(planned, arm)[0].forward_only == runs_of(planned, arm)[0].stages[:1]
    assert runs_of(planned, "gini")[0].forward_only == runs_of(planned, "random")[0].forward_only == ()


def test_a_run_is_an_experiment_of_one_seed():
    planned = plan(Path("configs/quickstart.toml"))
    assert [(run.arm.name, run.seed, kinds(run)) for run in planned.runs] == [
        ("base", 0, []),
        ("sft", 0, ["probe", "route", "sft"]),
        ("rl", 0, ["probe", "route", "sft", "rl"]),
    ]
    rl = planned.runs[-1].stages[-1]
    assert isinstance(rl, Rl) and rl.config.rounds == 30 and rl.share_of is None
    assert (rl.config.context_length, rl.config.tasks_per_round) == (1024, 16), "the model's, where RL has none of its own"
    assert len(all_stages(planned)) == 8, "seven, and the audit of the probe"


def test_earlier_groups_and_seeds_come_first():
    planned = plan(MINI[0], "seeds=[0, 1]")
    order = list(all_stages(planned))
    last = {run.arm.group: order.index(run.evaluation.name) for run in planned.runs}
    assert list(last) == ["table1", "controls", "sweep", "refresh"] and sorted(last.values()) == list(last.values())
    table1 = [order.index(run.evaluation.name) for run in planned.runs if run.arm.group == "table1"]
    seeds = [run.seed for run in planned.runs if run.arm.group == "table1"]
    assert seeds == sorted(seeds) and table1 == sorted(table1)


def rl_of(planned, arm, place=0):
    stage = runs_of(planned, arm)[place].stages[-1]
    assert isinstance(stage, Rl)
    return stage


def test_an_arms_part_of_rl_is_its_share_and_seeds_are_the_trainings():
    planned = plan(MINI[0], "rl.rounds=30", "seeds=[0, 1, 2]")
    steps = {name: rl_of(planned, name).config.rounds for name in ("grpo", "gini", "gini-10", "gini-90", "sft-then-rl")}
    assert steps == {"grpo": 30, "gini": 15, "gini-10": 3, "gini-90": 27, "sft-then-rl": 30}
    own = rl_of(planned, "gigpo", 2).config
    assert (own.algorithm, own.seed) == ("gigpo", 2)
    [*_, sft] = runs_of(planned, "sft")[2].stages
    assert isinstance(sft, Sft) and sft.config.seed == 2 and runs_of(planned, "sft")[2].evaluation.config.seed == 0


def test_an_arm_whose_share_is_not_known_yet_plays_in_proportion(tmp_path, monkeypatch):
    planned = plan(MINI[0], "rl.rounds=30", "seeds=[0]")
    environment: Any = SimpleNamespace(task=lambda i: SimpleNamespace(id=i))
    store = Store(tmp_path)

    def rounds(arm, routed, left):
        lengths = {Route: routed, Refresh: left, Collect: 100}
        stage = rl_of(planned, arm)
        monkeypatch.setattr(model_work, "tasks_of", lambda stage, store, environment: list(range(lengths[type(stage)])))
        return model_work.rl_rounds(stage, len(model_work.rl_tasks(stage, store, environment)), store, environment)

    assert rounds("gini", 50, 0) == 15
    assert rounds("gini-refreshed", 50, 20) == 6, "20 of its 50 tasks are left"
    assert rounds("gini-refreshed", 50, 0) == 15, "nothing is left, so all are played"
    assert rounds("pass-rate-hpt", 20, 0) == 6, "20 of 100 lie above the threshold"
    assert rounds("grpo", 0, 0) == 30


def test_a_threshold_that_leaves_a_side_empty_is_said_before_training_is_paid_for(tmp_path):
    config = load_config(MINI[0])
    probe = Probe(Base.of(config.model, 1), Files((), None, ()), None)
    make_probe(Store(tmp_path).path(probe) / data_work.PROBE)
    with pytest.raises(ConfigError, match="nothing scores above 1e\\+09, so RL would have no task"):
        data_work.route_corpus(Route(probe, RouteConfig(policy="length", threshold=1e9), 0), tmp_path / "out", Store(tmp_path))
    made = data_work.route_corpus(Route(probe, RouteConfig(policy="length", threshold=0.0), 0), tmp_path / "out", Store(tmp_path))
    assert made.found.n_sft == 0 and "nothing to imitate SFT leaves its model as it is" in made.headline


def test_a_threshold_needs_the_corpus_for_its_share():
    planned = plan(MINI[0], "seeds=[0]")
    [hpt, *_], [pass_rate, *_] = runs_of(planned, "pass-rate-hpt"), runs_of(planned, "pass-rate")
    assert rl_of(planned, "pass-rate-hpt").share_of == planned.probe.corpus and rl_of(planned, "pass-rate").share_of is None
    assert hpt.route.config.threshold == 0.0
    assert hpt.stages[0].name == pass_rate.stages[0].name, "the base is asked once"


def test_a_changed_setting_changes_only_what_depends_on_it():
    before, after = (all_stages(plan(MINI[0], "seeds=[0]", *more)) for more in ([], ["rl.learning_rate=0.001"]))
    same = before.keys() & after.keys()
    assert {before[name].kind for name in same} == {
        *("collect", "probe", "route", "sft", "pass-rates", "refresh", "evaluate", "audit")
    }
    assert {before[name].kind for name in before.keys() - same} == {"rl", "evaluate"}


def test_nothing_that_changes_no_result_changes_a_key():
    before = all_stages(plan(MINI[0], "seeds=[0]"))
    more = ["environment.workers=2", "rl.save_every=1", "sft.save_steps=3", "rl.keep_checkpoints=true", "out=elsewhere"]
    assert all_stages(plan(MINI[0], "seeds=[0]", *more)).keys() == before.keys()


def test_a_file_counts_by_what_is_in_it(tmp_path):
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).write_text(text)
    worlds = [World("webshop", {}, *_contents(tmp_path / name), None) for name in "abc"]
    assert worlds[0] == worlds[1] != worlds[2]


def test_a_catalogue_counts_by_its_contents_wherever_it_lies(tmp_path):
    items, wanted = generate_catalogue(40, 0)
    for name in "abc":
        write_json(tmp_path / name / "items_ins_v2.json", wanted)
        changed = [{**item, "pricing": "$11.11"} if name == "c" and n == 3 else item for n, item in enumerate(items)]
        write_json(tmp_path / name / "items_shuffle.json", changed)
    config = load_config(MINI[1]).environment
    one, same, other = (
        World.of(config.model_copy(update={"options": {"data_dir": str(tmp_path / name), "goals": "synthetic"}})) for name in "abc"
    )
    assert one == same != other and dict(one.options) == {"goals": "synthetic"}


def _contents(path):
    return {"catalogue": path.read_text()}, {"catalogue": str(path)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["full_rl_arm=ppo"], r"no arm is called ppo"),
        (['claims=[{text="x", better="gini", worse="nobody"}]'], r"no arm is called nobody"),
        (["seeds=[]"], r"seeds: "),
        (["arms=[]"], r"no arm is called cv, cv-10"),
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
        plan(MINI[0], *overrides)
    assert "Value error" not in str(caught.value) and len(str(caught.value)) < 250, "no configuration is poured out"


def test_two_arms_of_one_name_are_refused(tmp_path):
    text = MINI[0].read_text().replace('name = "cv"', 'name = "gini"').replace("../models", str(Path("models").resolve()))
    (tmp_path / "twice.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"arms gini: appear twice"):
        load_config(tmp_path / "twice.toml")


def test_options_of_the_chat_template_are_causes(tmp_path):
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages }}")
    own = [f"model.chat_template={template}"]
    sets = [
        ["thoughts=keep"],
        ["merge=['system']"],
        ["calls=text"],
        ["template_date=2025-02-09"],
        ["template_args={effort = 'high'}"],
    ]
    sets = [[], own, *([f"model.{one}"] for [one] in sets), [*own, "model.thoughts=keep"]]
    keys = [plan("configs/quickstart.toml", *one).probe.key for one in sets]
    assert len(set(keys)) == len(keys)
    same = plan("configs/quickstart.toml", "model.thoughts=fail", "model.merge=[]", "model.template_date=2026-01-01")
    assert same.probe.key == keys[0]


def test_a_base_that_was_trained_with_options_has_them(tmp_path):
    shutil.copytree("models/alfworld-tiny", tmp_path / "model")
    ChatOptions(thoughts="keep").save(tmp_path / "model")
    base = plan("configs/quickstart.toml", f"model.path={tmp_path}/model").base
    assert base.chat.thoughts == "keep"
    other = plan("configs/quickstart.toml", f"model.path={tmp_path}/model", "model.thoughts=drop").base
    assert other.chat.thoughts == "drop" and other.template != base.template
