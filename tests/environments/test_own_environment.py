"""docs/environments.md's example is an environment: found by module and by entry point, played by the pool, the expert and commands."""

import json
import re
from pathlib import Path

import pytest

from gradprism.environments.demonstrations import collect
from gradprism.environments.registry import ENVIRONMENTS, make_environment

DOC = Path(__file__).parents[2] / "docs" / "environments.md"


@pytest.fixture
def guess(tmp_path, monkeypatch):
    """The example's module, with its expert, where Python and its worker processes find it."""
    blocks = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    [environment], [expert] = ([b for b in blocks if word in b] for word in ("class Guess(", "class Halver"))
    assert len([line for line in environment.splitlines() if line.strip()]) <= 30
    method, _, halver = expert.partition("\n\n\n")
    (tmp_path / "guessing.py").write_text(
        environment.replace("\n\n\nclass Guessing", f"\n\n{method}\n\n\nclass Guessing") + "\n\n" + halver
    )
    info = tmp_path / "guessing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guessing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gradprism.environments]\nguess = guessing:Guess\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(ENVIRONMENTS, "_known", {})
    return tmp_path


def test_an_installed_package_adds_it_by_name(guess):
    assert list(ENVIRONMENTS) == ["alfworld", "dialogue", "stories", "webshop", "guess"]
    environment = make_environment("guess", most="50")
    session, expert = environment.session(), environment.expert()
    step = session.reset("test/3")
    for _ in range(6):
        step = session.step(expert.act(step))
        if step.done:
            break
    assert step.info.success and not session.step("guess x").info.valid


def test_it_is_collected_from_and_evaluated_on(guess, cli):
    corpus = collect(make_environment("guessing:Guess"), split="train", count=20, max_steps=7, workers=2)
    assert [t.id for t in corpus] == [f"train/{i}" for i in range(20)]
    assert corpus[0].task == {"env": "guess", "id": "train/0", "task_type": "guess", "split": "train"}
    arguments = ["evaluate", "--env", "guessing:Guess", "--count", 30, "--max-steps", 7, "--out"]
    assert cli(*arguments, guess / "e", "--agent", "expert")[0] == 0
    everything = json.loads((guess / "e" / "summary.json").read_text())["rows"][0]
    assert (everything["successes"], everything["episodes"], everything["invalid_share"]) == (30, 30, 0.0)
    assert cli(*arguments, guess / "r", "--agent", "random")[0] == 0
    assert json.loads((guess / "r" / "summary.json").read_text())["rows"][0]["successes"] == 0
