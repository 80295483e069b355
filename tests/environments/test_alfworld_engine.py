"""The cached engine against the plain library, the expert, and the worker pool."""

import json
import os
import random
import subprocess
import sys

import pytest

from gradprism.environments.alfworld.environment import AlfworldEnvironment
from gradprism.environments.alfworld.generator import generate, list_games
from gradprism.environments.alfworld.official import games_folder
from gradprism.environments.demonstrations import collect
from gradprism.environments.pool import SessionPool
from gradprism.runtime.errors import GradprismError
from helpers.official_games import official_games

# Plays random admissible commands in the plain library and prints what an agent sees; runs in a process of its own, without caches.
PLAIN = """
import json, random, re, sys
from pathlib import Path
import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH
from textworld.envs.pddl import PddlEnv
from gradprism.environments.alfworld.generator import generate
from gradprism.environments.alfworld.official import load_official
domain, grammar = open(ALFRED_PDDL_PATH).read(), open(ALFRED_TWL2_PATH).read()
env = AlfredDemangler(PddlEnv(textworld.EnvInfos(admissible_commands=True)))
folder, *names = sys.argv[1:]
for name in names:
    game = load_official(Path(folder), name) if name.startswith("official/") else generate(name)
    env.load({"pddl_domain": domain, "grammar": grammar.replace("UNKNOWN GOAL", game.goal), "pddl_problem": game.pddl_problem})
    state, rng, seen = env.reset(), random.Random(0), []
    seen.append([state.feedback.split("\\n\\n", 1)[1], state["admissible_commands"], False])
    for _ in range(25):
        state, _, _ = env.step(rng.choice(state["admissible_commands"]))
        seen.append([state.feedback.strip(), state["admissible_commands"], bool(state["won"])])
    print(json.dumps(seen))
"""


def unordered(text: str) -> list[str]:
    """A text's words without the order of lists, which in the plain library depends on the hash seed."""
    return sorted(text.replace(",", " ").replace(" and ", " ").replace(".", " ").split())


@pytest.mark.parametrize("games", ["generated", pytest.param("official", marks=[pytest.mark.slow, pytest.mark.rare])])
def test_the_cached_engine_says_what_the_plain_library_says(games):
    """Nine generated games, or six official ones, one of each type: 26 texts of each, with all commands and whether it is won."""
    if games == "official":
        environment = AlfworldEnvironment(data_dir=str(official_games()))
        names = [task.id for task in environment.tasks("train", 6, start=600)]
    else:
        environment, names = AlfworldEnvironment(), list_games("small", "unseen", 6) + list_games("tiny", "train", 3)
    folder = str(games_folder(environment.data_dir)) if environment.data_dir else ""
    command = [sys.executable, "-c", PLAIN, folder, *names]
    plain = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    session, texts = environment.session(), 0
    for name, line in zip(names, plain, strict=True):
        rng, step = random.Random(0), session.reset(name)
        for expected_text, expected_admissible, expected_won in json.loads(line):
            assert unordered(step.observation) == unordered(expected_text)
            assert step.info.admissible == expected_admissible
            assert step.info.success == expected_won
            step, texts = session.step(rng.choice(step.info.admissible)), texts + 1
    assert texts == 26 * len(names)


def test_the_engine_is_reusable_and_text_does_not_depend_on_what_was_played_before():
    from gradprism.environments.alfworld.engine import AlfworldEngine

    first, second = (generate(name) for name in list_games("small", "train", 2))
    engine = AlfworldEngine()

    def play(game):
        texts = [engine.reset(game)]
        for _ in range(8):
            texts.append(engine.step(engine.admissible[len(texts) % len(engine.admissible)])[0])
        return texts

    alone = play(first)
    play(second)
    assert play(first) == alone


def test_sys_argv_survives_the_translator():
    from gradprism.environments.alfworld.engine import AlfworldEngine

    before = list(sys.argv)
    AlfworldEngine().reset(generate("tiny/base/pick_and_place_simple/999"))
    assert sys.argv == before


def test_the_expert_wins_with_admissible_actions_from_observations_alone():
    environment = AlfworldEnvironment("small")
    tasks = [*environment.tasks("train", 30, start=700), *environment.tasks("unseen", 30, start=700)]
    trajectories = collect(environment, tasks, max_steps=50, workers=2)
    assert [t.id for t in trajectories] == [t.id for t in tasks]
    for trajectory in trajectories:
        assert [m.role for m in trajectory.messages[:2]] == ["user", "assistant"]
        assert trajectory.messages[-1].role == "assistant"
        assert all(m.content != "Nothing happens." for m in trajectory.messages)


def test_full_rooms_are_won_too():
    environment = AlfworldEnvironment("full")
    tasks = environment.tasks("unseen", 6)
    assert len(collect(environment, tasks, max_steps=50, workers=2)) == len(tasks)


def test_refused_actions_change_nothing():
    session = AlfworldEnvironment("small").session()
    start = session.reset("small/seen/pick_and_place_simple/0")
    assert "Your task is to:" in start.observation
    for action in ["", "fly", "go to", "a" * 100_000, "go to nowhere 1", "\x00\x1b[31m", "take  from"]:
        step = session.step(action)
        assert (step.observation, step.reward, step.done, step.info.valid) == ("Nothing happens.", 0.0, False, False)
    place = next(action for action in start.info.admissible if action.startswith("go to "))
    assert not session.step(place.replace("go to ", "go to  ")).info.valid  # blanks within are not the engine's
    other = next(action for action in start.info.admissible if action.startswith("go to ") and action != place)
    for written in (f" {place}\n", f"{other.capitalize()}.", place.upper(), "Look.", "Inventory"):
        assert session.step(written).info.valid, written


def test_after_the_win_the_game_stays_won():
    environment = AlfworldEnvironment("tiny")
    session, expert = environment.session(), environment.expert()
    step = session.reset(environment.tasks("train", 1)[0].id)
    while not step.done:
        step = session.step(expert.act(step))
    assert step.info.success and step.reward == 1.0
    for action in ("dance", "look", step.info.admissible[0]):
        later = session.step(action)
        assert (later.done, later.info.success, later.info.score, later.reward, later.info.valid) == (True, True, 1.0, 0.0, False)
    assert not session.reset(environment.tasks("train", 1)[0].id).done and session.step("look").info.valid


def test_pool_results_do_not_depend_on_the_number_of_workers():
    environment = AlfworldEnvironment("tiny")
    ids = [t.id for t in environment.tasks("train", 6)]
    results = []
    for workers in (1, 2):
        with SessionPool(environment, workers) as pool:
            starts = pool.reset(range(6), ids)
            results.append((starts, pool.step([4, 1, 3], ["look", "inventory", "dance"])))
    assert results[0] == results[1]
    assert [step.info.valid for step in results[0][1]] == [True, True, False]


def test_pool_reports_bad_tasks():
    environment = AlfworldEnvironment("tiny")
    with SessionPool(environment, 1) as pool:
        with pytest.raises(GradprismError, match="expected DIFFICULTY"):
            pool.reset([0], ["nonsense"])
        assert pool.reset([0], ["tiny/train/look_at_obj_in_light/0"])[0].observation  # the worker is still there


def test_the_shipped_corpus_comes_out_byte_for_byte(tmp_path):
    """The first rows, with another hash seed and another number of workers than they were made with."""
    out = tmp_path / "corpus.jsonl"
    command = [sys.executable, "-m", "gradprism", "collect", "--count", "24", "--out", str(out), "--workers", "1"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "4711"}, capture_output=True)
    with open("data/alfworld-quickstart.jsonl", "rb") as shipped:
        assert out.read_bytes() == b"".join(shipped.readline() for _ in range(24))
