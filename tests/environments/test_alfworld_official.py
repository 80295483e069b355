"""The official layout, made here from generated games with an older domain and grammar, and broken in every way."""

import json
import shutil
from pathlib import Path

import pytest

from gradprism.environments.alfworld import official
from gradprism.environments.alfworld.environment import AlfworldEnvironment
from gradprism.environments.alfworld.generator import generate
from gradprism.environments.demonstrations import collect
from gradprism.environments.pool import SessionPool
from gradprism.evaluation.config import EvaluationConfig
from gradprism.evaluation.run import evaluate
from gradprism.runtime.errors import ConfigError, DataError, FolderInUseError, MissingFileError
from gradprism.runtime.files import cache_folder
from helpers.official_games import official_games

OLDER = 'grammar :: """{"task": [{"rhs": "Your task is to: %s."}], "look": [{"rhs": "an older text"}]}"""'


def write_game(folder: Path, split: str, task: str, trial: str, name: str, solvable: object = True) -> Path:
    path = folder / "json_2.1.1" / split / task / trial / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    game = generate(name)
    content = {"pddl_domain": "older", "grammar": OLDER % game.goal, "pddl_problem": game.pddl_problem, "solvable": solvable}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def folder(tmp_path):
    for index, trial in enumerate(["trial_T2", "trial_T1"]):
        write_game(tmp_path, "train", "pick_and_place_simple-Mug-None-Desk-308", trial, f"tiny/train/pick_and_place_simple/{index}")
        write_game(
            tmp_path, "train", "look_at_obj_in_light-Mug-None-DeskLamp-308", trial, f"tiny/train/look_at_obj_in_light/{index}"
        )
    write_game(tmp_path, "train", "look_at_obj_in_light-CD-None-DeskLamp-3", "trial_T3", "tiny/train/look_at_obj_in_light/3", False)
    write_game(tmp_path, "train", "pick_and_place_with_movable_recep-CD-Box-Bed-3", "trial_T4", "tiny/train/look_at_obj_in_light/4")
    write_game(
        tmp_path, "train", "pick_heat_then_place_in_recep-AppleSliced-None-Fridge-3", "t", "tiny/train/look_at_obj_in_light/5"
    )
    write_game(tmp_path, "valid_unseen", "pick_and_place_simple-Pen-None-Desk-9", "trial_T5", "tiny/unseen/pick_and_place_simple/0")
    return tmp_path


def test_solvable_games_in_turn_with_ids_that_know_no_folder(folder):
    expected = [
        "official/train/pick_and_place_simple-Mug-None-Desk-308/trial_T1",
        "official/train/look_at_obj_in_light-Mug-None-DeskLamp-308/trial_T1",
        "official/train/pick_and_place_simple-Mug-None-Desk-308/trial_T2",
        "official/train/look_at_obj_in_light-Mug-None-DeskLamp-308/trial_T2",
    ]
    for data_dir in (folder, folder / "json_2.1.1"):
        environment = AlfworldEnvironment(data_dir=str(data_dir))
        assert [task.id for task in environment.tasks("train")] == expected
        assert environment.size("train") == 4
    assert [t.split for t in environment.tasks("unseen")] == ["valid_unseen"]
    with pytest.raises(ConfigError, match="has 4 tasks, so not those from 3 to 6"):
        environment.tasks("train", 3, start=3)


def test_the_environment_variable_is_asked_for_official_games_only(folder, monkeypatch):
    monkeypatch.setenv("ALFWORLD_DATA", str(folder))
    assert AlfworldEnvironment(games="official").size("train") == 4
    assert AlfworldEnvironment().size("train") is None
    monkeypatch.delenv("ALFWORLD_DATA")
    with pytest.raises(MissingFileError, match="alfworld-download"):
        AlfworldEnvironment(games="official")


def test_official_games_are_told_in_the_installed_text(folder):
    environment = AlfworldEnvironment(data_dir=str(folder))
    session, same = environment.session(), AlfworldEnvironment().session()
    for trial, generated in (("T1", 1), ("T2", 0)):
        ours = session.reset(f"official/train/pick_and_place_simple-Mug-None-Desk-308/trial_{trial}")
        assert ours == same.reset(f"tiny/train/pick_and_place_simple/{generated}")
        assert session.step(ours.info.admissible[0]) == same.step(ours.info.admissible[0])


def test_a_translation_is_kept_and_a_torn_one_is_made_again(folder, tmp_path, monkeypatch):
    from gradprism.environments.alfworld import translation

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calls = []
    translate = translation._translate
    monkeypatch.setattr(translation, "_translate", lambda *texts: calls.append(texts) or translate(*texts))
    session = AlfworldEnvironment(data_dir=str(folder)).session()
    task_id = "official/valid_unseen/pick_and_place_simple-Pen-None-Desk-9/trial_T5"

    def fresh():
        translation.translate.cache_clear()
        first = session.reset(task_id)
        return [first, session.step("look"), session.step(first.info.admissible[-1])]

    made, kept = fresh(), fresh()
    assert len(calls) == 1 and made == kept
    [entry] = (cache_folder() / "alfworld" / "games").glob("*/*.zst")
    for harm in (entry.read_bytes()[:100], b"", b"not compressed"):
        entry.write_bytes(harm)
        assert fresh() == made
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "cannot be read"),
        ('{"pddl_domain": "x", "solvable": true, "gra', "cannot be read"),
        ('{"solvable": true, "walkthrough": {}', "cannot be read"),  # cut just after a brace
        ('{"solvable": true}', "not a game"),
        ('{"solvable": true, "pddl_problem": "(define", "grammar": "Your task is to: x"}', "not a game"),
        ('{"solvable": true, "pddl_problem": 7, "grammar": 8}', "not a game"),
    ],
)
def test_a_broken_game_is_named(folder, content, words):
    path = write_game(
        folder, "valid_seen", "pick_and_place_simple-Pen-None-Desk-9", "trial_T9", "tiny/seen/pick_and_place_simple/0"
    )
    path.write_text(content)
    environment = AlfworldEnvironment(data_dir=str(folder))
    with pytest.raises(DataError, match=words) as caught:
        environment.tasks("valid_seen")
        environment.session().reset("official/valid_seen/pick_and_place_simple-Pen-None-Desk-9/trial_T9")
    assert str(path) in str(caught.value) and "alfworld-download" in str(caught.value)


def test_a_game_that_breaks_later_ends_its_episode_alone(folder):
    environment = AlfworldEnvironment(data_dir=str(folder))
    ids = [task.id for task in environment.tasks("train")]
    path = folder / "json_2.1.1" / Path(*ids[1].split("/")[1:]) / "game.tw-pddl"
    path.write_text(path.read_text().replace("(:init", "(:init (("))
    with SessionPool(environment, 1) as pool:
        steps = pool.reset(range(4), ids)
        assert [bool(step.info.failure) for step in steps] == [False, True, False, False]
        assert not pool.step([0, 2, 3], ["look"] * 3)[0].done


def test_what_is_missing_is_said(folder, tmp_path):
    with pytest.raises(MissingFileError, match="no such folder"):
        AlfworldEnvironment(data_dir=str(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="holds none of the folders"):
        AlfworldEnvironment(data_dir=str(tmp_path / "empty"))
    (tmp_path / "half" / "train" / "pick_and_place_simple-Pen-None-Desk-9" / "trial").mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds no solvable game\.tw-pddl"):
        AlfworldEnvironment(data_dir=str(tmp_path / "half")).tasks("train")
    environment = AlfworldEnvironment(data_dir=str(folder))
    with pytest.raises(MissingFileError, match=r"no such split; there are \['train', 'valid_unseen'\]"):
        environment.tasks("seen")
    for name in ("official/train/../x", "official/train/a/b/c", "official/train/a", "official//a/b"):
        with pytest.raises(ConfigError, match="expected official/SPLIT"):
            environment.task({"env": "alfworld", "id": name})
    with pytest.raises(ConfigError, match="does not exist"):
        environment.session().reset("official/train/pick_and_place_simple-Mug-None-Desk-308/trial_T9")


def test_the_official_data_and_the_expert():
    """A sample of the real training games, where they are at hand."""
    environment = AlfworldEnvironment(data_dir=str(official_games()))
    tasks = environment.tasks("train")
    assert (len(tasks), environment.size("valid_train")) == (3554, 200)
    assert len(collect(environment, tasks[::178], workers=2)) == 20


def test_a_split_that_is_not_whole_is_told_beside_its_figures(folder, monkeypatch, tmp_path):
    environment = AlfworldEnvironment(data_dir=str(folder))
    [line] = environment.remarks(environment.tasks("train"))
    assert "holds 4 of the 3554 published games" in line
    evaluation = evaluate("random", environment, EvaluationConfig(splits={"unseen": 1}, max_steps=2), out=tmp_path / "e", workers=1)
    assert [line.split(": ")[1] for line in evaluation.remarks] == [
        "holds 1 of the 134 published games; figures are not comparable"
    ]
    assert json.loads((tmp_path / "e" / "summary.json").read_text())["remarks"] == list(evaluation.remarks)
    monkeypatch.setitem(official.PUBLISHED, "train", 4)
    assert environment.remarks(environment.tasks("train")) == []
    assert AlfworldEnvironment("tiny").remarks(AlfworldEnvironment("tiny").tasks("seen", 2)) == []


def test_games_count_by_what_is_in_them_wherever_they_lie(folder, tmp_path_factory):
    environment = AlfworldEnvironment(data_dir=str(folder))
    first, second, *_ = environment.tasks("train")
    before = [environment.identity(tasks) for tasks in ([first], [second], None)]
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "data"
    shutil.copytree(folder, elsewhere)
    moved = AlfworldEnvironment(data_dir=str(elsewhere))
    assert [moved.identity(tasks) for tasks in ([first], [second], None)] == before
    path, config = official.game_path(folder / "json_2.1.1", first.id), EvaluationConfig(splits={"train": 1}, max_steps=2)
    evaluate("random", environment, config, out=tmp_path_factory.getbasetemp() / "e", workers=1)
    path.write_text(path.read_text().replace("Your task is to: put", "Your task is to: lay"))  # of the same size
    official._index.cache_clear()
    after = [environment.identity(tasks) for tasks in ([first], [second], None)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, False]
    with pytest.raises(FolderInUseError, match=r"holds another evaluation \(environment.games_sha256"):
        evaluate("random", environment, config, out=tmp_path_factory.getbasetemp() / "e", workers=1)
    generated = AlfworldEnvironment("tiny")
    assert generated.contents() == generated.contents(generated.tasks("train", 2)) == {}


def test_a_cache_that_cannot_be_written_costs_time_alone(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    official._index.cache_clear()
    assert AlfworldEnvironment(data_dir=str(folder)).size("train") == 4
    assert AlfworldEnvironment(data_dir=str(folder)).session().reset(AlfworldEnvironment(data_dir=str(folder)).tasks("train")[0].id)
