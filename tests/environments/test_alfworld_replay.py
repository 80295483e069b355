"""Older trajectories played again."""

import json
from pathlib import Path

import pytest

from gradprism.environments.alfworld.environment import AlfworldEnvironment
from gradprism.environments.alfworld.generator import generate
from gradprism.environments.alfworld.replay import new_action
from gradprism.environments.demonstrations import collect


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("put mug 1 in/on desk 2", "move mug 1 to desk 2"),
        ("Thought: now it is clean.\nAction: put plate 1 in/on fridge 1", "move plate 1 to fridge 1"),
        ("go to desk 1", "go to desk 1"),
        ("move mug 1 to desk 2", "move mug 1 to desk 2"),
    ],
)
def test_actions_in_todays_words(old, new):
    assert new_action(old) == new


@pytest.fixture
def corpus(tmp_path):
    """Three games in the official layout and an ETO corpus in the older text, the expert's own plays in disguise."""
    names = [f"tiny/train/pick_and_place_simple/{i}" for i in range(3)]
    environment = AlfworldEnvironment("tiny")
    trajectories = collect(environment, [environment.task({"env": "alfworld", "id": n}) for n in names], workers=1)
    records = []
    for index, trajectory in enumerate(trajectories):
        game = generate(trajectory.id)
        path = tmp_path / "json_2.1.1" / "train" / "pick_and_place_simple-Mug-None-Desk-1" / f"trial_{index}" / "game.tw-pddl"
        path.parent.mkdir(parents=True)
        grammar = f"Your task is to: {game.goal}."
        path.write_text(json.dumps({"pddl_problem": game.pddl_problem, "grammar": grammar, "solvable": True}))
        turns = [{"from": "human", "value": "Interact with a household."}, {"from": "gpt", "value": "OK"}]
        for message in trajectory.messages:
            text = message.content.replace("move ", "put ").replace(" to desk", " in/on desk")
            if message.role == "assistant" and text.startswith("put "):
                text = text.replace(" to ", " in/on ")
            turns.append({"from": "gpt" if message.role == "assistant" else "human", "value": text})
        records.append({"id": f"t{index}", "game_file": str(path.relative_to(tmp_path)), "conversations": turns})
    return tmp_path, records, trajectories


def replayed(cli, folder: Path, records: list) -> tuple[list, dict]:
    (folder / "eto.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    arguments = ["--data", folder / "eto.jsonl", "--data-dir", folder, "--out", folder / "new.jsonl", "--workers", 1, "--json"]
    code, out, err = cli("alfworld", "replay", *arguments)
    assert (code, err) == (0, "")
    return [json.loads(line) for line in (folder / "new.jsonl").read_text().splitlines()], json.loads(out)


def test_what_the_engine_says_replaces_what_the_corpus_said(cli, corpus):
    folder, records, trajectories = corpus
    rows, told = replayed(cli, folder, records)
    assert (told["kept"], told["kept_share"], told["lost"]) == (3, 1.0, [])
    for index, (row, trajectory) in enumerate(zip(rows, trajectories, strict=True)):
        assert [m["content"] for m in row["messages"]] == [m.content for m in trajectory.messages]
        assert row["task"] == {
            "env": "alfworld",
            "id": f"official/train/pick_and_place_simple-Mug-None-Desk-1/trial_{index}",
            "task_type": "pick_and_place_simple",
            "split": "train",
        }


def test_what_does_not_replay_is_told_with_its_reason(cli, corpus):
    folder, records, trajectories = corpus
    records[0]["conversations"] = records[0]["conversations"][:-1]  # one action short
    records[1]["conversations"][3]["value"] = "go to the moon"
    records.append({**records[2], "id": "elsewhere", "game_file": "json_2.1.1/train/pick_and_place_simple-Mug-None-Desk-1/none"})
    records.append({**records[2], "id": "nameless", "game_file": "x"})
    rows, told = replayed(cli, folder, records)
    assert [row["id"] for row in rows] == ["t2"]
    short = len(trajectories[0].messages) // 2 - 1
    assert [(lost["id"], lost["step"]) for lost in told["lost"]] == [("t0", short), ("t1", 1), ("elsewhere", 0), ("nameless", 0)]
    for lost, words in zip(told["lost"], ["not solved", "does not accept", "does not exist", "names no game"], strict=True):
        assert words in lost["why"]
