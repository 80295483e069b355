"""Arms × seeds to a graph of stages."""

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gradprism as gp
from gradprism.environments.webshop.generated import generate_catalogue
from gradprism.experiments import data_work, model_work
from gradprism.experiments.arms import RouteConfig
from gradprism.experiments.config import load_config
from gradprism.experiments.experiment import Job, job_status, run_job
from gradprism.experiments.plan import Plan
from gradprism.experiments.stage import Store, with_needs
from gradprism.experiments.stages import Base, Collect, Files, PassRatesOf, Probe, Refresh, Rl, Route, Sft, World
from gradprism.routing.routes import Routes
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.files import write_json
from gradprism.trajectories.chat_options import ChatOptions
from helpers.probes import make_probe

MINI = [Path("configs/alfworld-mini.toml"), Path("configs/webshop-mini.toml")]


def plan(file, *overrides) -> Any:
    return Plan(load_config(file, overrides))


def small_plan(arms, *overrides) -> Any:
    """A plan of ALFWorld in miniature with these arms and the base alone."""
    few = ["claims=[]", "sweeps=[]", "evaluations=[]", "audit.checkpoints=[]", "reference_arms=[]", "seeds=[0]"]
    few += [f"{name}=base" for name in ("base_arm", "sft_arm", "full_rl_arm", "sft_then_rl_arm")]
    return plan(MINI[0], *few, f"arms=[{{name='base', sft='none', rl='none'}}, {arms}]", *overrides)


def all_stages(planned):
    return with_needs(planned.wanted())


def kinds(run):
    return [stage.kind for stage in run.stages]


def names(run):
    return [stage.name for stage in run.stages]


def runs_of(planned, name):
    return [run for run in planned.runs if run.arm.name == name]


@pytest.mark.parametrize("file", MINI)
def test_the_arms_beyond_table_1_are_there(file):
    config = load_config(file)
    there = {arm.name for arm in config.arms}
    assert there >= {"gigpo", "inverse-gini", "inverse-cv", "inverse-kurtosis", "magnitude", "loss", "length", "uncertainty"}
    assert there >= {f"{metric}-{share}" for metric in ("gini", "cv") for share in (10, 30, 70, 90)}
    assert there >= {"gini-refreshed", "gini-soft"}
    assert there >= {"pass-rate-band", "pass-rate-band-reversed", "gini-within-length", "gini-within-type", "gini-per-median"}
    assert there >= {"all-then-random", "all-then-gini", "all-then-gini-after", "random-full-rounds", "gini-full-rounds"}


def test_what_arms_have_in_common_runs_once():
    planned = plan(MINI[0], "seeds=[0, 1]")
    count = Counter(stage.kind for stage in all_stages(planned).values())
    assert planned.audit is not None
    assert (count["collect"], count["audit"]) == (1, 1)
    after = len(runs_of(planned, "all-then-gini-after"))
    others = len(planned.audit.others) - 1  # the audit compares with the first seed's probe after SFT, which that arm reads too
    assert count["probe"] == 1 + others + after, "one for all metrics, those that the audit compares, and those of SFT checkpoints"
    assert planned.audit.labels == ("dtype bfloat16", "cut to 256 tokens", "after sft")
    evaluations = [stage for run in planned.runs for stage in (run.evaluation, run.watched, *run.further.values()) if stage]
    assert count["evaluate"] == len({stage.name for stage in evaluations}) > len(planned.runs)
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
    planned = plan(Path("configs/quickstart.toml"), "rl.rounds=30")
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
    assert list(last) == ["table1", "controls", "order", "rounds", "sweep", "refresh", "soft"] and sorted(last.values()) == list(
        last.values()
    )
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


def test_a_threshold_that_leaves_a_side_empty_is_said(tmp_path):
    config = load_config(MINI[0])
    probe = Probe(Base.of(config.model, 1), Files((), None, ()), None)
    make_probe(Store(tmp_path).path(probe) / data_work.PROBE)
    made = data_work.route_corpus(Route(probe, RouteConfig(policy="length", threshold=1e9), 0), tmp_path / "out", Store(tmp_path))
    assert made.found.n_rl == 0 and "nothing to play RL leaves its model as it is" in made.headline
    made = data_work.route_corpus(Route(probe, RouteConfig(policy="length", threshold=0.0), 0), tmp_path / "out", Store(tmp_path))
    assert made.found.n_sft == 0 and "nothing to imitate SFT leaves its model as it is" in made.headline


def test_a_threshold_needs_the_corpus_for_its_share():
    planned = plan(MINI[0], "seeds=[0]")
    [hpt, *_], [pass_rate, *_] = runs_of(planned, "pass-rate-hpt"), runs_of(planned, "pass-rate")
    assert rl_of(planned, "pass-rate-hpt").share_of == planned.probe.corpus and rl_of(planned, "pass-rate").share_of is None
    assert hpt.route.config.threshold == 0.0
    assert hpt.stages[0].name == pass_rate.stages[0].name, "the base is asked once"


def test_a_band_tells_what_went_to_neither(tmp_path):
    config = load_config(MINI[0])
    probe = Probe(Base.of(config.model, 1), Files((), None, ()), None)
    make_probe(Store(tmp_path).path(probe) / data_work.PROBE)
    wanted = RouteConfig(policy="length", cuts=(8.0, 16.0), sides=("sft", "rl", "none"))
    made = data_work.route_corpus(Route(probe, wanted, 0), tmp_path / "out", Store(tmp_path)).found
    lengths = Routes.load(tmp_path / "out" / data_work.ROUTE).frame["n_response_tokens"].to_list()
    n = [
        sum(length <= 8 for length in lengths),
        sum(8 < length <= 16 for length in lengths),
        sum(length > 16 for length in lengths),
    ]
    assert [made.n_sft, made.n_rl, made.n_none] == n and all(n)
    assert [sum(side) for side in (made.scores.sft, made.scores.rl, made.scores.none)] == n
    assert made.scores.cuts == [8, 16] and all(sum(counts) > 0 for counts in made.scores.task_types.values())


def test_rl_on_a_part_after_sft_on_everything_is_scored_before_or_after_it():
    planned = plan(MINI[0], "seeds=[0, 1]")
    [sft, _], [before, _], after = (runs_of(planned, name) for name in ("sft", "all-then-gini", "all-then-gini-after"))
    [gini, _] = runs_of(planned, "gini")
    assert kinds(before) == ["probe", "route", "sft", "rl"] and before.route == gini.route
    assert names(before)[2] == names(sft)[-1], "SFT on everything, once"
    for run, trained in zip(after, runs_of(planned, "sft"), strict=True):
        assert kinds(run) == ["sft", "probe", "route", "rl"] and names(run)[0] == names(trained)[-1]
        assert run.route.probe.model == run.stages[0] == run.stages[-1].model
        assert planned.labels[run.route.probe.name] != "probe the base"
    assert after[0].route != after[1].route
    assert planned.audit.others[-1] == after[0].route.probe, "which the audit has anyhow"


def test_pass_rates_after_sft_are_the_checkpoints():
    route = "{name='after', sft='all', scored='after_sft', route={policy='pass_rate'}}"
    planned = plan(
        MINI[0], "seeds=[0]", f"arms=[{{name='base', sft='none', rl='none'}}, {{name='sft', rl='none', sft='all'}}, {route}]", *BARE
    )
    [run] = runs_of(planned, "after")
    assert kinds(run) == ["sft", "pass-rates", "route", "rl"]
    assert isinstance(run.route.pass_rates, PassRatesOf) and run.route.pass_rates.model == run.stages[0]
    assert run.route.probe == planned.probe and planned.audit.pass_rates is None


BARE = ["reference_arms=['base']", "claims=[]", "sweeps=[]", "evaluations=[]"]
BARE += ["sft_then_rl_arm='sft'", "full_rl_arm='sft'"]


def test_equal_rounds_are_all_of_them():
    planned = plan(MINI[0], "rl.rounds=30", "seeds=[0]")
    full, half = rl_of(planned, "gini-full-rounds"), rl_of(planned, "gini")
    assert (full.config.rounds, half.config.rounds) == (30, 15) and full.tasks == half.tasks


def test_curves_on_the_dev_split_end_with_an_evaluation_of_their_own():
    overrides = [
        "seeds=[0]",
        "rl.rounds=30",
        "rl.evaluate_every=5",
        "rl.evaluate_tasks=96",
        "rl.keep_best=false",
        "rl.stop_when=[]",
    ]
    on_main = plan(MINI[0], *overrides, "rl.evaluate_split=unseen")
    planned = plan(MINI[0], *overrides, "rl.evaluate_split=''")
    assert (on_main.curve_split, planned.curve_split) == ("unseen", "dev") and not any(run.watched for run in on_main.runs)
    watched = {run.arm.name: run.watched for run in planned.runs}
    assert watched["grpo"] is None and watched["gini"] is None, "RL ends with an evaluation of its own"
    assert watched["sft"].config.splits == {"dev": 96} and watched["sft"].model == runs_of(planned, "sft")[0].evaluation.model
    assert watched["gini-10"] and watched["pass-rate-hpt"], "three rounds, and as many as are known later"
    assert all(run.watched for run in plan(MINI[0], *overrides, "rl.evaluate_split=dev", "rl.keep_best=true").runs)
    same = {run.evaluation.name for run in on_main.runs if run.arm.rl == "none"}
    assert same == {run.evaluation.name for run in planned.runs if run.arm.rl == "none"}


def test_further_evaluations_wait_for_all_else_and_change_nothing():
    eight = "evaluations=[{name='k', temperature=1, attempts=8, splits={unseen=100}, groups=['table1'], arms=['length']}]"
    planned = plan(MINI[0], "seeds=[0]", "evaluation.splits={unseen=300}", eight)
    without = plan(MINI[0], "seeds=[0]", "evaluation.splits={unseen=300}", "evaluations=[]")
    assert [run.evaluation.name for run in planned.runs] == [run.evaluation.name for run in without.runs]
    order, further = list(all_stages(planned)), [stage for run in planned.runs for stage in run.further.values()]
    assert len(further) == 1 + len([run for run in planned.runs if run.arm.group == "table1"])
    assert {order.index(stage.name) for stage in further} == set(range(len(order) - len(further), len(order)))
    [at_8] = [run.further["k"] for run in runs_of(planned, "gini")]
    assert (at_8.config.attempts, at_8.config.temperature, at_8.config.splits) == (8, 1.0, {"unseen": 100})
    every = plan(
        MINI[0], "seeds=[4, 7, 9]", "evaluations=[{name='x', temperature=1, seeds=[9, 4]}]", "evaluation.splits={unseen=96}"
    )
    assert [(run.seed, bool(run.further)) for run in runs_of(every, "sft")] == [(4, True), (7, False), (9, True)]
    assert runs_of(every, "sft")[0].further["x"].config.splits == {"unseen": 96}, "all of the first evaluation's tasks"
    [few] = [run.further for run in runs_of(plan(MINI[0], "seeds=[0]", "evaluation.splits={unseen=96}", eight), "sft")]
    assert few["k"].config.splits == {"unseen": 96}, "no more than there are"


def test_a_changed_setting_changes_only_what_depends_on_it():
    before, after = (all_stages(plan(MINI[0], "seeds=[0]", *more)) for more in ([], ["rl.learning_rate=0.001"]))
    same = before.keys() & after.keys()
    assert {before[name].kind for name in same} == {
        *("collect", "probe", "route", "sft", "pass-rates", "refresh", "evaluate", "audit")
    }
    assert {before[name].kind for name in before.keys() - same} == {"rl", "evaluate"}


def test_settings_that_came_later_leave_the_keys_of_results_as_they_were():
    """Of a route, what its stage depends on is what it was before there were cuts and strata."""
    probe = plan(MINI[0]).probe
    of, as_before = Route(probe, RouteConfig(metric="cv", rl_share=0.3), 0), {"metric": "cv", "policy": "concentration"}
    as_before |= {"normalise": "none", "rl_share": 0.3, "threshold": None}
    assert of.causes["config"] == as_before
    within = Route(probe, RouteConfig(metric="cv", rl_share=0.3, within=("length",)), 0)
    assert within.causes["config"] == {**as_before, "within": ["length"]}


def test_what_arms_route_by_is_taken_from_the_pass():
    plain = plan(MINI[0]).probe
    assert "scores" not in plain.causes
    made = small_plan("{name='rank', route={metric='effective_rank'}}", "probe.scores=['sketch']")
    assert made.probe.scores == ("effective_rank", "sketch") and made.probe.key != plain.key
    (route,) = [stage for stage in runs_of(made, "rank")[0].stages if stage.kind == "route"]
    assert route.probe is made.probe


def test_weights_leave_half_of_the_rounds_and_all_of_the_corpus(tmp_path):
    made = small_plan("{name='w', route={weights='logistic', temperature=0.2}}", "rl.rounds=10")
    stages = {stage.kind: stage for stage in runs_of(made, "w")[0].stages}
    assert (stages["rl"].config.rounds, stages["rl"].share_of, stages["sft"].data) == (5, None, stages["route"])
    assert stages["route"].causes["config"]["weights"] == "logistic"
    make_probe(Store(tmp_path).path(made.probe) / data_work.PROBE)
    found = data_work.route_corpus(stages["route"], tmp_path / "out", Store(tmp_path)).found
    assert (found.n_sft, found.n_rl, found.n_both, sum(found.scores.both)) == (21, 21, 21, 21)


def test_an_order_of_a_route_is_kept_by_what_trains_on_its_sides():
    of = "{name='o', route={order='ascending'}}, {name='half', sft='all', route={order='ascending'}}, {name='plain'}"
    made = small_plan(of)
    stages = {name: {stage.kind: stage for stage in runs_of(made, name)[0].stages} for name in ("o", "half", "plain")}
    orders = {name: (found["sft"].config.order, found["rl"].config.order) for name, found in stages.items()}
    assert orders == {"o": ("given", "given"), "half": ("shuffled", "given"), "plain": ("shuffled", "shuffled")}
    assert "order" not in stages["plain"]["sft"].causes["config"] and "order" not in stages["plain"]["rl"].causes["config"]


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
        (["full_rl_arm=ppo"], r"full_rl_arm: no arm is called ppo"),
        (['claims=[{text="x", better="gini", worse="nobody"}]'], r"claims 'x': no arm is called nobody"),
        (["seeds=[]"], r"seeds: "),
        (["arms=[]"], r"no arm is called"),
        (["seeds=[-1]"], r"seeds\.0: .*greater than or equal to 0"),
        (["seeds=[4294967296]"], r"seeds\.0: .*less than 4294967296"),
        (["seeds=[0, 1, 0]"], r"seeds: 0, 1, 0 has one twice"),
        (["arms=[{name='a', route={rl_share=0.3, threshold=1}}]"], r"arms\.0\.route: .*either rl_share or threshold"),
        (["arms=[{name='a', route={shares=[0.5, 0.4], sides=['sft', 'rl']}}]"], r"arms\.0\.route: .*with the sum 1"),
        (
            ["arms=[{name='a', route={shares=[1.0], sides=['both']}, refresh={after_sft=true}}]"],
            r"arm a: a refresh cuts what is left",
        ),
        (["arms=[{name='a', route={cuts=[0.7, 0.1], sides=['sft', 'rl', 'sft']}}]"], r"arms\.0\.route: .*ascending"),
        (["arms=[{name='a', route={cuts=[0.1], sides=['sft', 'rl'], threshold=1}}]"], r"arms\.0\.route: .*either cuts"),
        (["arms=[{name='a', route={cuts=[0.1]}}]"], r"arms\.0\.route: .*sides: 0 given"),
        (["arms=[{name='a', route={weights='linear', order='ascending'}}]"], r"arms\.0\.route: .*give weights or an order"),
        (["arms=[{name='a', route={weights='linear', rl_share=0.3}}]"], r"arms\.0\.route: .*take the place of sides"),
        (["arms=[{name='a', route={temperature=0.3}}]"], r"arms\.0\.route: .*temperature 0.3: is that of logistic"),
        (["arms=[{name='a', route={weights='linear'}, refresh={after_sft=true}}]"], r"arm a: a refresh cuts what is left"),
        (["arms=[{name='a', route={order='up'}}]"], r"arms\.0\.route\.order: "),
        (["arms=[{name='a', route={order='ascending'}, refresh={after_sft=true}}]"], r"arm a: a refresh cuts what is left"),
        (["arms=[{name='a', route={within=['length']}, refresh={after_sft=true}}]"], r"arm a: a refresh cuts what is left"),
        (["arms=[{name='a', route={policy='target'}}]"], r"arms\.0\.route\.policy: .*an experiment has no target set"),
        (["arms=[{name='a', route={metric='sketch'}}]"], r"arms\.0\.route\.metric: .*ranks nothing by itself"),
        (
            ["arms=[{name='a', route={metric='gini_rows', normalise='per_parameter'}}]"],
            r"arms\.0\.route: .*gini_rows is not made of",
        ),
        (["probe.scores=['gini']"], r"probe\.scores: score 'gini': choose from effective_rank"),
        (["arms=[{name='a', scored='after_sft'}]"], r"arm a: scored after_sft needs sft = all and rl = routed"),
        (["evaluations=[{name='x', temperature=0}]"], r"evaluations\.0\.temperature: .*greater than 0"),
        (["evaluations=[{name='x', temperature=1, arms=['nobody']}]"], r"evaluations x: no arm is called nobody"),
        (["evaluations=[{name='x', temperature=1, seeds=[]}]"], r"evaluations\.0\.seeds: "),
        (["evaluations=[{name='x', temperature=1, groups=['mine']}]"], r"evaluations x: no arm is in group mine"),
        (["evaluations=[{name='x', temperature=1, splits={dev=3}}]"], r"evaluations x: evaluation.splits has no dev"),
        (["rl.evaluate_split=hidden", "rl.evaluate_every=5"], r"rl\.evaluate_split: environment 'alfworld' has no split 'hidden'"),
        (
            ["rl.evaluate_split=unseen", "rl.evaluate_every=5", "rl.evaluate_tasks=301", "evaluation.splits={unseen=300}"],
            r"rl\.evaluate_tasks: 'unseen', the evaluation's first split, has 300 tasks",
        ),
        (["evaluation.splits={unseen=1}", "evaluation.task_type=cook", "evaluations=[]"], r"^evaluation: task type 'cook': choose"),
        (["audit.context_lengths=[4]"], r"audit\.context_lengths\.0: .*greater than or equal to 8"),
        (['corpus.files=["a.jsonl"]'], r"corpus: .*either files or collect"),
        (["evaluation.splits={hidden=3}", "evaluations=[]"], r"evaluation.splits: environment 'alfworld' has no split 'hidden'"),
    ],
)
def test_mistakes_are_said_before_anything_runs(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        plan(MINI[0], *overrides)
    assert "Value error" not in str(caught.value) and len(str(caught.value)) < 250, "no configuration is poured out"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.splits.test=1000000"], r"^evaluation: split 'test': has 500 tasks, so not those from 0 to 1000000"),
        (["evaluation.start=600"], r"^evaluation: split 'test': has 500 tasks, so not those from 600 to"),
        (["evaluation.task_type=cars"], r"^evaluation: task type 'cars': choose one of"),
        (["rl.evaluate_every=1", "rl.evaluate_tasks=100000"], r"^rl\.evaluate_tasks: split 'eval': has 1000 tasks"),
        (["rl.evaluate_every=1", "rl.evaluate_split=train", "rl.evaluate_tasks=9999"], r"^rl\.evaluate_tasks: split 'train': has"),
        (["corpus.collect.skip=2200"], r"^corpus\.collect: split 'train': has 2228 tasks, so not those from 2200 to 2440"),
    ],
)
def test_tasks_that_are_not_there_are_said_before_anything_is_paid_for(overrides, message):
    with pytest.raises(ConfigError, match=message):
        plan(MINI[1], *overrides)


def test_very_many_tasks_of_a_split_without_end_are_not_listed():
    splits = "evaluation.splits={unseen=1000000000000}"
    assert plan(MINI[0], splits, "evaluations=[]", "corpus.collect.count=1000000000000").runs


def test_a_first_evaluation_that_tables_cannot_show_is_refused(tmp_path):
    def refused(*overrides):
        config = load_config(MINI[0], overrides)
        for start in (run_job, job_status):
            with pytest.raises(ConfigError) as caught:
                start(Job(config, tmp_path / "results"))
        return str(caught.value)

    sampled = ["evaluation.temperature=1", "evaluation.attempts=4", "evaluations=[]"]
    assert refused(*sampled).startswith("evaluation.attempts: 4, and the first evaluation plays each task once; give it under")
    assert refused(sampled[0]).startswith("evaluation.temperature: 1, and pages compare [[evaluations]] with a greedy one")
    load_config(MINI[0], [sampled[0], "evaluations=[]"]).check_first_evaluation()


@pytest.mark.parametrize("path", [*Path("configs").rglob("*.toml"), *Path("results").glob("*/config.json")], ids=str)
def test_no_first_evaluation_of_ours_is_refused(path):
    if "search" not in path.parts:
        load_config(path).check_first_evaluation()


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


def test_shares_tell_rounds_before_anything_is_routed():
    """RL's rounds are for what goes to it, alone or also to SFT."""
    wanted = RouteConfig(shares=(0.4, 0.2, 0.1, 0.3), sides=("sft", "both", "none", "rl"))
    assert wanted.known_rl_share == pytest.approx(0.5) and RouteConfig(rl_share=0.3).known_rl_share == 0.3
    assert RouteConfig(threshold=1.0).known_rl_share is RouteConfig(cuts=(1.0,), sides=("sft", "both")).known_rl_share is None
    made = small_plan("{name='o', route={shares=[0.3, 0.2, 0.5], sides=['sft', 'both', 'rl']}}", "rl.rounds=10")
    [rl] = [stage for stage in runs_of(made, "o")[0].stages if stage.kind == "rl"]
    assert (rl.config.rounds, rl.share_of) == (7, None)


def test_a_corpus_of_other_tasks_passes_over_the_first(tmp_path):
    dialogue = Path("configs/dialogue-mini.toml")

    def collected(*overrides):
        stage = plan(dialogue, *overrides).corpus
        (folder := tmp_path / stage.name).mkdir()
        stage.run(folder, None)
        return stage, gp.load_corpus(folder / data_work.CORPUS)

    first, six = collected("corpus.collect.count=6")
    second, four = collected("corpus.collect.count=4", "corpus.collect.skip=2")
    assert [one.id for one in four] == [one.id for one in six][2:] and len(list(four)) == 4
    assert "skip" not in first.causes["config"], "results from before it could be said are still found"
    assert second.causes["config"]["skip"] == 2
