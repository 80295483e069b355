"""Episodes of an environment's expert, as trajectories."""

from dataclasses import dataclass

import pytest

from gradprism.environments.demonstrations import IN_FLIGHT, collect
from gradprism.environments.play import play
from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Step
from gradprism.runtime.errors import EnvironmentPlayError
from helpers.broken_games import Adder, BrokenGames
from helpers.corrupt_games import CorruptGames
from helpers.lost_games import LostGames


def test_successful_episodes_become_trajectories_in_the_order_of_the_tasks(tmp_path):
    environment = BrokenGames(str(tmp_path))
    tasks = environment.tasks("test", IN_FLIGHT + 2)[::-1]
    trajectories = collect(environment, tasks, max_steps=5, workers=2)
    assert [t.id for t in trajectories] == [task.id for task in tasks]
    [first, *_] = trajectories
    assert [(m.role, m.content) for m in first.messages] == [
        ("user", f"{first.id}: count to 3"),
        ("assistant", "add"),
        ("user", "count 1 after 3"),
        ("assistant", "add"),
        ("user", "count 2 after 3"),
        ("assistant", "add"),
    ]
    assert first.task == tasks[0].reference()
    assert trajectories == collect(environment, tasks, max_steps=5, workers=1)


@pytest.mark.parametrize(
    ("games", "message"),
    [
        (BrokenGames, r"none of the tasks \(3\); 3 end by max_steps 2, so give more"),
        (LostGames, r"none of the tasks \(3\); name other tasks"),
    ],
)
def test_an_expert_that_solves_nothing_is_an_error_with_its_cause(tmp_path, games, message):
    with pytest.raises(EnvironmentPlayError, match=message):
        collect(games(str(tmp_path)), count=3, max_steps=2, workers=1)


def test_the_training_split_whole_and_broken_games_left_out_and_told(tmp_path, capsys):
    environment = CorruptGames(str(tmp_path))
    whole = collect(environment, workers=1)
    assert [t.id for t in whole] == [t.id for t in environment.tasks("train") if t.id != "corrupt"]
    said = capsys.readouterr().err
    assert "3 of 9 tasks were broken off" in said and "file.game: not a game" in said
    assert [t.id for t in collect(environment, split="test", count=2, workers=1)] == ["test/0", "test/1"]
    with pytest.raises(
        EnvironmentPlayError, match=r"1 of 1 tasks were broken off .* reset 'corrupt' failed: file\.game: not a game"
    ):
        collect(environment, [environment.find("corrupt")], workers=1)


@dataclass
class Tired:
    """Adds until it has `strength` no more."""

    strength: int

    def act(self, step: Step) -> str:
        if not self.strength:
            raise EnvironmentPlayError("tired")
        self.strength -= 1
        return "add"


def test_an_episode_ends_with_its_environment_its_player_or_its_actions(tmp_path):
    environment, done = BrokenGames(str(tmp_path)), []
    tasks = [*environment.tasks("train", 3), environment.find("corrupt")]
    with SessionPool(environment, 2) as pool:
        plays = play(pool, tasks, [Adder(), Tired(1), Tired(9), Adder()], 2, done.append)
        assert [(len(p.actions), len(p.steps), p.gave_up) for p in plays] == [(2, 3, ""), (1, 2, "tired"), (2, 3, ""), (0, 1, "")]
        assert [p.last.done for p in plays] == [False, False, False, True]
        assert sorted(p.task.id for p in done) == sorted(task.id for task in tasks) and len(done) == 4
        assert play(pool, tasks[:1], [Adder()], 9)[0].last.info.success
