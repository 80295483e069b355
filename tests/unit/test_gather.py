"""What is gathered from stages that are stood in for: which machine each cost is of."""

import json
import shutil
from pathlib import Path

import pytest

from gradprism.experiments import gather as module
from gradprism.experiments.arms import ExperimentConfig, plan
from gradprism.experiments.config import load_config
from gradprism.experiments.gather import gather
from gradprism.reporting.experiment_results import Experiment


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Configuration and plan, and a function that leaves an arm's stages as done on a machine in a fresh run folder."""
    overrides = [f"out={tmp_path / 'run'}", "evaluation.splits={test=2}", "rl.evaluate_tasks=2"]
    config = load_config(Path("configs/webshop-mini.toml"), overrides, ExperimentConfig)
    planned = plan(config)

    def of_run(config, graph, run):
        return {"seed": run.seed, "success": {"test": "01"}, "stages": list(run.stages), "evaluation": run.evaluation}

    for name, value in (
        ("_run", of_run),
        ("_model", lambda config, planned: {"id": "tiny", "matmul": 10}),
        ("_corpus", lambda planned: {"trajectories": 2}),
        ("_tasks", lambda config, planned: {"test": [{"id": "a"}, {"id": "b"}]}),
        ("_audits", lambda config, planned: {}),
    ):
        monkeypatch.setattr(module, name, value)

    def make(cpu, *arms):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        for run in planned.runs:
            if run.arm.name in arms and run.seed == 0:
                for name in (*run.stages, run.evaluation):
                    folder = planned.graph.path(name)
                    folder.mkdir(parents=True, exist_ok=True)
                    cost = {"wall_seconds": 10.0, "cpu_seconds": 9.0, "tokens_forward": 10, "tokens_backward": 5}
                    (folder / "stage.json").write_text(json.dumps({"summary": {}, "cost": cost, "machine": {"cpu": cpu}}))

    return config, planned, make


def test_an_extension_on_another_machine_leaves_what_was_measured_as_it_was(experiment):
    config, planned, make = experiment
    make("A", "grpo", "gini")
    first = gather(config, planned)
    assert [machine["cpu"] for machine in first["machines"]] == ["A"] and Experiment(first).times_compare("gini")
    make("B", "kurtosis")  # which has the probe in common with Gini
    both = gather(config, planned, json.loads(json.dumps(first)))
    assert [machine["cpu"] for machine in both["machines"]] == ["A", "B"]
    assert {name: both["stages"][name] for name in first["stages"]} == first["stages"]
    found = Experiment(both)
    assert found.times_compare("gini") and not found.times_compare("kurtosis")
    # Machines that nothing is left of are forgotten.
    make("C", "grpo", "gini", "kurtosis")
    assert [machine["cpu"] for machine in gather(config, planned, both)["machines"]] == ["C"]


def test_results_that_name_no_machine_are_of_one_that_is_not_known(experiment):
    config, planned, make = experiment
    make("A", "grpo")
    first = gather(config, planned)
    del first["machines"]
    for stage in first["stages"].values():
        del stage["machine"]
    make("B", "gini")
    both = gather(config, planned, first)
    assert both["machines"] == [{}, {"cpu": "B", "threads": 1}]
    assert not Experiment(both).times_compare("gini")
