"""Runs as pages get them: stages that are done and that are running, alarms, episodes step by step, results."""

import json

import pytest

from gradprism.experiments.comparison import Comparison
from gradprism.experiments.results import read_results
from gradprism.runtime.errors import DataError, MissingFileError
from gradprism.runtime.folders import exclusive_lock
from gradprism.studio import runs
from gradprism.studio.resources import Resources
from helpers.studio import ATTACK, evaluation, make_run


def get(resources, path):
    return json.loads(resources.get(path, {}).content)


def entries(resources):
    return {entry["kind"]: entry for entry in get(resources, "index.json")["entries"]}


def test_a_run_while_it_runs(tmp_path):
    make_run(tmp_path / "run", running=True)
    resources = Resources([str(tmp_path)])
    run = entries(resources)["run"]
    assert entries(resources)["training"]["run"] == run["id"]
    view = get(resources, f"run/{run['id']}.json")
    assert view["state"] == "running"
    stages = {stage["kind"]: stage for stage in view["stages"]}
    assert (stages["sft"]["state"], stages["sft"]["wall_seconds"], stages["sft"]["headline"]) == ("done", 3.0, f"done {ATTACK}")
    assert (stages["rl"]["state"], stages["rl"]["progress"]) == ("running", {"done": 12, "total": 40, "unit": "steps"})
    trainings = {training["kind"]: training for training in view["trainings"]}
    assert (trainings["sft"]["steps"], trainings["sft"]["total_steps"]) == (4, 4)
    [alarm] = trainings["rl"]["alarms"]
    assert (alarm["name"], alarm["round"]) == ("refused", 10) and alarm["remedy"].startswith("raise invalid_penalty")
    assert view["warnings"] == [f"weights {ATTACK}"]
    told = f"raised in round 10 and still true, refused: {alarm['what']}; {alarm['remedy']}"
    summary = {"steps": 12, "warnings": [told, "text was cut"]}
    (tmp_path / "run" / "stages" / "rl-0123456789abcdef" / "summary.json").write_text(json.dumps(summary))
    [rl] = [training for training in get(resources, f"run/{run['id']}.json")["trainings"] if training["kind"] == "rl"]
    assert rl["warnings"] == ["text was cut"] and rl["alarms"] == [alarm]
    log = get(resources, f"run/{run['id']}/log/{trainings['rl']['id']}.json")["columns"]
    assert log["step"][:4] == [1, 1, 2, 2] and log["success"][:3] == [0.2, None, 0.2] and log["loss"][:2] == [None, 0.1]
    assert trainings["rl"]["figures"][:2] == ["loss", "success"]


def test_a_run_that_was_killed_and_one_that_ended(tmp_path):
    make_run(tmp_path / "run", running=True)
    marker = tmp_path / "run" / "running" / "rl-0123456789abcdef.json"
    marker.write_text(json.dumps({"pid": 2**22 + 1, "created": 0.0}))
    resources = Resources([str(tmp_path)])
    view = get(resources, f"run/{entries(resources)['run']['id']}.json")
    assert (view["state"], view["stages"][-1]["state"]) == ("unfinished", "stopped")
    with exclusive_lock(tmp_path / "run", ".experiment.tmp"):
        assert entries(resources)["run"]["running"]
        assert get(resources, f"run/{entries(resources)['run']['id']}.json")["state"] == "running"
    assert not entries(resources)["run"]["running"]


def test_episodes_step_by_step(tmp_path):
    episodes = evaluation(tmp_path / "evaluation")
    resources = Resources([str(tmp_path)])
    id = entries(resources)["evaluation"]["id"]
    [told] = get(resources, f"run/{id}.json")["evaluations"]
    assert (told["agent"], told["episodes"], told["total"], told["remarks"]) == ("random", 6, 6, [f"remark {ATTACK}"])
    of_all = told["rows"][0]
    assert (of_all["task_type"], of_all["success"], of_all["invalid_share"]) == ("all", 0.5, 0.5) and of_all["low"] < 0.5
    listed = get(resources, f"run/{id}/episodes/{id}.json")["columns"]
    assert listed["id"] == [episode.task.id for episode in episodes] and listed["success"] == [False, True] * 3
    one = get(resources, f"run/{id}/episodes/{id}/1.json")
    assert [step["action"] for step in one["steps"]] == [f"go {ATTACK}", "take"] and one["observation"] == "the end"
    assert one["parts"] == {"r_type": 0.5, "r_att": 0.25} and one["details"]["bought"] == ATTACK
    assert (one["reward"], one["steps"][1]) == (1.25, {"observation": "again", "action": "take", "valid": False, "reward": 1.0})
    with pytest.raises(MissingFileError, match="has no episode 6, only 6"):
        get(resources, f"run/{id}/episodes/{id}/6.json")
    with (tmp_path / "evaluation" / "episodes.jsonl").open("a") as file:
        file.write('{"id": "torn')
    assert get(resources, f"run/{id}/episodes/{id}.json")["n"] == 6


def test_a_live_run_is_read_again_only_where_it_has_changed(tmp_path, monkeypatch):
    make_run(tmp_path / "run", running=True)
    resources = Resources([str(tmp_path)])
    page, read = f"run/{entries(resources)['run']['id']}.json", []
    whole = runs._episodes
    monkeypatch.setattr(runs, "_episodes", lambda folder: read.append(folder.name) or whole(folder))
    first = get(resources, page)
    assert get(resources, page) == first and len(read) == 1
    episodes = tmp_path / "run" / "stages" / "evaluate-0123456789abcdef" / "evaluation" / "episodes.jsonl"
    lines = episodes.read_text().splitlines()
    episodes.write_text("\n".join([*lines, lines[0]]) + "\n")
    again = get(resources, page)
    assert len(read) == 2 and again["evaluations"][0]["episodes"] == first["evaluations"][0]["episodes"] + 1
    assert again["version"] != first["version"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("stages/sft-0123456789abcdef/stage.json", '{"kind": "sft"}', "is of another version or broken"),
        ("stages/sft-0123456789abcdef/manifest.json", "[1]", "is of another version or broken"),
        ("stages/evaluate-0123456789abcdef/evaluation/episodes.jsonl", '{"id": 1}\n', "is of another version or broken"),
    ],
)
def test_a_run_of_another_version_is_told(tmp_path, file, content, message):
    make_run(tmp_path / "run")
    (tmp_path / "run" / file).write_text(content)
    resources = Resources([str(tmp_path)])
    with pytest.raises(DataError, match=message) as caught:
        get(resources, f"run/{entries(resources)['run']['id']}.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["alfworld-mini", "webshop-mini"])
def test_results_say_what_the_tables_say(name):
    resources = Resources([f"results/{name}"])
    view = get(resources, f"results/{entries(resources)['results']['id']}.json")
    comparison = Comparison(read_results(f"results/{name}"))  # type: ignore[arg-type]
    assert [arm["name"] for arm in view["arms"]] == list(comparison.arms) and view["splits"] == comparison.splits
    split = comparison.splits[0]
    for arm in view["arms"]:
        mean = comparison.mean(arm["name"])
        if mean is not None:
            assert arm["success"][split] == pytest.approx({"mean": mean.mean, "low": mean.low, "high": mean.high})
            assert all(len(run["success"]) == len(view["tasks"][split]) for run in arm["outcomes"][split])
    assert len(view["claims"]) == len(comparison.results.claims) and len(view["sweeps"]) == len(comparison.results.sweeps)
    kinds = [block["type"] for block in view["document"]]
    assert kinds[0] == "heading" and kinds.count("table") >= 10
    costed = [arm for arm in view["arms"] if arm["cost"]]
    trained = [arm.name for arm in comparison.results.arms if arm.runs and arm.name != comparison.results.base_arm]
    assert trained and set(trained) <= {arm["name"] for arm in costed} and all(arm["cost"]["wall_seconds"] > 0 for arm in costed)
