"""`gradprism experiment`: killed, started again, extended, and what it writes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.cli import assert_refused

ARMS = """
[[arms]]
name = "base"
sft = "none"
rl = "none"
max_seeds = 1

[[arms]]
name = "sft"
sft = "all"
rl = "none"
max_seeds = 1

[[arms]]
name = "grpo"
sft = "none"
rl = "all"
max_seeds = 1

[[arms]]
name = "random"
route = { policy = "random" }

[[arms]]
name = "pass-rate"
group = "controls"
max_seeds = 1
route = { policy = "pass_rate" }

[[arms]]
name = "gini"
group = "controls"
max_seeds = 1
refresh = { after_sft = true, every_k_steps = 1 }

[[sweeps]]
title = "Share"
arms = { "0.5" = "gini", "1" = "grpo" }

[[claims]]
text = "Gini beats a random split"
better = "gini"
worse = "random"
"""
CONFIG = f"""
name = "small"
seeds = [0, 1]
threads = 1
reference_arms = ["random"]
full_rl_arm = "grpo"
[model]
path = "{Path("models/alfworld-tiny").resolve()}"
[corpus]
collect = {{ count = 18, max_steps = 15 }}
[environment]
options = {{ difficulty = "tiny" }}
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
[audit]
checkpoints = ["sft"]
{ARMS}
"""


def command(folder, *more):
    return [sys.executable, "-m", "gradprism", "experiment", "small.toml", "--jobs", "2", *more]


def run(folder, *more):
    return subprocess.run(command(folder, *more), cwd=folder, capture_output=True, text=True)


def results(folder):
    return json.loads((folder / "results" / "small" / "results.json").read_text())


def numbers(found):
    """What must not depend on kills and processes: everything but the clock and the memory."""
    arms = {arm["name"]: arm["runs"] for arm in found["arms"]}
    counts = {
        name: {
            key: stage.get(key, 0)
            for key in ("kind", "tokens_forward", "tokens_backward", "tokens_generated", "environment_steps", "flops")
        }
        for name, stage in found["stages"].items()
    }
    return arms, counts, found["tasks"], found["audits"], found["heat_map"], found["routes"]


@pytest.mark.slow
def test_killed_at_random_moments_it_finds_what_an_undisturbed_run_finds(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        (folder / "small.toml").write_text(CONFIG)
    first = run(whole)
    assert first.returncode == 0, first.stderr
    assert "PRISM" not in first.stdout and "| gini |" in first.stdout, "the tables are printed"

    lines = [json.loads(line) for line in (whole / "runs/small/ledger.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines), "each stage ran once"
    kinds = [line["stage"] for line in lines]
    assert (kinds.count("collect"), kinds.count("probe"), kinds.count("evaluate")) == (1, 2, 7)
    assert kinds.count("refresh") == 1 and kinds.count("pass-rates") == kinds.count("audit") == 1

    for seconds in (9, 14):
        process = subprocess.Popen(command(killed), cwd=killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.5)  # its workers end with it
    again = run(killed)
    assert again.returncode == 0, again.stderr
    found, expected = results(killed), results(whole)
    arms, counts, *rest = numbers(found)
    assert (arms, rest) == (numbers(expected)[0], list(numbers(expected)[2:]))
    assert {name: stage["tokens_backward"] for name, stage in counts.items() if stage["kind"] != "rl"} == {
        name: stage["tokens_backward"] for name, stage in numbers(expected)[1].items() if stage["kind"] != "rl"
    }

    status = run(whole, "--dry-run")
    said = json.loads(status.stdout)
    assert (len(said["pending"]), said["running"], said["seconds_left"]) == (0, [], 0.0)

    # results.json is enough for the tables, and stands in for the run folder.
    folder = whole / "results" / "small"
    assert subprocess.run([*_gradprism(), "experiment", "tables", folder, "--check"], cwd=whole).returncode == 0
    (whole / "runs" / "small").rename(whole / "elsewhere")
    before = numbers(expected)[0]
    refused = run(whole)
    assert refused.returncode == 2 and "7 of its 7 runs were not made here; give --extend to keep them" in refused.stderr
    extended = run(whole, "--extend")
    assert extended.returncode == 0, extended.stderr
    assert not (whole / "runs/small/ledger.jsonl").exists(), "nothing had to be run"
    assert numbers(results(whole))[0] == before
    text = (folder / "tables.md").read_text()
    (folder / "tables.md").write_text(text + "better by hand\n")
    check = subprocess.run([*_gradprism(), "experiment", "tables", folder, "--check"], cwd=whole, capture_output=True, text=True)
    assert check.returncode == 2 and "out of date: tables.md" in check.stderr
    # Another arm is all that is made when results are extended by it.
    more = CONFIG.replace(
        '[[sweeps]]\ntitle = "Share"',
        '[[arms]]\nname = "length"\nmax_seeds = 1\nroute = {policy="length"}\n\n[[sweeps]]\ntitle = "Share"',
    )
    (whole / "small.toml").write_text(more)
    assert run(whole, "--extend").returncode == 0
    found = results(whole)
    arms = numbers(found)[0]
    assert len(arms["length"]) == 1 and {name: runs for name, runs in arms.items() if name != "length"} == before
    for part in ("model", "trajectories", "tasks", "audits", "heat_map"):
        assert found[part] == expected[part], "what was not measured again is kept"
    assert found["machines"] == expected["machines"] and {stage.get("machine", 0) for stage in found["stages"].values()} == {0}
    assert all(("flops" in stage) == ("tokens_forward" in stage) for stage in found["stages"].values())


def _gradprism():
    return [sys.executable, "-m", "gradprism"]


def test_mistakes_are_said_in_a_line(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(CONFIG)
    assert_refused(cli("experiment", "none.toml"), "none.toml: no such file")
    assert_refused(cli("experiment", "small.toml", "--set", "rl.tasks_per_round=x"), "small.toml: rl.tasks_per_round", "got 'x'")
    assert_refused(
        cli("experiment", "small.toml", "--group", "mine"), "--group mine: no arm is in it; choose from controls, table1"
    )
    assert_refused(cli("experiment", "small.toml", "--extend"), "results.json: no such file, so there is nothing to extend")
    assert_refused(cli("experiment", "tables", "nowhere"), "nowhere")
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
    assert code == 0 and "time left: unknown" in out
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results").exists(), "asking writes nothing"
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "qwen3"}')
    for names in (["--set", "out=model"], ["--results", "model"]):
        assert_refused(cli("experiment", "small.toml", *names), "model: is in use and holds no run")
    assert_refused(cli("run", "small.toml", "--set", "out=model"), "model: is in use and holds no run")
    assert [path.name for path in model.iterdir()] == ["config.json"] and "qwen3" in (model / "config.json").read_text()
