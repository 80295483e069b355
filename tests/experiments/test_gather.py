"""Results of stages that are stood in for: which machine each cost is of, and what is left out until it is done."""

import json
import shutil
from pathlib import Path

import pytest

from gradprism.experiments import experiment as module
from gradprism.experiments.comparison import Comparison
from gradprism.experiments.config import load_config
from gradprism.experiments.experiment import CONFIG, LOCK, Job, gather, run_job
from gradprism.experiments.plan import Plan
from gradprism.experiments.results import Machine, check_results
from gradprism.experiments.stage import Store, with_needs
from gradprism.runtime.errors import FolderInUseError
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


@pytest.fixture
def experiment(tmp_path):
    """Plan and run folder, and a function that leaves an arm's stages as done on a machine in a fresh run folder."""
    overrides = [f"out={json.dumps(str(tmp_path / 'run'))}", "evaluation.splits={test=2}", "rl.evaluate_tasks=2"]
    config = load_config(Path("configs/webshop-mini.toml"), overrides)
    planned, store = Plan(config), Store(tmp_path / "run")

    def make(cpu, *arms):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        wanted = [run.evaluation for run in planned.runs if run.arm.name in arms and run.seed == 0]
        for stage in with_needs(wanted).values():
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
                "found": FOUND[stage.kind],
            }
            store.path(stage).mkdir(parents=True)
            (store.path(stage) / "stage.json").write_text(json.dumps(record))

    return planned, store, make


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
    trained = "sft sft/0, sft gini/0, sft gini-refreshed/0"
    assert found.remarks == ["a goal is out of reach", f"{trained}: 9 tokens are cut"]
    assert found.audits == {}, "not all of its probes are done"


def test_the_settings_of_a_run_that_another_command_is_at_are_left_as_they_are(experiment, monkeypatch):
    planned, store, _ = experiment
    monkeypatch.setattr(module, "run_stages", lambda *_: pytest.fail("two commands at once"))
    with exclusive_lock(store.folder, LOCK, "the experiment is being run"):
        (store.folder / CONFIG).write_text('{"corpus": "another command\'s"}')
        with pytest.raises(FolderInUseError, match="the experiment is being run by process"):
            run_job(Job(planned.config, store.folder))
        assert "another command" in (store.folder / CONFIG).read_text()
