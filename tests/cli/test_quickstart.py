"""The whole house once, on the shipped model and a part of its corpus, with fewer steps and games than the quickstart has."""

import json
import re
import subprocess
import sys

import pytest

from gradprism.package_data import shipped
from helpers.cli import assert_refused

SMALLER = [
    "sft.max_steps=4",
    "rl.rounds=2",
    "rl.tasks_per_round=3",
    "rl.rollouts_per_task=4",
    "rl.max_steps=8",
    "evaluation.max_steps=8",
    "evaluation.splits={unseen=4, seen=3}",
    "threads=1",
]


def arguments(folder, *overrides):
    settings = [part for value in [f"out={json.dumps(str(folder))}", *SMALLER, *overrides] for part in ("--set", value)]
    return ["run", "configs/quickstart.toml", *settings]


def run(folder, *overrides):
    command = [sys.executable, "-m", "gradprism", *arguments(folder, *overrides)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.mark.slow
def test_quickstart_from_corpus_to_report_and_again(cli, tmp_path, monkeypatch):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(shipped("alfworld-quickstart.jsonl").read_text().splitlines(keepends=True)[:141]))
    part = f"corpus.files=[{json.dumps(str(corpus))}]"
    first = run(tmp_path / "run", part)
    results = json.loads((tmp_path / "run" / "results.json").read_text())

    base, sft, rl = (arm["runs"][0] for arm in results["arms"])
    [routing] = results["routes"].values()
    n_sft, n_rl = sum(routing["sft"]), sum(routing["rl"])
    assert (rl["n_sft"], rl["n_rl"]) == (n_sft, n_rl) and n_sft + n_rl == results["trajectories"] == 141
    edges = [routing["start"] + (k + 1) * routing["width"] for k in range(len(routing["sft"]))]
    for edge, to_sft, to_rl in zip(edges, routing["sft"], routing["rl"], strict=True):
        assert not (to_sft if edge > routing["threshold"] + 1e-9 else to_rl), "no bin mixes the sides of the threshold"
    assert [sum(side) for side in zip(*routing["task_types"].values(), strict=True)] == [n_sft, n_rl]
    assert len(results["heat_map"]["layers"]) == 4
    assert results["heat_map"]["kinds"] == ["q", "k", "v", "o", "gate", "up", "down"]
    for arm in (base, sft, rl):
        assert {split: len(success) for split, success in arm["success"].items()} == {"unseen": 4, "seen": 3}
    stages = {stage["kind"]: stage for stage in results["stages"].values()}
    assert len(stages["rl"]["history"]) == 2 and stages["sft"]["history"][0]["loss"] > 0
    assert stages["probe"]["tokens_backward"] > 5_000
    assert stages["rl"]["tokens_generated"] > 0
    assert all(stages[kind]["wall_seconds"] > 0 for kind in ("probe", "sft", "rl", "evaluate"))
    assert set(results["audits"]) == {"gini", "cv", "kurtosis"}

    for word in ("probe", "unseen", "Base", "SFT", "rl", "All", "%"):
        assert word in first.stdout
    assert re.search(r"\[2/8\] probe", first.stderr), "plain progress lines where there is no terminal"
    assert "\x1b[" not in first.stdout + first.stderr
    page = (tmp_path / "run" / "report.html").read_text()
    assert re.search(r'data-path="corpus/\w+/tokens/0\.json"', page), "the model's tokenizer was at hand"
    assert page.count("<script") > 20 and not re.search(r"""(src|href)=["']?https?:""", page)

    # Episodes can be read back, one per task, in the order of the tasks.
    folder = tmp_path / "run" / "stages" / base["evaluation"]
    episodes = [json.loads(line) for line in (folder / "evaluation" / "episodes.jsonl").read_text().splitlines()]
    assert [e["id"] for e in episodes[:2]] == ["small/unseen/pick_and_place_simple/0", "small/unseen/look_at_obj_in_light/0"]
    assert all(len(e["observations"]) == len(e["actions"]) + 1 for e in episodes)

    # Again: nothing is run.
    ledger = tmp_path / "run" / "ledger.jsonl"
    before = ledger.read_text().splitlines()
    code, _, said = cli(*arguments(tmp_path / "run", part))
    assert code == 0 and ledger.read_text().splitlines() == before
    assert "reused: evaluate base/0, probe the base, route sft/0, sft sft/0" in said
    assert json.loads((tmp_path / "run" / "results.json").read_text())["arms"] == results["arms"]
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir(tmp_path)
        plan = json.loads(cli("run", tmp_path / "run" / "config.json", "--dry-run", "--json")[1])
    assert (len(plan["done"]), plan["pending"]) == (8, []), "the saved config replays the run, from anywhere"

    # With another metric: route and what follows, but neither the probe nor the base's evaluation. And refreshed: what is left after SFT
    # is probed on the SFT checkpoint and routed at the same threshold, and once more during RL.
    run(tmp_path / "run", part, "route.metric=cv", "refresh.after_sft=true", "refresh.every_k_steps=1")
    rerun = [json.loads(line)["stage"] for line in ledger.read_text().splitlines()[len(before) :]]
    assert sorted(rerun) == ["evaluate", "evaluate", "refresh", "rl", "route", "sft", "sft"]
    [routing] = json.loads((tmp_path / "run" / "results.json").read_text())["routes"].values()
    stages = tmp_path / "run" / "stages"
    [refresh] = stages.glob("refresh-*")
    changes = json.loads((refresh / "changes.json").read_text())
    assert changes["threshold"] == routing["threshold"] and changes["trajectories"] == sum(routing["rl"])
    rerouted = [json.loads(line)["id"] for line in (refresh / "route" / "rl.jsonl").read_text().splitlines()]
    to_sft = [json.loads(line)["id"] for line in (refresh / "route" / "sft.jsonl").read_text().splitlines()]
    assert {row["id"] for row in changes["moved"]} == set(to_sft) and len(to_sft) == changes["moved_to_sft"]
    [first] = [f for f in stages.glob("route-*") if json.loads((f / "route" / "routing.json").read_text())["metric"] == "cv"]
    assert set(rerouted) | set(to_sft) == {
        json.loads(line)["id"] for line in (first / "route" / "rl.jsonl").read_text().splitlines()
    }
    [during] = stages.glob("rl-*/refreshes/refresh-00001/changes.json")
    said = json.loads(during.read_text())
    assert said["trajectories"] == (len(rerouted) or sum(routing["rl"])) and said["mean_score"] != said["mean_score_before"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["route.metric=size"], r"route\.metric: metric 'size': choose one of gini"),
        (["rl.roundz=3"], r"rl\.roundz: no such setting; did you mean rounds\?"),
        (['corpus.files=["nowhere.jsonl"]'], r"corpus\.files: 'nowhere.jsonl': no such file"),
        (["model.path=./nowhere"], r"model '\./nowhere': no such folder"),
        (["environment.options.difficulty=huge"], r"difficulty 'huge': choose one of"),
        (["rl"], r"expected key=value"),
        (["route.policy=best"], r"route\.policy: policy 'best': choose one of concentration"),
        (
            ["evaluation.splits={test=6}"],
            r"evaluation\.splits: environment 'alfworld' has no split 'test'; it has train, dev, seen, unseen",
        ),
        (["evaluation.splits={unseen=0}"], r"evaluation\.splits\.unseen: Input should be greater than 0"),
        (["rl.updates_per_round=999"], r"updates_per_round 999: more than tasks_per_round x rollouts_per_task"),
        (["refresh.every=3"], r"refresh\.every: no such setting"),
        (["seed=-1"], r"seed: Input should be greater than or equal to 0"),
    ],
)
def test_bad_settings_end_with_one_line_and_code_2(cli, tmp_path, overrides, message):
    code, out, err = cli(*arguments(tmp_path / "run", *overrides))
    assert_refused((code, out, err))
    assert re.search(message, err)


def test_dry_run_writes_nothing_and_prints_the_resolved_config(cli, tmp_path):
    code, out, _ = cli(*arguments(tmp_path / "run", "seed=7"), "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0 and plan["config"]["seed"] == plan["config"]["sft"]["seed"] == plan["config"]["rl"]["seed"] == 7
    assert [s["label"] for s in plan["pending"][:3]] == ["evaluate base/7", "probe the base", "route sft/7"] and plan["done"] == []
    assert not (tmp_path / "run").exists()
