"""The short form of the fuzzing: a few hundred inputs of each reader, the same each time; and that it notices what it looks for."""

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradprism.runtime.errors import DataError

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def fuzz(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("fuzz")


@pytest.mark.slow
@pytest.mark.rare
def test_every_reader_reads_or_refuses_what_is_nearly_right():
    command = [sys.executable, str(SCRIPTS / "fuzz.py"), "--examples", "30", "--seconds", "3600"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "0 ways to fail" in done.stdout and done.stdout.count(" inputs in ") > 20


@pytest.mark.parametrize(
    ("reading", "answer"),
    [
        (lambda: None, "read"),
        (lambda: refuse("one line"), "refused"),
        (lambda: refuse("two\nlines"), "not one line of error"),
        (lambda: refuse(""), "not one line of error"),
        (lambda: {}["x"], "KeyError"),
        (lambda: time.sleep(2), "more than 0.2 s"),
        (lambda: swallow(), "more than 0.2 s"),
    ],
)
def test_the_fuzzer_tells_answers_apart(fuzz, tmp_path, monkeypatch, reading, answer):
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    monkeypatch.setattr(fuzz, "WAITING", 1)
    reader = fuzz.Reader("x", "x.json", lambda folder: reading())
    assert fuzz.read(reader, b"data", tmp_path).startswith(answer)
    assert (tmp_path / "x.json").read_bytes() == b"data"


def test_a_process_that_dies_is_a_way_to_fail(fuzz, tmp_path):
    def read(folder: Path) -> None:
        if (folder / "x.json").read_bytes() != b"seed":
            os.kill(os.getpid(), signal.SIGKILL)

    def work(told: Path) -> None:
        fuzz.Findings().add(reader, b"worse", told.parent / "f")

    reader = fuzz.Reader("x", "x.json", read)
    (tmp_path / "f").mkdir()
    assert fuzz.in_child(reader, [b"seed"], tmp_path, work).failures == {"the process died (exit code -9)": b"worse"}


def test_edits_are_the_same_for_the_same_choices_and_change_most_files(fuzz):
    seed = b'{"a": [1, 2, {"b": null}], "c": "d"}\n{"a": []}\n'
    made = [fuzz.edited(seed, fuzz.Chance(random.Random(number).randint)) for number in range(200)]
    assert made == [fuzz.edited(seed, fuzz.Chance(random.Random(number).randint)) for number in range(200)]
    assert len(set(made)) > 100 and sum(one != seed for one in made) > 180


def refuse(text: str) -> None:
    raise DataError(text)


def swallow() -> None:
    while True:
        try:
            time.sleep(1)
        except Exception:
            continue
