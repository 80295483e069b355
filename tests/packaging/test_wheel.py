"""From a built wheel alone, in an empty folder."""

import json
import os
import subprocess
import sys
import zipfile

import pytest

from gradprism.studio.static_files import STATIC

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
SMALLER = {
    "sft.epochs": "1",
    "rl.rounds": "1",
    "evaluation.splits": "{unseen=6}",
    "rl.max_steps": "8",
    "threads": "1",
    "corpus.collect": "{count=24}",
    "corpus.files": "[]",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, "."], check=True)
    [path] = folder.glob("gradprism-*.whl")
    return path


@pytest.fixture(scope="module")
def gradprism(wheel, tmp_path_factory):
    """Runs the command of the installed wheel in an empty folder."""
    site, folder = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty")
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", site, wheel], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "120"}
    where = [sys.executable, "-c", "import gradprism; print(gradprism.__file__)"]
    assert subprocess.run(where, cwd=folder, env=environment, capture_output=True, text=True).stdout.startswith(str(site))

    def run(*arguments):
        command = [sys.executable, "-m", "gradprism", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.folder = folder
    return run


def test_the_wheel_is_small_and_holds_what_it_promises(wheel):
    assert wheel.stat().st_size < 7_000_000  # four tiny models; README says 6.0 MB
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("quickstart.toml", "alfworld-tiny/model.safetensors", "alfworld-quickstart.jsonl", "templates/own_environment.py"):
        assert f"gradprism/data/{name}" in names
    assert {"gradprism/py.typed", *(f"gradprism/studio/static/{name}" for name in STATIC)} <= set(names)
    assert not [name for name in names if name.startswith("tests/") or "__pycache__" in name]


def test_help_and_templates_work(gradprism):
    assert "--dry-run" in gradprism("quickstart", "--help")
    for template in ("alfworld", "webshop", "own"):
        gradprism("init", template)
        assert (gradprism.folder / f"{template}.toml").is_file()
    plan = json.loads(gradprism("run", "own.toml", "--dry-run", "--json"))  # the others plan in tests/cli/test_init.py
    assert plan["config"]["name"] == "own" and plan["pending"] and not plan["done"]


@pytest.mark.slow
@pytest.mark.rare
def test_the_quickstart_runs(gradprism):
    settings = [part for key, value in SMALLER.items() for part in ("--set", f"{key}={value}")]
    printed = gradprism("quickstart", *settings)
    assert "unseen tasks" in printed and "went to SFT, 12 to RL" in " ".join(printed.split())
    results = json.loads((gradprism.folder / "runs" / "quickstart" / "results.json").read_text())
    assert results["trajectories"] == 24
    assert (gradprism.folder / "runs" / "quickstart" / "report.html").stat().st_size > 1000
