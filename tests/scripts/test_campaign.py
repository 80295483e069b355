"""The short forms of the campaigns: a few kills, and a sample of inputs that cannot be right."""

import importlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def load(monkeypatch):
    """Loads a script by name, as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


@pytest.mark.slow
@pytest.mark.rare
def test_killed_commands_leave_what_undisturbed_ones_leave(tmp_path):
    command = [
        sys.executable,
        str(SCRIPTS / "campaign.py"),
        "--commands",
        "evaluate",
        "--kills",
        "6",
        "--out",
        str(tmp_path / "c"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((tmp_path / "c" / "campaign.json").read_text())
    assert [row["command"] for row in rows] == ["evaluate"]
    for row in rows:
        assert row["wrong"] == [] and row["kills"] >= 3 and row["finished"] >= 1
        assert {"two jobs", "clock set back", "vanished", "full disk", "read-only"} <= set(row["disturbances"])
    [evaluate] = rows
    assert any(what.startswith("a killed process of several") for what in evaluate["disturbances"])
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and json.loads((tmp_path / "c" / "campaign.json").read_text()) == rows  # nothing is repeated


@pytest.mark.slow
def test_a_sample_of_bad_inputs_is_answered_by_one_line_each():
    done = subprocess.run([sys.executable, str(SCRIPTS / "bad_inputs.py"), "--sample", "40"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "40 bad inputs, 0 answered wrongly" in done.stdout


def test_a_campaign_notices_other_results_and_leftovers(tmp_path, load):
    campaign, case = load("campaign"), load("campaign_cases").Case((), ("a.json", "b.bin"))
    one = campaign.Campaign("x", case, tmp_path, 0)
    (tmp_path / "a.json").write_text('{"loss": 1, "wall_seconds": 3, "nested": [{"usage": 5, "kept": 6}]}')
    (tmp_path / "b.bin").write_bytes(b"weights")
    one.expected = load("campaign_cases").digest(case, tmp_path)
    (tmp_path / "a.json").write_text('{"loss": 1, "wall_seconds": 9, "nested": [{"usage": 1, "kept": 6}]}')
    one.check(tmp_path, "seconds differ")
    (tmp_path / "b.bin").write_bytes(b"other")
    with pytest.raises(AssertionError, match="weights differ: other results"):
        one.check(tmp_path, "weights differ")
    (tmp_path / ".x.tmp").write_text("")
    with pytest.raises(AssertionError, match="left behind"):
        one.check(tmp_path, "left")


def test_a_campaign_s_kills_go_to_all_commands_and_few_to_slow_ones(tmp_path, load):
    given = load("campaign").shares(load("campaign_cases").cases(tmp_path), 120)
    assert sum(given.values()) >= 120 and given["probe, 2 processes"] == given["run"] == 4 < given["probe"] == given["export"]
    assert load("campaign").shares({"run": load("campaign_cases").cases(tmp_path)["run"]}, 9) == {"run": 9}


def test_killing_a_part_of_a_command_meets_its_child_alone(load):
    campaign = load("campaign_processes")
    child = subprocess.Popen(["sh", "-c", "sleep 60 & wait; exit 7"])
    while not campaign.kill_part(child.pid, "sleep 60", random.Random(0)):
        pass
    assert child.wait() == 7 and not campaign.kill_part(child.pid, "sleep", random.Random(0))


def test_bad_inputs_tell_a_good_answer_from_a_bad_one(load):
    bad = load("bad_inputs")
    assert bad.wrong(2, "some progress\nerror: x: no such file\n") == ""
    assert bad.wrong(0, "") == "exit code 0" and bad.wrong(-1, "Traceback") == "exit code -1"
    assert bad.wrong(2, "error: a\nerror: b\n") == "2 lines of error" and bad.wrong(2, "error: a\nmore\n") != ""
    lines = list(bad.options())
    assert len(lines) > 200 and ["rl", "--loss", "nope"] in lines and ["sft", "--epochs", "x"] in lines
