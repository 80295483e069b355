"""Generated games: fixed by their names, distinct, of all types, in the rooms of their split."""

import re

import pytest

from gradprism.environments.alfworld.environment import AlfworldEnvironment
from gradprism.environments.alfworld.generator import (
    DIFFICULTIES,
    SPLITS,
    TASK_TYPES,
    TOOL,
    constants,
    generate,
    list_games,
    parse_difficulty,
)
from gradprism.runtime.errors import ConfigError


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_every_game_holds_what_its_goal_needs(difficulty):
    for split in SPLITS:
        for name in list_games(difficulty, split, 60):
            game = generate(name)
            facts = game.pddl_problem.partition("(:goal")[0]
            kinds = dict(re.findall(r"\(receptacleType (\S+) (\w+)Type\)", facts))
            objects = dict(re.findall(r"\(objectType (\S+) (\w+)Type\)", facts))
            inside = dict(re.findall(r"\(inReceptacle (\S+) (\S+)\)", facts))
            targets = [o for o, kind in objects.items() if kind == game.target]
            assert len(targets) >= (2 if game.task_type == "pick_two_obj_and_place" else 1)
            assert all(kinds[inside[o]] != game.destination for o in targets), "the task is not done from the start"
            assert not game.destination or game.destination in kinds.values()
            assert not game.lamp or game.lamp in objects.values()
            if game.task_type in TOOL:
                assert TOOL[game.task_type][1] in kinds.values()
            # What a receptacle is called is what it is: the text shows the id's first part.
            assert all(rid.split("_bar_")[0] + ("Basin" if "Basin" in rid else "") == kind for rid, kind in kinds.items())
            locations = re.findall(r"\(receptacleAtLocation \S+ (\S+)\)", facts)
            assert len(set(locations)) == len(locations)


def test_rooms_of_small_games_have_the_set_size():
    low, high = DIFFICULTIES["small"].receptacles or (0, 0)
    sizes = [
        generate(name).pddl_problem.partition("(:goal")[0].count("(receptacleAtLocation ")
        for name in list_games("small", "train", 240)
    ]
    assert max(sizes) <= high
    assert sum(low <= size for size in sizes) > 0.9 * len(sizes)  # fewer only where the floor plan itself has fewer


def test_splits_play_in_their_rooms_and_share_no_game():
    c = constants()
    texts = {split: [generate(name) for name in list_games("small", split, 120)] for split in SPLITS}
    for split, games in texts.items():
        rooms = c.TEST_SCENE_NUMBERS if split == "unseen" else c.TRAIN_SCENE_NUMBERS
        assert {game.floor_plan for game in games} <= set(rooms)
    problems = [game.pddl_problem for games in texts.values() for game in games]
    assert len(set(problems)) == len(problems)


def test_a_name_fixes_the_game():
    assert generate("small/train/pick_two_obj_and_place/3") == generate("small/train/pick_two_obj_and_place/3")
    assert generate("small/train/pick_two_obj_and_place/3") != generate("small/train/pick_two_obj_and_place/4")


def test_task_types_take_turns():
    assert [t.task_type for t in AlfworldEnvironment().tasks("unseen", 8)] == [*TASK_TYPES, *TASK_TYPES[:2]]
    assert AlfworldEnvironment().tasks("unseen", 2, start=5)[0].id == "small/unseen/pick_and_place_simple/5"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "small",
        "huge/train/pick_and_place_simple/0",
        "small/valid/pick_and_place_simple/0",
        "small/train/fly/0",
        "small/train/pick_and_place_simple/-1",
        "small/train/pick_and_place_simple/x",
        "small/train/pick_and_place_simple/0/0",
    ],
)
def test_a_name_that_fixes_no_game_is_refused(name):
    with pytest.raises(ConfigError, match=r"expected DIFFICULTY/SPLIT|difficulty 'huge': choose one of"):
        generate(name)


def test_a_difficulty_of_ones_own_bounds_the_room():
    for name in list_games("r5-7d2-4", "unseen", 24):
        game = generate(name)
        facts = game.pddl_problem.partition("(:goal")[0]
        kinds = re.findall(r"\(objectType \S+ (\w+)Type\)", facts)
        assert 1 <= sum(kind not in (game.target, game.lamp) for kind in kinds) <= 4
        assert 4 <= facts.count("(receptacleType ") <= 8
    sizes = {len(re.findall(r"\(receptacleType ", generate(n).pddl_problem)) for n in list_games("r12-14d2-4", "train", 12)}
    assert max(sizes) > 9


@pytest.mark.parametrize("name", ["r4-6", "r6-4d1-2", "r0-0d1-2", "r1-2d3-2", "r1-9999d1-2", "R4-6d3-5", "tiny "])
def test_a_difficulty_that_says_nothing_is_refused(name):
    with pytest.raises(ConfigError, match="difficulty"):
        parse_difficulty(name)


def test_games_of_all_splits_and_difficulties_are_games_of_their_own():
    """Two thousand five hundred games: no two have the same problem."""
    names = [n for d in ("tiny", "small") for s in SPLITS for n in list_games(d, s, 250)]
    problems = {generate(name).pddl_problem for name in names}
    assert len(problems) == len(names) == 2500
