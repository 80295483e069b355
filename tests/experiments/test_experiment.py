"""`gradprism experiment`: killed, started again, extended, and what it writes."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradprism.experiments.config import load_config
from gradprism.experiments.experiment import Job, run_job
from gradprism.experiments.results import read_results
from helpers.cli import assert_refused

ARMS = """
[[arms]]
name = "base"
sft = "none"
rl = "none"

[[arms]]
name = "pass-rate"
sft = "none"
route = { policy = "pass_rate" }

[[arms]]
name = "gini"
group = "controls"
refresh = { after_sft = true, every_k_steps = 1 }

[[sweeps]]
title = "Share"
arms = { "0.5" = "gini", "1" = "pass-rate" }

[[claims]]
text = "Gini beats pass rates"
better = "gini"
worse = "pass-rate"
"""
CONFIG = f"""
name = "small"
seeds = [3]
threads = 1
reference_arms = ["pass-rate"]
sft_arm = "gini"
full_rl_arm = "pass-rate"
[model]
path = "{Path("models/dialogue-tiny").resolve()}"
context_length = 512
[corpus]
collect = {{ count = 18, max_steps = 15 }}
[environment]
name = "dialogue"
workers = 1
[sft]
epochs = 1
learning_rate = 5e-4
[rl]
rounds = 2
tasks_per_round = 2
rollouts_per_task = 2
max_steps = 6
evaluate_every = 1
evaluate_split = "unseen"
evaluate_tasks = 3
save_every = 1
[pass_rate]
rollouts = 2
[evaluation]
splits = {{ unseen = 6, seen = 3 }}
max_steps = 6
{ARMS}
"""


def command(*more):
    return [sys.executable, "-m", "gradprism", "experiment", "small.toml", "--jobs", "2", *more]


def here(folder, config, **more):
    """The experiment in this process, which need not start another for every stage."""
    (folder / "small.toml").write_text(config)
    return run_job(Job(load_config(folder / "small.toml"), Path("results/small"), **more))


def numbers(found):
    """What must not depend on kills and processes: everything but the clock, the memory, and work that was done twice."""
    counts = {name: (stage.kind, stage.tokens_backward) for name, stage in found.stages.items() if stage.kind != "rl"}
    return {arm.name: arm.runs for arm in found.arms}, counts, found.tasks, found.audits, found.heat_map, found.routes


@pytest.mark.slow
def test_killed_at_any_moment_it_finds_what_an_undisturbed_run_finds(cli, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    monkeypatch.chdir(whole)
    expected = here(whole, CONFIG)
    lines = [json.loads(line) for line in Path("runs/small/ledger.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines), "each stage ran once"
    kinds = [line["stage"] for line in lines]
    assert (kinds.count("collect"), kinds.count("probe"), kinds.count("evaluate")) == (1, 1, 3)
    assert kinds.count("refresh") == 1 and kinds.count("pass-rates") == kinds.count("audit") == 1

    (killed / "small.toml").write_text(CONFIG)
    process = subprocess.Popen(command(), cwd=killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(8)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # its workers end with it
    again = subprocess.run(command("--group", "table1"), cwd=killed, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "| pass-rate |" in again.stdout, "the tables are printed"
    monkeypatch.chdir(killed)
    assert numbers(here(killed, CONFIG)) == numbers(expected), "the other group's, on what the processes have left"
    monkeypatch.chdir(whole)

    code, out, _ = cli("experiment", "small.toml", "--dry-run", "--json")
    said = json.loads(out)
    assert code == 0 and (len(said["done"]), said["running"], said["pending"], said["seconds_left"]) == (len(lines), [], [], 0.0)
    code, out, _ = cli("experiment", "status", "small.toml")
    assert f"runs/small: {len(lines)} stages done, 0 left" in out and "time left: none" in out and "evaluate" in out

    # results.json is enough for the tables, and stands in for the run folder.
    folder = Path("results/small")
    assert cli("experiment", "tables", folder)[0] == cli("experiment", "tables", folder, "--check")[0] == 0
    Path("runs/small").rename(whole / "elsewhere")
    assert_refused(cli("experiment", "small.toml"), "3 of its 3 runs were not made here; give --extend to keep them")
    assert cli("experiment", "small.toml", "--extend")[0] == 0
    assert not Path("runs/small/ledger.jsonl").exists(), "nothing had to be run"
    assert read_results(folder) == expected
    (folder / "tables.md").write_text((folder / "tables.md").read_text() + "better by hand\n")
    assert_refused(cli("experiment", "tables", folder, "--check"), "out of date: tables.md")
    # Another arm is all that is made when results are extended by it.
    length = '[[arms]]\nname = "length"\nrl = "none"\nroute = {policy="length"}\n\n[[sweeps]]'
    found = here(whole, CONFIG.replace("[[sweeps]]", length), extend=True)
    arms = {arm.name: arm.runs for arm in found.arms}
    assert len(arms.pop("length")) == 1 and arms == numbers(expected)[0]
    for part in ("model", "trajectories", "tasks", "audits", "heat_map", "machines"):
        assert getattr(found, part) == getattr(expected, part), "what was not measured again is kept"
    assert {stage.machine for stage in found.stages.values()} == {0}
    assert all((stage.flops > 0) == (stage.tokens_forward > 0) for stage in found.stages.values())


def test_arms_and_groups_choose_what_is_run(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(CONFIG)

    def labels(*options):
        code, out, _ = cli("experiment", "status", "small.toml", *options, "--json")
        assert code == 0
        return [stage["label"] for stage in json.loads(out)["pending"]]

    def evaluated(*options):
        return sorted(label.removeprefix("evaluate ") for label in labels(*options) if label.startswith("evaluate "))

    assert evaluated() == ["base/3", "gini/3", "pass-rate/3"]
    assert evaluated("--arm", "gini") == ["gini/3"]
    assert evaluated("--arm", "base", "--arm", "pass-rate") == ["base/3", "pass-rate/3"]
    assert evaluated("--group", "controls", "--arm", "base") == ["base/3", "gini/3"]
    assert labels("--arm", "base") == ["evaluate base/3"], "nothing is routed, and nothing to be audited"
    assert "audit of the probes" in labels("--arm", "gini")


def test_mistakes_are_said_in_a_line(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(CONFIG)
    assert_refused(cli("experiment", "none.toml"), "none.toml: no such file")
    assert_refused(cli("experiment", "small.toml", "--set", "rl.tasks_per_round=x"), "small.toml: rl.tasks_per_round", "got 'x'")
    assert_refused(
        cli("experiment", "small.toml", "--group", "mine"), "--group mine: no arm is in it; choose from controls, table1"
    )
    assert_refused(cli("experiment", "small.toml", "--arm", "mine"), "--arm mine: no such arm; choose from base, gini, pass-rate")
    assert_refused(cli("experiment", "small.toml", "--extend"), "results.json: no such file, so there is nothing to extend")
    assert_refused(cli("experiment", "tables", "nowhere"), "nowhere")
    assert_refused(cli("experiment", "tables", "nowhere", "--check", "--page", "a.md"), "--page: --check looks only at")
    stale = shutil.copytree(Path(__file__).parents[2] / "results" / "dialogue-again", tmp_path / "dialogue-again") / "tables.md"
    stale.write_text("stale")
    assert_refused(cli("experiment", "tables", "dialogue-again", "--page", "none.md"), "none.md: no such file")
    assert stale.read_text() == "stale"
    shutil.rmtree(stale.parent)
    damaged = tmp_path / "results" / "small" / "results.json"
    damaged.parent.mkdir(parents=True)
    for text in ("{}", "[]", '{"arms": [{}]}'):
        damaged.write_text(text)
        assert_refused(cli("experiment", "small.toml", "--extend"), "results.json: ")
        assert_refused(cli("experiment", "small.toml"), "results.json: ")
        assert damaged.read_text() == text
    damaged.unlink()
    damaged.parent.rmdir()
    damaged.parent.parent.rmdir()
    assert_refused(cli("experiment", "small.toml", "--set", "sft_arm=nobody"), "no arm is called nobody")
    code, out, _ = cli("experiment", "status", "small.toml")
    assert code == 0 and "time left: not known until a stage is done" in out
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results").exists(), "asking writes nothing"
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "qwen3"}')
    for names in (["--set", "out=model"], ["--results", "model"]):
        assert_refused(cli("experiment", "small.toml", *names), "model: is in use and holds no run")
    assert_refused(cli("run", "small.toml", "--set", "out=model"), "model: is in use and holds no run")
    assert [path.name for path in model.iterdir()] == ["config.json"] and "qwen3" in (model / "config.json").read_text()
