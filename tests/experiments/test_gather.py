"""Results of stages that are stood in for: which machine each cost is of, and what is left out until it is done."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gradprism.experiments import experiment as module
from gradprism.experiments import model_work, plan
from gradprism.experiments.comparison import Comparison
from gradprism.experiments.config import load_config
from gradprism.experiments.experiment import CONFIG, LOCK, Job, gather, job_status, run_job
from gradprism.experiments.plan import Plan
from gradprism.experiments.results import Machine, check_results
from gradprism.experiments.stage import Store, with_needs
from gradprism.reporting.tables import trained_on
from gradprism.runtime.errors import DataError, FolderInUseError, MissingDependencyError
from gradprism.runtime.folders import exclusive_lock

FOUND = {
    "collect": {"trajectories": 2},
    "probe": {
        "trajectories": 2,
        "parameters": 12,
        "matmul": 10,
        "heat_map": {"layers": [0], "kinds": ["q"], "mean_norms": [[1.0]]},
    },
    "pass-rates": {"episodes": 2, "successes": 1},
    "route": {
        "n_sft": 120,
        "n_rl": 120,
        "n_rl_by_chance": None,
        "scores": {"metric": "gini", "policy": "x", "threshold": 0.5, "start": 0.0, "width": 0.5, "sft": [1, 0], "rl": [0, 1]},
    },
    "refresh": {"trajectories": 120, "moved_to_sft": 50},
    "sft": {"examples": 2, "history": [{"step": 1, "loss": 2.0}], "curve": [], "warnings": ["9 tokens are cut"]},
    "rl": {
        "examples": 2,
        "history": [{"step": 1, "success": 0.5}],
        "curve": [{"stage": "rl", "fraction": f, "success": s, "tasks": 2} for f, s in ((0.0, 0.1), (0.5, 0.6), (1.0, 0.7))],
    },
    "evaluate": {
        "success": {"test": "01"},
        "score": {"test": [0.5, 1.0]},
        "ends": {"test": {"out_of_steps": 1, "cut_by_context": 0, "failures": 0}},
        "remarks": ["a goal is out of reach"],
        "tasks": {"test": [{"id": "a"}, {"id": "b"}]},
    },
}
OVERRIDES = [
    "evaluation.splits={test=2}",
    "rl.evaluate_split=test",
    "rl.evaluate_tasks=2",
    "rl.rounds=16",
    "rl.evaluate_every=4",
    "evaluations=[]",
]


@pytest.fixture
def experiment(tmp_path):
    """Plan and run folder, and a function that leaves an arm's stages as done on a machine in a fresh run folder."""
    config = load_config(Path("configs/webshop-mini.toml"), [*OVERRIDES, f"out={json.dumps(str(tmp_path / 'run'))}"])
    plan_of_all, store = Plan(config), Store(tmp_path / "run")

    def make(cpu, *arms, planned=plan_of_all, split="test"):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        runs = [run for run in planned.runs if run.arm.name in arms and run.seed == 0]
        wanted = [stage for run in runs for stage in (run.evaluation, run.watched) if stage]
        for stage in with_needs(wanted).values():
            found = dict(FOUND[stage.kind])
            if stage in [run.watched for run in runs]:
                found |= {key: {split: found[key]["test"]} for key in ("success", "score", "ends", "tasks")}
            record = {
                "kind": stage.kind,
                "key": stage.key,
                "causes": {},
                "version": "0",
                "code": "0",
                "started": "",
                "headline": "",
                "machine": {"cpu": cpu},
                "cost": {"wall_seconds": 10.0, "cpu_seconds": 9.0, "tokens_forward": 10, "tokens_backward": 5},
                "evaluation_seconds": 2.0 if stage.kind == "rl" else 0.0,
                "found": found,
            }
            store.path(stage).mkdir(parents=True)
            (store.path(stage) / "stage.json").write_text(json.dumps(record))

    return plan_of_all, store, make


def test_an_extension_on_another_machine_leaves_what_was_measured_as_it_was(experiment):
    planned, store, make = experiment
    make("A", "grpo", "gini")
    first = gather(planned, store)
    assert [machine.cpu for machine in first.machines] == ["A"] and Comparison(first).times_compare("gini")
    make("B", "kurtosis")  # which has the probe in common with Gini
    both = gather(planned, store, check_results(first.model_dump()))
    assert [machine.cpu for machine in both.machines] == ["A", "B"]
    assert {name: both.stages[name] for name in first.stages} == first.stages
    found = Comparison(both)
    assert found.times_compare("gini") and not found.times_compare("kurtosis")
    # Machines that nothing is left of are forgotten.
    make("C", "grpo", "gini", "kurtosis")
    assert [machine.cpu for machine in gather(planned, store, both).machines] == ["C"]


def test_results_that_name_no_machine_are_of_one_that_is_not_known(experiment):
    planned, store, make = experiment
    make("A", "grpo")
    first = gather(planned, store).model_copy(update={"machines": []})
    make("B", "gini")
    both = gather(planned, store, first)
    assert both.machines == [Machine(), Machine(cpu="B", threads=1)]
    assert not Comparison(both).times_compare("gini")


def test_a_run_tells_what_it_was_trained_on_and_how_its_success_grew(experiment):
    planned, store, make = experiment
    make("A", "base", "sft", "gini", "gini-refreshed")
    found = gather(planned, store)
    runs = {arm.name: arm.runs[0] for arm in found.arms if arm.runs}
    assert {name: (run.n_sft, run.n_rl) for name, run in runs.items()} == {
        "base": (None, None),
        "sft": (None, None),
        "gini": (120, 120),
        "gini-refreshed": (170, 70),
    }
    assert [(p.stage, p.fraction, p.success) for p in runs["gini"].curve] == [("rl", 0.0, 0.1), ("rl", 0.5, 0.6), ("rl", 1.0, 0.5)]
    assert [(p.stage, p.fraction, p.success) for p in runs["sft"].curve] == [("sft", 1.0, 0.5)]
    assert [p.stage for p in runs["base"].curve] == ["base"]
    rl = found.stages[runs["gini"].stages[-1]]
    assert (rl.kind, rl.flops, rl.evaluation_seconds, rl.history[0].success) == ("rl", 10 * (2 * 10 + 4 * 5), 2.0, 0.5)
    assert found.trajectories == 2 and found.heat_map and set(found.routes) == {runs["gini"].route}
    assert runs["gini"].ends["test"].out_of_steps == 1
    assert found.remarks == ["a goal is out of reach"]
    warned = {stage.kind for stage in found.stages.values() if stage.warnings == ["9 tokens are cut"]}
    assert warned == {"sft"} and {stage.kind for stage in found.stages.values() if not stage.warnings} >= {"rl", "evaluate"}
    assert found.audits == {}, "not all of its probes are done"


def test_what_sft_was_trained_on_is_everything_where_rl_alone_is_routed(experiment):
    planned, store, make = experiment
    make("A", "all-then-gini")
    [run] = [run for arm in gather(planned, store).arms for run in arm.runs]
    assert (run.n_sft, run.n_rl, run.n_none) == (2, 120, None)


def test_what_only_sft_was_trained_on_has_no_tasks_of_rl(experiment):
    planned, store, make = experiment
    arms = [*planned.config.arms, planned.config.arms[0].model_copy(update={"name": "half", "sft": "routed", "rl": "none"})]
    planned = Plan(planned.config.model_copy(update={"arms": arms}))
    make("A", "half", planned=planned)
    results = gather(planned, store)
    [run] = [run for arm in results.arms for run in arm.runs]
    assert (run.n_sft, run.n_rl, run.n_rl_by_chance, run.n_none, run.n_both) == (120, 0, None, None, None)
    found = Comparison(results)
    assert trained_on(found, [run]) == "120 / 0"
    before = run.model_copy(update={"n_rl": 120, "n_rl_by_chance": 60, "n_both": 9, "n_none": 9})  # as it was told once
    assert trained_on(found, [before]) == "120 / 0"


def of_sampled(planned, store, attempts="0111"):
    """Leaves the sampled evaluation of Gini's first seed as done: two tasks, two attempts each."""
    [stage] = [run.further["twice"] for run in planned.runs if run.arm.name == "gini" and run.seed == 0]
    found = {**FOUND["evaluate"], "success": {"test": attempts}, "score": {"test": [0, 1, 0.5, 1]}}
    found["tasks"] = {"test": [{"id": i} for i in "aabb"]}
    record = {"kind": "evaluate", "key": stage.key, "causes": {}, "version": "0", "code": "0", "started": "", "headline": ""}
    record |= {"machine": {"cpu": "A"}, "cost": {"wall_seconds": 7.0}, "evaluation_seconds": 0.0, "found": found}
    store.path(stage).mkdir(parents=True)
    (store.path(stage) / "stage.json").write_text(json.dumps(record))
    return stage.name


def test_a_further_evaluation_is_added_to_its_run_and_kept_with_it(experiment, tmp_path):
    planned, store, make = experiment
    further = 'evaluations=[{name="twice", temperature=1, attempts=2, arms=["gini"]}]'
    config = load_config(Path("configs/webshop-mini.toml"), [*OVERRIDES, f"out={json.dumps(str(store.folder))}", further])
    planned = Plan(config)
    make("A", "gini")
    first = gather(planned, store)
    [run] = [run for arm in first.arms for run in arm.runs]
    assert run.sampled == {} and [s.name for s in first.evaluations] == ["twice"]
    name = of_sampled(planned, store)
    both = gather(planned, store)
    [run] = [run for arm in both.arms for run in arm.runs]
    assert run.sampled["twice"].success == {"test": "0111"} and run.sampled["twice"].score == {"test": [0.5, 0.75]}
    assert both.stages[name].wall_seconds == 7 and run.evaluation in both.stages
    assert check_results(both.model_dump(mode="json")) == both
    # Extended elsewhere, what is known is not made again, and stays.
    shutil.rmtree(store.folder)
    assert gather(planned, store, both).arms == both.arms and gather(planned, store, both).stages == both.stages
    # What is added to a run of earlier results stands beside it.
    of_sampled(planned, store, "1111")
    [again] = [run for arm in gather(planned, store, first).arms for run in arm.runs]
    assert again.sampled["twice"].success == {"test": "1111"} and again.success == run.success


def test_an_extension_in_an_empty_folder_keeps_the_warnings_of_what_it_did_not_train(experiment):
    planned, store, make = experiment
    make("A", "sft", "gini")
    first = gather(planned, store)
    shutil.rmtree(store.folder)
    make("B", "random")
    both = gather(planned, store, first)
    warned = {name for name, stage in both.stages.items() if stage.warnings}
    trained = {name for arm in both.arms for run in arm.runs for name in run.stages if both.stages[name].kind == "sft"}
    assert warned == trained and len(warned) == 3


def test_a_curve_on_another_split_ends_with_what_was_kept(experiment):
    _, store, make = experiment
    for keep, ends in (
        (False, [("rl", 0.0, 0.1), ("rl", 0.5, 0.6), ("rl", 1.0, 0.7)]),
        (True, [("rl", 1.0, 0.7), ("kept", 1.0, 0.5)]),
    ):
        overrides = [
            *OVERRIDES,
            f"out={json.dumps(str(store.folder))}",
            "rl.evaluate_split=eval",
            f"rl.keep_best={str(keep).lower()}",
        ]
        planned = Plan(load_config(Path("configs/webshop-mini.toml"), overrides))
        make("A", "grpo", "sft", planned=planned, split="eval")
        found = gather(planned, store)
        runs = {arm.name: arm.runs[0] for arm in found.arms if arm.runs}
        points = [(p.stage, p.fraction, p.success) for p in runs["grpo"].curve]
        assert points[-len(ends) :] == ends and found.curve_split == "eval"
        assert [(p.stage, p.success) for p in runs["sft"].curve] == [("sft", 0.5)]
        assert (runs["grpo"].watched is not None) == keep and runs["sft"].watched in found.stages


def test_curves_of_earlier_results_on_another_split_are_left_out(experiment):
    _, store, make = experiment
    overrides = [*OVERRIDES, f"out={json.dumps(str(store.folder))}"]
    on_eval = Plan(load_config(Path("configs/webshop-mini.toml"), [*overrides, "rl.evaluate_split=eval"]))
    on_test = Plan(load_config(Path("configs/webshop-mini.toml"), [*overrides, "rl.evaluate_split=test"]))
    make("A", "sft", planned=on_eval, split="eval")
    first = gather(on_eval, store)
    shutil.rmtree(store.folder)
    kept, other = ([run for arm in gather(of, store, first).arms for run in arm.runs] for of in (on_eval, on_test))
    assert kept[0].curve and kept[0].watched
    assert other[0].success == kept[0].success and (other[0].curve, other[0].watched) == ([], None)


def test_a_stage_took_no_less_than_its_evaluations_and_an_absurd_cost_is_its_files_mistake(experiment):
    planned, store, make = experiment
    make("A", "grpo")
    [path] = store.folder.glob("stages/rl-*/stage.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"evaluation_seconds": 10.3}))
    [rl] = [stage for stage in gather(planned, store).stages.values() if stage.kind == "rl"]
    assert (rl.wall_seconds, rl.evaluation_seconds) == (10.0, 10.0)
    for absurd, key in (({"cost": {"flops": 1e308}}, "cost.flops"), ({"evaluation_seconds": -1.0}, "evaluation_seconds")):
        path.write_text(json.dumps(record | absurd))
        with pytest.raises(DataError, match=rf"stage\.json: {key}: .*; delete its folder, it is made again"):
            gather(planned, store)


def test_the_settings_of_a_run_that_another_command_is_at_are_left_as_they_are(experiment, monkeypatch):
    planned, store, _ = experiment
    monkeypatch.setattr(module, "run_stages", lambda *_: pytest.fail("two commands at once"))
    with exclusive_lock(store.folder, LOCK, "the experiment is being run"):
        (store.folder / CONFIG).write_text('{"corpus": "another command\'s"}')
        with pytest.raises(FolderInUseError, match="the experiment is being run by process"):
            run_job(Job(planned.config, store.folder))
        assert "another command" in (store.folder / CONFIG).read_text()


def test_the_state_of_an_experiment_is_told_where_its_environment_is_not_installed(experiment, monkeypatch):
    planned, store, make = experiment
    make("A", "sft")
    monkeypatch.setattr(module, "run_stages", lambda *_: None)
    job = Job(planned.config, store.folder / "results")
    run_job(job)
    before = job_status(job)

    def missing(*_, **__):
        raise MissingDependencyError("WebShop is not installed")

    monkeypatch.setattr(plan, "make_environment", missing)
    assert job_status(job) == before and {stage.kind for stage in before.done} == {"collect", "sft", "evaluate"}
    with pytest.raises(MissingDependencyError, match="is not installed"):
        run_job(job)
    other = planned.config.model_copy(
        update={"environment": planned.config.environment.model_copy(update={"options": {"seed": 1}})}
    )
    with pytest.raises(MissingDependencyError, match="is not installed"):
        job_status(Job(other, store.folder / "results"))
    (store.folder / "environment.json").write_text('{"name": "webshop"}')
    with pytest.raises(DataError, match=r"environment\.json: options: Field required; delete it, a run writes it again"):
        job_status(job)


def test_rl_without_a_task_passes_its_model_on(experiment, monkeypatch):
    planned, store, _ = experiment
    monkeypatch.setattr(model_work, "tasks_of", lambda *_: [])
    rl = next(run.stages[-1] for run in planned.runs if run.arm.name == "grpo")
    done = model_work.train_by_rl(rl, store.folder / "out", store)
    assert done.found.examples == 0 and done.found.warnings == ["nothing to play, the model is the same"]
    passed, base = (load_file(folder / "model.safetensors") for folder in (store.folder / "out", Path("models/webshop-tiny")))
    assert passed.keys() == base.keys() and all(torch.equal(passed[name], base[name].float()) for name in base)
