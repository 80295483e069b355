"""Measuring gain: the stages, from a killed run to its page, and what is told of synthetic gains."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gradprism.experiments import gain_statistics
from gradprism.experiments.config import load_config
from gradprism.experiments.gain import Gain, GainPlan, Price, measure_gain, read_gain
from gradprism.experiments.results import Machine
from gradprism.experiments.stage import Store
from gradprism.reporting.gain_page import gain_page
from helpers.cli import assert_refused

CONFIG = f"""
name = "small"
seeds = [3, 4]
threads = 1
[gain]
groups = 5
demonstrations = 3
[model]
path = "{Path("models/dialogue-tiny").resolve()}"
context_length = 512
[corpus]
collect = {{ count = 8, max_steps = 15 }}
[environment]
name = "dialogue"
workers = 1
[sft]
max_steps = 1
learning_rate = 5e-3
[rl]
rounds = 1
tasks_per_round = 1
rollouts_per_task = 2
max_steps = 3
[pass_rate]
rollouts = 1
[evaluation]
splits = {{ unseen = 2 }}
max_steps = 3
"""


def synthetic(groups=40, seeds=2, noise=0.3, seed=1):
    """Gains of which SFT's follow `gini` and RL's nothing; `cv` is nearly `gini`, `hoyer` is nothing."""
    rng = np.random.default_rng(seed)
    gini = rng.normal(size=groups)
    scores = {"gini": gini, "cv": gini + 0.1 * rng.normal(size=groups), "hoyer": rng.normal(size=groups)}
    scores |= {name: rng.normal(size=groups) for name in ("loss", "n_response_tokens")}

    def of(signal):
        return (signal + noise * rng.normal(size=(seeds, groups))).tolist()

    return Gain(
        name="made-up",
        created="2026-01-01T00:00:00+00:00",
        environment="webshop",
        model="tiny",
        parameters=1_000_000,
        trajectories=5 * groups,
        planned_groups=groups,
        sizes=[5] * groups,
        seeds=list(range(seeds)),
        tasks_per_seed=64,
        temperature=0.7,
        demonstrations=100,
        base={"loss": [1.0] * seeds, "success": [0.2] * seeds, "score": [0.5] * seeds},
        gains={
            "sft": {"loss": of(gini), "success": of(0 * gini), "score": of(0 * gini)},
            "rl": {name: of(0 * gini) for name in ("loss", "success", "score")},
        },
        scores={name: values.tolist() for name, values in scores.items()},
        spread=dict.fromkeys(scores, 0.8),
        prices={"gain-sft": Price(stages=80, wall_seconds=400.0, cpu_seconds=390.0)},
        machine=Machine(),
    )


def test_page_names_the_score_that_gain_was_made_of_and_none_where_it_was_made_of_nothing():
    page = gain_page(synthetic())
    assert "gain of SFT in loss over 40 groups is predicted by gini (0." in page and ", cv (0." in page
    assert "No score predicts gain of RL in success over 40 groups" in page
    assert "No score predicts the difference of the gains in success" in page
    first = next(line for line in page.split("### SFT")[1].splitlines() if line.startswith(("| gini", "| cv")))
    assert "<0.001" in first


def test_noise_alone_is_rarely_called_a_finding(monkeypatch):
    monkeypatch.setattr(gain_statistics, "DRAWS", 20)  # of the intervals, which are not what decides
    pages = [gain_page(synthetic(groups=20, seed=seed)) for seed in range(40)]
    assert all("SFT in loss over 20 groups is predicted by" in page for page in pages)
    found = sum("RL in success over 20 groups is predicted by" in page for page in pages)
    assert found <= 7, "at 5 % two are expected of 40"


def test_page_of_one_seed_has_no_reliability_and_corrects_nothing():
    page = gain_page(synthetic(seeds=1))
    row = next(line for line in page.splitlines() if line.startswith("| SFT: expert loss"))
    assert row.rstrip().endswith("– |")


def test_page_tells_that_groups_are_missing():
    half = synthetic().model_copy(update={"planned_groups": 41})
    assert "**Unfinished**: 40 of 41 groups" in gain_page(half)


@pytest.mark.slow
def test_every_group_s_gain_by_both_methods_and_every_score(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(CONFIG)
    code, out, _ = cli("experiment", "gain", "small.toml", "--results", "gained")
    assert code == 0 and out.startswith("# small: does a cheap score predict gain?")
    whole = read_gain(Path("gained"))
    assert whole.seeds == [3, 4] and len(whole.sizes) == 5 and sum(whole.sizes) == whole.trajectories
    assert any(value for row in whole.gains["sft"]["loss"] for value in row)
    assert {"gini", "loss", "n_response_tokens", "pass_rate", "learnability", "uncertainty"} <= whole.scores.keys()
    assert not list(Path("runs/small/stages").glob("gain-*/model")), "trained models are not kept"
    page = Path("gained/README.md").read_text()
    Path("gained/README.md").unlink()
    assert cli("experiment", "gain-page", "gained")[0] == 0 and Path("gained/README.md").read_text() == page


@pytest.mark.slow
@pytest.mark.rare
def test_killed_it_goes_on_and_measures_what_an_undisturbed_run_does(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(CONFIG)
    whole = measure_gain(load_config("small.toml", ["seeds=[3]"]), Path("results/small"))
    assert whole is not None
    one_seed = ("experiment", "gain", "small.toml", "--set", "out=killed", "--set", "seeds=[3]")
    command = [sys.executable, "-m", "gradprism", *one_seed, "--results", "again"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        time.sleep(0.1)
        if list(Path("killed/stages").glob("gain-sft-*/stage.json")):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(Path("killed/stages").glob("*/stage.json")))
    code, out, _ = cli(*one_seed, "--dry-run")
    assert code == 0 and f"{done} stages done" in out
    assert cli(*one_seed, "--results", "again")[0] == 0
    again = read_gain(Path("again"))
    assert (again.gains, again.base, again.scores) == (whole.gains, whole.base, whole.scores) and len(again.sizes) == 5
    lines = [json.loads(line) for line in Path("killed/ledger.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines), "each stage ran once"


def test_each_seed_has_tasks_of_its_own_which_all_its_models_play(tmp_path):
    (tmp_path / "small.toml").write_text(CONFIG)
    plan = GainPlan.of(load_config(tmp_path / "small.toml"))
    starts = {seed: {plan.base[seed].evaluation.start} for seed in (3, 4)}
    for (_, seed, _), stage in plan.trained.items():
        starts[seed].add(stage.evaluation.start)
        assert stage.config.seed == stage.evaluation.seed == seed
    assert starts == {3: {0}, 4: {2}}
    assert len({stage.name for stage in plan.stages}) == 1 + 2 + 2 * 2 * 5
    assert Store(tmp_path).pending(plan.stages), "nothing is done"


def test_bad_settings_and_folders_are_refused(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(CONFIG)
    both = ("experiment", "gain", "small.toml", "--dry-run", "--set", "evaluation.splits={unseen=2,seen=2}")
    assert_refused(cli(*both), "evaluation.splits", "one split")
    assert_refused(cli("experiment", "gain", "small.toml", "--set", "gain.groups=4"), "gain.groups", "5")
    Path("other").mkdir()
    Path("other/thing.txt").write_text("mine")
    assert_refused(cli("experiment", "gain", "small.toml", "--results", "other"), "other", "gain.json")
    assert_refused(cli("experiment", "gain-page", "nowhere"), "nowhere/gain.json", "no such file")
    Path("broken").mkdir()
    Path("broken/gain.json").write_text("{}")
    assert_refused(cli("experiment", "gain-page", "broken"), "broken/gain.json", "holds no measured gains")
