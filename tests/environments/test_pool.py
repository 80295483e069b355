"""The pool against an engine that dies, hangs and raises."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gradprism as gp
from gradprism.environments.pool import SessionPool
from gradprism.runtime.errors import ConfigError, EnvironmentPlayError
from helpers.broken_games import BrokenGames


def play(pool: SessionPool, action: str) -> list:
    """Three sessions add twice, with `action` of the second one between; all steps of the last round."""
    pool.reset([0, 1, 2], ["train/0", "train/1", "train/2"])
    pool.step([0, 1, 2], ["add"] * 3)
    pool.step([1], [action])
    return pool.step([0, 1, 2], ["add"] * 3)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("action", ["die once", "hang once"])
def test_a_worker_that_breaks_once_is_not_noticed(tmp_path, action, workers, capfd):
    with SessionPool(BrokenGames(str(tmp_path)), workers, step_seconds=2) as pool:
        steps = play(pool, action)
        assert [step.info.score for step in steps] == pytest.approx([2 / 3] * 3)
        assert not any(step.done for step in steps)
        assert pool.restarts == 1
    said = capfd.readouterr().err
    assert f"at step '{action}' of task 'train/1'" in said and said.count("\n") == 1


@pytest.mark.parametrize("outstanding", [False, True])
def test_sessions_that_a_dying_worker_had_answered_are_set_up_again_too(tmp_path, outstanding):
    """Session 0 has its answer when session 1's action takes their worker: its next step is its third, not its first."""
    with SessionPool(BrokenGames(str(tmp_path)), 1) as pool:
        pool.reset([0, 1], ["train/0", "train/1"])
        pool.step([0, 1], ["add", "add"])
        if outstanding:
            first, second = pool.send("step", [0], ["add"]), pool.send("step", [1], ["die once"])
            assert (
                pool.collect(second)[0].observation == "count 1 after 8" and pool.collect(first)[0].observation == "count 2 after 3"
            )
        else:
            pool.step([0, 1], ["add", "die once"])
        assert [step.observation for step in pool.step([0, 1], ["add", "add"])] == ["count 3 after 3", "count 2 after 3"]
        assert pool.restarts == 1


@pytest.mark.parametrize("action", ["die", "hang"])
def test_a_game_that_breaks_every_worker_ends_alone(tmp_path, action):
    with SessionPool(BrokenGames(str(tmp_path)), 1, step_seconds=2, reset_seconds=3) as pool:
        first, broken, third = play(pool, action)
        assert (first.info.score, third.info.score) == pytest.approx((2 / 3, 2 / 3))
        assert broken.done and not broken.info.success and not broken.info.valid
        assert ("died (exit code 9)" if action == "die" else "did not answer for 5 s") in broken.info.failure
        assert pool.restarts == 2
        assert not pool.reset([1], ["train/5"])[0].done  # the session is as good as new
        assert pool.step([1], ["add"])[0].info.score == pytest.approx(1 / 3)


def test_a_killed_worker_is_replaced_between_calls(tmp_path):
    with SessionPool(BrokenGames(str(tmp_path)), 2) as pool:
        pool.reset(range(6), [f"train/{i}" for i in range(6)])
        pool.step(range(6), ["add"] * 6)
        killed = pool._workers[0].process.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        steps = pool.step(range(6), ["add"] * 6)
        assert [step.info.score for step in steps] == pytest.approx([2 / 3] * 6)
        assert pool.restarts == 1


def test_an_engine_that_raises_and_broken_data_end_their_episode(tmp_path):
    with SessionPool(BrokenGames(str(tmp_path)), 1) as pool:
        steps = pool.reset([0, 1, 2], ["train/0", "corrupt", "fatal"])
        assert [step.done for step in steps] == [False, True, True]
        assert "not a game" in steps[1].info.failure and "exit code 7" in steps[2].info.failure
        assert "not a game" in pool.step([1], ["add"])[0].info.failure  # it stays over
        raised = pool.step([0], ["raise"])[0]
        assert raised.done and "ZeroDivisionError: the engine's own" in raised.info.failure
        for figure in ("reward", "score", "part"):
            pool.reset([0], ["train/0"])
            [strange] = pool.step([0], [f"nan {figure}"])
            assert strange.done and f"the {figure} " in strange.info.failure and "not a finite number" in strange.info.failure
            assert (strange.info.score, strange.reward, dict(strange.info.parts)) == (0, 0, {})


def test_what_the_user_must_mend_is_raised_and_the_pool_goes_on(tmp_path):
    with SessionPool(BrokenGames(str(tmp_path)), 2) as pool:
        with pytest.raises(ConfigError, match="no such task"):
            pool.reset([0, 1, 2], ["train/0", "unknown", "train/2"])
        assert [s.observation for s in pool.reset([0, 1], ["train/4", "train/5"])] == ["train/4: count to 3", "train/5: count to 3"]


def test_actions_of_every_kind_pass(tmp_path):
    actions = ["", "a" * 100_000, "\x00\x1b[31m\r\n", "מלון 宿 🏨", "\udcff\ud800", " "]
    with SessionPool(BrokenGames(str(tmp_path)), 2) as pool:
        pool.reset(range(200), [f"train/{i}" for i in range(200)])
        steps = pool.step(range(200), [actions[i % len(actions)] for i in range(200)])
        assert [s.observation for s in steps] == [f"count 0 after {len(actions[i % len(actions)])}" for i in range(200)]


def test_a_worker_that_cannot_start_is_no_endless_loop(tmp_path):
    with SessionPool(BrokenGames(str(tmp_path)), 1) as pool:
        pool._workers[0].process.kill()
        with pytest.raises(EnvironmentPlayError, match="as it started"):
            pool.reset([0], ["train/0"])


def test_leaving_early_does_not_wait_for_an_engine_that_hangs(tmp_path):
    clock = time.monotonic()
    with SessionPool(BrokenGames(str(tmp_path)), 2) as pool:
        pool.reset([0, 1, 2], ["train/0", "train/1", "train/2"])
        pool.send("step", [0, 1], ["hang", "add"])
        pool.send("step", [2], ["add"])  # waits behind the one that hangs
        processes = [worker.process for worker in pool._workers]
        time.sleep(0.2)
    assert time.monotonic() - clock < 30 and not any(process.is_alive() for process in processes)
    assert pool.restarts == 0


@pytest.mark.parametrize("first", ["", "if '__mp' in __name__: raise ValueError('no folder')\n"])
def test_a_script_without_a_main_guard_is_told_of_it_in_one_line(tmp_path, first):
    """Its workers run it again, and either come to the call that needs workers, or fail before."""
    script = tmp_path / "plain.py"
    script.write_text(
        f"{first}import gradprism as gp\n"
        "gp.evaluate('random', gp.make_environment('own_games:Guess'), gp.EvaluationConfig(splits={'test': 2}), workers=1)\n"
    )
    games = Path(gp.__file__).parent / "data" / "templates" / "own_environment.py"
    (tmp_path / "own_games.py").write_text(games.read_text())
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and 'put what the script does below `if __name__ == "__main__":`' in last
    assert first or (f"{script}: has no main guard" in last and done.stderr.count("Traceback") == 1)
