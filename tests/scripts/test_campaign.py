"""The short forms of the campaigns: a few kills, and a sample of inputs that cannot be right."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_killed_commands_leave_what_undisturbed_ones_leave(tmp_path):
    command = [
        sys.executable,
        str(SCRIPTS / "campaign.py"),
        "--only",
        "route,evaluate",
        "--kills",
        "6",
        "--out",
        str(tmp_path / "c"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((tmp_path / "c" / "campaign.json").read_text())
    assert [row["command"] for row in rows] == ["evaluate", "route"]
    for row in rows:
        assert row["wrong"] == [] and row["kills"] >= 3 and row["finished"] >= 1
        assert {"two jobs", "clock set back", "vanished", "full disk", "read-only"} == set(row["disturbances"])


@pytest.mark.slow
def test_a_sample_of_bad_inputs_is_answered_by_one_line_each():
    done = subprocess.run([sys.executable, str(SCRIPTS / "bad_inputs.py"), "--sample", "40"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "40 bad inputs, 0 answered wrongly" in done.stdout


def test_a_campaign_notices_other_results_leftovers_and_ids_that_come_twice(tmp_path):
    campaign = load("campaign")
    case, row = campaign.Case([], ("a.json", "b.bin")), campaign.Row("x")
    (tmp_path / "a.json").write_text('{"loss": 1, "wall_seconds": 3, "nested": [{"usage": 5, "kept": 6}]}')
    (tmp_path / "b.bin").write_bytes(b"weights")
    whole = campaign.digest(case, tmp_path)
    (tmp_path / "a.json").write_text('{"loss": 1, "wall_seconds": 9, "nested": [{"usage": 1, "kept": 6}]}')
    assert campaign.check(case, tmp_path, whole, row, "seconds differ") and row.wrong == []
    (tmp_path / "b.bin").write_bytes(b"other")
    assert not campaign.check(case, tmp_path, whole, row, "weights differ")
    (tmp_path / ".x.tmp").write_text("")
    assert not campaign.check(case, tmp_path, whole, row, "left")
    assert "other results" in row.wrong[0] and "left behind" in row.wrong[1]


def test_bad_inputs_tell_a_good_answer_from_a_bad_one():
    bad = load("bad_inputs")
    assert bad.wrong(2, "some progress\nerror: x: no such file\n") == ""
    assert bad.wrong(0, "") == "exit code 0" and bad.wrong(-1, "Traceback") == "exit code -1"
    assert bad.wrong(2, "error: a\nerror: b\n") == "2 lines of error" and bad.wrong(2, "error: a\nmore\n") != ""
    lines = list(bad.options())
    assert len(lines) > 200 and ["rl", "--loss", "nope"] in lines and ["sft", "--epochs", "x"] in lines
