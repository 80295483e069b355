"""`gradprism evaluate`: who plays, what is written, and that a run which is cut short ends as if it had not been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gradprism.environments.registry import make_environment
from gradprism.evaluation.config import EvaluationConfig, PlayConfig
from gradprism.evaluation.run import FOLDER, evaluate
from gradprism.models import load_model
from gradprism.package_data import shipped
from gradprism.runtime.errors import ConfigError, FolderInUseError
from gradprism.runtime.folders import exclusive_lock
from helpers.cli import assert_refused

TINY = ["--env-option", "difficulty=tiny"]


def files(folder: Path) -> dict[str, bytes]:
    """What an evaluation says of episodes; its costs are seconds and differ."""
    rows = json.loads((folder / "summary.json").read_text())["rows"]
    return {"rows": json.dumps(rows).encode(), "episodes": (folder / "episodes.jsonl").read_bytes()}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_expert_and_random(cli, tmp_path):
    code, out, _ = cli("evaluate", "--agent", "expert", *TINY, "--split", "unseen", "--count", 6, "--out", tmp_path / "e", "--json")
    summary = json.loads(out)
    everything = summary["rows"][0]
    assert (code, everything["episodes"], everything["successes"], everything["failures"]) == (0, 6, 6, 0)
    assert len(summary["rows"]) == 7 and summary["usage"]["environment_steps"] == sum(
        e["steps"] for e in lines(tmp_path / "e" / "episodes.jsonl")
    )
    random_of = ["evaluate", "--agent", "random", *TINY, "--split", "seen", "--count", 6, "--max-steps", 8]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert cli(*random_of, "--seed", seed, "--out", tmp_path / name)[0] == 0
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")
    episodes = lines(tmp_path / "a" / "episodes.jsonl")
    assert [e["id"] for e in episodes][:2] == ["tiny/seen/pick_and_place_simple/0", "tiny/seen/look_at_obj_in_light/0"]
    assert all(e["invalid"] == 0 and len(e["observations"]) == len(e["actions"]) + 1 == e["steps"] + 1 for e in episodes)


def test_a_model_that_is_killed_goes_on_where_it_was(cli, tmp_path):
    arguments = ["evaluate", "--model", "models/alfworld-tiny", *TINY, "--split", "unseen", "--count", "24"]
    arguments += ["--in-flight", "6", "--max-steps", "8"]
    assert cli(*arguments, "--out", tmp_path / "whole")[0] == 0
    cut = [sys.executable, "-m", "gradprism", *arguments, "--out", str(tmp_path / "cut")]
    process = subprocess.Popen(cut, stderr=subprocess.DEVNULL, start_new_session=True)
    while not (tmp_path / "cut" / "batches.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with open(tmp_path / "cut" / "episodes.jsonl", "a") as file:
        file.write('{"id": "tiny/unseen/look')  # a torn line is played again
    finished = len(lines(tmp_path / "cut" / "batches.jsonl"))
    assert 1 <= finished < 4
    assert cli(*arguments, "--out", tmp_path / "cut")[0] == 0
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    costs = lines(tmp_path / "cut" / "batches.jsonl")
    assert cli(*arguments, "--out", tmp_path / "cut")[0] == 0  # nothing is pending, so nothing is played
    assert lines(tmp_path / "cut" / "batches.jsonl") == costs and len(costs) == 4


def test_attempts_play_every_task_several_times_and_go_on_after_a_cut(cli, tmp_path):
    play = ["evaluate", "--model", "models/alfworld-tiny", *TINY, "--split", "dev", "--count", 4, "--max-steps", 6, "--attempts", 3]
    assert_refused(cli(*play, "--out", tmp_path / "greedy"), "attempts 3: greedily all are the same; set a temperature")
    sampled = [*play, "--temperature", 1, "--in-flight", 5]
    code, out, _ = cli(*sampled, "--out", tmp_path / "a", "--json")
    row = json.loads(out)["rows"][0]
    assert (code, row["tasks"], row["episodes"]) == (0, 4, 12)
    episodes = lines(tmp_path / "a" / "episodes.jsonl")
    assert [e["id"] for e in episodes] == sorted([e["id"] for e in episodes], key=[e["id"] for e in episodes].index)
    assert len({tuple(e["actions"]) for e in episodes}) > 4  # attempts differ
    (tmp_path / "a" / "summary.json").unlink()
    costs = (tmp_path / "a" / "batches.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a" / "batches.jsonl").write_text("".join(costs[:1]))
    assert cli(*sampled, "--out", tmp_path / "a")[0] == 0
    assert lines(tmp_path / "a" / "episodes.jsonl") == episodes


def test_random_attempts_have_a_chance_each_whatever_the_batches(cli, tmp_path):
    play = ["evaluate", "--agent", "random", *TINY, "--split", "dev", "--count", 6, "--max-steps", 10, "--seed", 3, "--workers", 1]
    for name, more in {"once": [], "many": ["--attempts", 4], "small": ["--attempts", 4, "--in-flight", 3]}.items():
        code, _, err = cli(*play, *more, "--out", tmp_path / name)
        assert code == 0, err
    once, many = (lines(tmp_path / name / "episodes.jsonl") for name in ("once", "many"))
    assert many[::4] == once, "the first attempts are those of an evaluation with one"
    for task in range(6):
        assert len({tuple(episode["actions"]) for episode in many[4 * task : 4 * task + 4]}) == 4
    assert files(tmp_path / "small") == files(tmp_path / "many")
    (tmp_path / "small" / "summary.json").unlink()
    costs = (tmp_path / "small" / "batches.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "small" / "batches.jsonl").write_text("".join(costs[:3]))  # as killed in its fourth batch, within a task
    assert cli(*play, "--attempts", 4, "--in-flight", 3, "--out", tmp_path / "small")[0] == 0
    assert files(tmp_path / "small") == files(tmp_path / "many")


def test_random_play_of_one_attempt_is_what_it_was():
    """Its seeds, of the batches of 64 in which published figures were played, and its actions, as of commit ec28da1."""
    tiny = make_environment("alfworld", difficulty="tiny")
    config = EvaluationConfig(splits={"seen": 66}, max_steps=3)
    played = evaluate("random", tiny, config, workers=1).episodes
    small = evaluate("random", tiny, config.model_copy(update={"in_flight": 5}), workers=1).episodes
    assert [episode.actions for episode in (played[0], played[1], played[65])] == [
        ["go to shelf 1", "inventory", "look"],
        ["help", "go to diningtable 1", "take remotecontrol 1 from diningtable 1"],
        ["go to garbagecan 1", "go to armchair 1", "go to dresser 1"],
    ]
    assert [episode.actions for episode in small] == [episode.actions for episode in played]


def test_attempts_that_are_all_the_same_are_refused(cli, tmp_path):
    play = ["evaluate", *TINY, "--split", "dev", "--count", 2, "--attempts", 4, "--out", tmp_path / "o"]
    assert_refused(cli(*play, "--agent", "expert"), "attempts 4: the expert plays all of them the same; leave attempts at 1")
    tiny, config = make_environment("alfworld", difficulty="tiny"), PlayConfig(splits={"dev": 2}, max_steps=3, attempts=4)
    with pytest.raises(ConfigError, match="the expert plays all of them the same"):
        evaluate("expert", tiny, config.model_copy(update={"temperature": 1.0}), workers=1)
    with pytest.raises(ConfigError, match="greedily all are the same"):
        evaluate(str(shipped("alfworld-tiny")), tiny, config, workers=1)
    assert len(evaluate("random", tiny, config, workers=1).episodes) == 8
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("agent", ["expert", "random"])
def test_options_of_models_are_refused_where_none_plays(cli, tmp_path, agent):
    play = ["evaluate", "--agent", agent, *TINY, "--split", "dev", "--count", 1, "--max-steps", 2, "--out", tmp_path / "o"]
    options = [("--dtype", "bfloat16"), ("--device", "cpu"), ("--max-action-tokens", 4), ("--history", 2), ("--thoughts", "drop")]
    for option, value in [*options, *([("--temperature", 0.7)] if agent == "expert" else [])]:
        assert_refused(cli(*play, option, value), f"{option}: is of models, and --agent {agent} plays; leave it out")
    assert not (tmp_path / "o").exists()
    code, _, err = cli(*play, "--config", "configs/quickstart.toml", "--set", "evaluation.temperature=0.7")
    assert code == 0, err  # what a file says is for other evaluations


def test_windows_of_history_and_tags(cli, tmp_path):
    arguments = ["evaluate", "--model", "models/alfworld-tiny", *TINY, "--split", "unseen", "--count", 6, "--max-steps", 4]
    assert cli(*arguments, "--history", 2, "--out", tmp_path / "window")[0] == 0
    episodes = lines(tmp_path / "window" / "episodes.jsonl")
    assert all(1 <= e["steps"] <= 4 and e["tokens"] >= e["steps"] for e in episodes)
    assert cli(*arguments, "--form", "tags", "--out", tmp_path / "tags")[0] == 0
    episodes = lines(tmp_path / "tags" / "episodes.jsonl")
    assert all(e["invalid"] == e["steps"] for e in episodes)  # the model knows no tags, so no answer has the right form


def test_what_is_refused(cli, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    expert = ["evaluate", "--agent", "expert", *TINY]
    assert_refused(cli(*expert, "--out", tmp_path / "used"), "is in use and holds no evaluation")
    assert_refused(cli("evaluate", "--out", tmp_path / "o"), "either --agent")
    assert_refused(cli(*expert, "--model", "x", "--out", tmp_path / "o"), "either --agent")
    assert_refused(cli(*expert, "--split", "moon", "--out", tmp_path / "o"), "split 'moon': choose one of")
    assert_refused(cli(*expert, "--task-type", "dance", "--out", tmp_path / "o"), "task type 'dance'")
    assert_refused(cli(*expert, "--env", "chess", "--out", tmp_path / "o"), "environment 'chess': choose one of")
    assert_refused(cli(*expert, "--env-option", "dificulty=tiny", "--out", tmp_path / "o"), "no option 'dificulty'")
    assert_refused(cli(*expert, "--env-option", "tiny", "--out", tmp_path / "o"), "expected key=value")
    assert_refused(cli(*expert, "--data-dir", tmp_path / "gone", "--out", tmp_path / "o"), "no such folder", "alfworld-download")
    assert not (tmp_path / "o").exists()


def test_another_evaluation_is_not_mixed_in(cli, tmp_path):
    arguments = ["evaluate", "--agent", "expert", *TINY, "--split", "unseen", "--out", tmp_path / "o"]
    assert cli(*arguments, "--count", 6)[0] == 0
    assert_refused(cli(*arguments, "--count", 12), "holds another evaluation (config.splits.unseen: 6 → 12", "tasks_sha256: ")
    assert_refused(cli(*arguments, "--count", 6, "--on-existing", "fail"), "is not empty")
    assert cli(*arguments, "--count", 12, "--on-existing", "replace")[0] == 0
    assert len(lines(tmp_path / "o" / "episodes.jsonl")) == 12


@pytest.mark.parametrize("agent", ["expert", "random"])
def test_games_that_break_are_counted_and_survived(tmp_path, agent):
    """Through the library: an environment of the user's own, whose every third task cannot be started."""
    environment = make_environment("helpers.corrupt_games:CorruptGames")
    evaluation = evaluate(agent, environment, EvaluationConfig(splits={"test": 9}), out=tmp_path / "o", workers=2)
    assert (evaluation.rows[0].episodes, evaluation.rows[0].failures) == (9, 3)
    episodes = lines(tmp_path / "o" / "episodes.jsonl")
    assert ["not a game" in e.get("failure", "") for e in episodes] == [i % 3 == 2 for i in range(9)]
    assert all(e["details"] == {"n": 3} for e in episodes if e["success"])


def test_two_jobs_in_one_folder_are_refused_and_no_folder_writes_nothing(tmp_path):
    environment, config = make_environment("helpers.corrupt_games:CorruptGames"), EvaluationConfig(splits={"test": 4})
    with (
        exclusive_lock(tmp_path / "o", ".evaluation.tmp", "is being evaluated into"),
        pytest.raises(FolderInUseError, match="is being evaluated into by process"),
    ):
        evaluate("expert", environment, config, out=tmp_path / "o", workers=1)
    assert not (tmp_path / "o").exists()
    whole = evaluate("expert", environment, config, out=tmp_path / "o", workers=1)
    again = evaluate("expert", environment, config, out=tmp_path / "o", workers=1)
    assert FOLDER.check(tmp_path / "o", "resume") and whole == again
    alone = evaluate("expert", environment, config, workers=1)
    assert alone.rows == whole.rows and alone.episodes == whole.episodes


def test_environment_and_model_are_taken_by_name_or_made():
    config = EvaluationConfig(splits={"unseen": 1}, max_steps=2)
    assert len(evaluate("expert", "alfworld", config, workers=1).episodes) == 1
    tiny = make_environment("alfworld", difficulty="tiny")
    path = str(shipped("alfworld-tiny"))
    by_name, loaded = (evaluate(model, tiny, config, workers=1).episodes for model in (path, load_model(path)))
    assert [e.to_json() for e in by_name] == [e.to_json() for e in loaded]
    with pytest.raises(ConfigError, match="environment 'alfwrold': choose one of"):
        evaluate("expert", "alfwrold", config)
    with pytest.raises(ConfigError, match="environment 3: give a name"):
        evaluate("expert", 3, config)  # pyright: ignore[reportArgumentType]
