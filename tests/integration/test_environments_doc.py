"""docs/environments.md's example is an environment: found by its folder, played by the pool, the expert and the command line."""

import json
import re
from pathlib import Path

import gradprism.environments
from gradprism.environments.pool import SessionPool
from gradprism.environments.registry import environment_names, make_environment

DOC = Path(__file__).parents[2] / "docs" / "environments.md"


def test_the_example_is_a_third_environment(cli, tmp_path, monkeypatch):
    code = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 60
    folder = tmp_path / "guess"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "environment.py").write_text(code)
    # As if the folder lay beside the others.
    monkeypatch.setattr(gradprism.environments, "__path__", [*gradprism.environments.__path__, str(tmp_path)])
    assert environment_names() == ["alfworld", "guess", "webshop"]
    environment = make_environment("guess", {"most": "50"})
    session, expert = environment.session(), environment.expert()
    step = session.reset("test/3")
    for _ in range(6):
        step = session.step(expert.act(step))
        if step.done:
            break
    assert step.info.success and not session.step("guess x").info.valid

    # Worker processes have no such folder; they find the class where Python finds modules.
    (tmp_path / "guessing.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with SessionPool(make_environment("guessing:Guess"), 2) as pool:
        assert [len(pairs or []) <= 7 for pairs in pool.demonstrate([f"train/{i}" for i in range(20)], 7)] == [True] * 20
    arguments = ["evaluate", "--env", "guessing:Guess", "--count", 30, "--max-steps", 7, "--out"]
    assert cli(*arguments, tmp_path / "e", "--agent", "expert")[0] == 0
    everything = json.loads((tmp_path / "e" / "summary.json").read_text())["rows"][0]
    assert (everything["successes"], everything["episodes"], everything["invalid_share"]) == (30, 30, 0.0)
    assert cli(*arguments, tmp_path / "r", "--agent", "random")[0] == 0
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["rows"][0]["successes"] == 0
