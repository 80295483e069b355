"""`gradprism init`: templates that are valid, run as they are, and never overwrite anything."""

import json
import os
import subprocess
import sys
import tomllib

import pytest

from gradprism.experiments.config import load_config
from gradprism.package_data import TEMPLATES, shipped
from helpers.cli import assert_refused


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_is_a_valid_configuration_with_comments(cli, tmp_path, monkeypatch, template):
    monkeypatch.chdir(tmp_path)
    code, out, _ = cli("init", template, "--out", tmp_path)
    assert code == 0
    assert (f"next: pip install 'gradprism[{template}]', then gradprism run" in out) == (template != "own")
    assert [str(tmp_path / name) for name in TEMPLATES[template]] == out.splitlines()[:-1]
    file = tmp_path / f"{template}.toml"
    config = load_config(file)
    assert config.name == template and config.model.path.endswith("-tiny")
    values = tomllib.loads(file.read_text())
    assert {"model", "corpus", "environment", "route", "sft", "rl", "evaluation"} <= values.keys()
    assert file.read_text().count("#") > 15
    if template != "own":  # whose module is found below
        plan = json.loads(cli("run", file, "--dry-run", "--json")[1])
        assert plan["config"]["name"] == template and plan["pending"] and not plan["done"]

    file.write_text("mine")
    assert_refused(cli("init", template, "--out", tmp_path), f"{template}.toml", "exists already")
    assert file.read_text() == "mine"


def test_an_own_environment_is_found_beside_the_configuration(tmp_path):
    """The `gradprism` script has no working directory on its path by itself."""
    script = "import sys; sys.path.remove('') if '' in sys.path else None; from gradprism.cli.main import main; main()"

    def gradprism(*arguments):
        command = [sys.executable, "-c", script, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    assert gradprism("init", "own").returncode == 0
    found = gradprism("collect", "--env", "own_environment:Guess", "--count", "3", "--workers", "1", "--out", "corpus.jsonl")
    assert found.returncode == 0, found.stderr
    assert len((tmp_path / "corpus.jsonl").read_text().splitlines()) == 3
    plan = gradprism("run", "own.toml", "--dry-run", "--json")
    assert json.loads(plan.stdout)["config"]["environment"]["name"] == "own_environment:Guess", plan.stderr


def test_unknown_names_are_told_apart(cli, tmp_path):
    assert_refused(cli("init", "chess", "--out", tmp_path), "template 'chess': choose one of alfworld, webshop, own")
    with pytest.raises(ValueError, match=r"shipped:chess: does not come with gradprism; choose one of alfworld-quickstart.jsonl"):
        shipped("chess")
