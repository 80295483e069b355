"""Folders that hold something else are refused before anything is run, and by a dry run with the same line."""

import json
import shutil
from pathlib import Path

import pytest

import gradprism as gp
from gradprism.experiments import experiment, gain
from gradprism.experiments.config import load_config
from gradprism.experiments.experiment import Job, run_job
from gradprism.experiments.folders import LOCK, is_being_run
from gradprism.experiments.gain import measure_gain
from gradprism.runtime.errors import FolderInUseError
from gradprism.runtime.folders import exclusive_lock
from helpers.cli import assert_refused

COMMITTED = Path("results").resolve()
CONFIG = f"""
name = "small"
seeds = [3]
threads = 1
[model]
path = "{gp.shipped("dialogue-tiny")}"
context_length = 512
[corpus]
collect = {{ count = 6, max_steps = 12 }}
[environment]
name = "dialogue"
workers = 1
[sft]
max_steps = 1
[evaluation]
splits = {{ unseen = 2 }}
max_steps = 1
max_action_tokens = 8
[[arms]]
name = "base"
sft = "none"
rl = "none"
[[arms]]
name = "sft"
sft = "all"
rl = "none"
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with `small.toml`, in which no stage can be run unless a test allows it."""
    monkeypatch.chdir(tmp_path)
    for module in (experiment, gain):
        monkeypatch.setattr(module, "run_stages", lambda *_: pytest.fail("a stage was run"))
    Path("small.toml").write_text(CONFIG)
    return tmp_path


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused_alike(cli, *options, status=()):
    """The line with which the command, its dry run and its status are all refused; `status`: the options that it has as well."""
    command = ("experiment", "small.toml", *options)
    ends = [cli(*command), cli(*command, "--dry-run"), cli("experiment", "status", "small.toml", *(status or options))]
    assert_refused(ends[0])
    assert ends[1:] == [ends[0]] * 2
    return ends[0][2]


def test_measured_gains_are_not_written_over_by_an_experiment(cli, here):
    measured = shutil.copytree(COMMITTED / "gain-webshop", here / "gw")
    before, why = files(measured), "gw: holds measured gains (gain.json), whose config.json would be lost; choose another"
    for options in (["--jobs", "1", "--arm", "base"], ["--arm", "base", "--replace"], ["--extend"]):
        assert f"{why} --results" in refused_alike(cli, "--results", "gw", *options, status=("--results", "gw"))
    assert f"{why} run folder" in refused_alike(cli, "--set", "out=gw")
    assert_refused(cli("run", "small.toml", "--set", "out=gw"), why)
    assert_refused(cli("run", "small.toml", "--set", "out=gw", "--dry-run"), why)
    assert files(measured) == before and not Path("runs").exists()


def test_results_of_an_experiment_are_not_written_over_by_measured_gains(cli, here):
    results = shutil.copytree(COMMITTED / "dialogue-again", here / "again")
    why = "again: holds the results of an experiment (results.json), whose config.json and README.md would be lost"
    for made in ("nothing", "gain.json"):  # which is not enough to make the folder one of gains
        if made == "gain.json":
            shutil.copy(COMMITTED / "gain-webshop" / made, results)
        before = files(results)
        for more in ([], ["--dry-run"]):
            assert_refused(cli("experiment", "gain", "small.toml", "--results", "again", *more), why, "choose another --results")
        with pytest.raises(FolderInUseError, match="holds the results of an experiment"):
            measure_gain(load_config("small.toml"), results)
        assert files(results) == before and not Path("runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            [],
            "of its N runs were not made here; give --extend to keep them; choose another --results, or --replace to give them up",
        ),
        (["--extend"], "of its N runs are of other settings; choose another --results, or --replace to give them up"),
    ],
)
def test_a_dry_run_and_the_status_refuse_to_lose_runs_as_the_command_does(cli, here, options, message):
    shutil.copytree(COMMITTED / "dialogue-again", "other")  # whose README has blocks of a folder that is not here
    Path("other/tables.md").write_text("older")
    before = files(Path("other"))
    n = sum(len(arm.runs) for arm in gp.read_results(Path("other")).arms)
    line = refused_alike(cli, "--results", "other", *options)
    assert line == f"error: other/results.json: {n} {message.replace('N', str(n), 1)}\n"
    assert files(Path("other")) == before, "not even its tables are written"
    for command in (["experiment", "small.toml", "--dry-run"], ["experiment", "status", "small.toml"]):
        code, out, _ = cli(*command, "--results", "other", "--replace", *options)
        assert code == 0 and "runs/small: 0 stages done" in out, "what is given up may be lost"


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"arms": [{}]}'])
def test_broken_results_are_told_by_a_dry_run_and_the_status_too(cli, here, text):
    Path("tt").mkdir()
    Path("tt/results.json").write_text(text)
    for options in ([], ["--extend"]):
        assert "tt/results.json: " in refused_alike(cli, "--results", "tt", *options)
    assert Path("tt/results.json").read_text() == text


def test_results_that_are_broken_can_be_given_up(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(CONFIG)
    Path("tt").mkdir()
    Path("tt/results.json").write_text("{")
    command = ("experiment", "small.toml", "--results", "tt", "--replace", "--arm", "base")
    assert cli(*command, "--dry-run")[0] == 0
    run_job(Job(load_config("small.toml"), Path("tt"), arms=("base",), replace=True))
    assert len(gp.read_results(Path("tt")).arms[0].runs) == 1


def test_the_status_of_a_run_that_has_written_a_part_or_is_in_progress_is_told(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(CONFIG)
    config = load_config("small.toml")
    run_job(Job(config, Path("part"), arms=("base",)))
    for command in (["status", "small.toml"], ["small.toml", "--dry-run"]):
        code, out, _ = cli("experiment", *command, "--results", "part", "--json")
        told = json.loads(out)
        assert code == 0 and [stage["label"] for stage in told["done"]] == ["evaluate base/3"]
        assert [stage["kind"] for stage in told["pending"]] == ["collect", "sft", "evaluate"], "these are still to be made"
    # With --replace, or other --results, a run is in progress while these results hold other runs.
    shutil.copytree(COMMITTED / "dialogue-again", "other")
    refused_alike(cli, "--results", "other")
    assert not is_being_run(config.folder)
    with exclusive_lock(config.folder, LOCK, "the experiment is being run"):
        assert is_being_run(config.folder)
        code, out, _ = cli("experiment", "status", "small.toml", "--results", "other")
        assert code == 0 and "runs/small: 1 stages done, 3 left" in out
        assert cli("experiment", "small.toml", "--dry-run", "--results", "part")[0] == 0
        # What another command may do gives a new one no right.
        assert_refused(cli("experiment", "small.toml", "--dry-run", "--results", "other"), "were not made here")
    (config.folder / LOCK).write_text("process 1 on a machine, killed")
    assert not is_being_run(config.folder)
    refused_alike(cli, "--results", "other")


def test_a_run_s_dry_run_refuses_no_results_that_the_run_replaces(cli, here):
    shutil.copytree(COMMITTED / "dialogue-again", "runs/small")
    code, out, _ = cli("run", "small.toml", "--dry-run")
    assert code == 0 and "0 stages done" in out
