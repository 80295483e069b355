"""The programs in examples/ do what they say."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import gradprism as gp

EXAMPLES = Path("examples").resolve()


def load(name):
    """An example as a module that worker processes can import, too."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "probe_audit_route.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in notebook["cells"]), "kept without outputs"
    names: dict = {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), names)
    assert names["probe"].norms.shape == (64, 28)
    assert len(names["routes"].sft) == len(names["routes"].rl) == 32
    assert names["datasets"]["sft"].num_rows == 32
    assert (tmp_path / "route" / "routes.parquet").is_file()


@pytest.mark.skipif("ProbeCallback" not in gp.__all__, reason="comes next")
def test_the_own_trainer_logs_concentration_while_it_trains():
    rows = load("own_trainer").main(limit=24, steps=4)
    assert [row["step"] for row in rows] == [0, 4]
    assert all(0 < row["probe/gini_mean"] < 1 for row in rows)
    assert rows[0]["probe/gini_mean"] != rows[1]["probe/gini_mean"]


def test_the_own_environment_is_played_by_its_expert_and_at_random():
    played = subprocess.run([sys.executable, EXAMPLES / "own_environment.py"], capture_output=True, text=True)
    expert, random = played.stdout.splitlines()
    assert expert.startswith("expert: test 100.0 %") and not random.startswith("random: test 100.0 %"), played.stderr
    load("own_environment")
    environment = gp.make_environment("own_environment:Guess")
    with pytest.raises(gp.GradprismError, match="split 'dev'"):
        environment.tasks("dev", 1)
