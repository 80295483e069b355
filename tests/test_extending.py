"""The programs of docs/extending.md: short, and each does what the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path("docs/extending.md").read_text()
PROGRAMS = {
    heading.lower(): program
    for heading, program in re.findall(r"^## (?:An?) (.+?)\n.*?```python\n(.*?)```", PAGE, flags=re.MULTILINE | re.DOTALL)
}
SAYS = {
    "metric": r"\[0\.\d+( +0\.\d+){7} *\]",
    "policy": r"(?s)id.*score.*route.*rl",
    "corpus format": r"go to desk 1",
    "environment": "",
    "exporter": "'sft.json has 4 chats', 'rl.json has 4 chats'",
}


def test_the_page_has_one_of_each_kind_in_less_than_30_lines():
    assert PROGRAMS.keys() == SAYS.keys()
    assert max(len(program.splitlines()) for program in PROGRAMS.values()) < 30
    assert all(f"register_{kind.split()[-1]}" in program for kind, program in PROGRAMS.items())


@pytest.mark.parametrize("kind", SAYS)
def test_a_program_does_what_the_page_says(kind, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAMS[kind])
    result = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.search(SAYS[kind], result.stdout.replace("\n", " ") if kind == "metric" else result.stdout), result.stdout


def test_an_environment_of_a_module_is_played_by_its_name(tmp_path):
    (tmp_path / "coins.py").write_text(PROGRAMS["environment"])
    arguments = [
        "--env",
        "coins:Coin",
        "--agent",
        "random",
        "--split",
        "test",
        "--count",
        "20",
        "--max-steps",
        "2",
        "--workers",
        "1",
    ]
    command = [sys.executable, "-m", "gradprism", "evaluate", *arguments, "--out", "out"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ})
    assert result.returncode == 0, result.stderr
    assert re.search(r"test +all +\d+/20", result.stdout), result.stdout


def test_entry_points_of_an_installed_package_are_found_by_the_command_line(tmp_path):
    """What a package's `project.entry-points` come to once it is installed."""
    program = PROGRAMS["metric"].partition("probe =")[0]
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    (tmp_path / "my_package" / "metrics.py").write_text(program)
    about = tmp_path / "my_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
    [lines] = re.findall(r"```toml\n\[project\.(.*?)```", PAGE, flags=re.DOTALL)
    (about / "entry_points.txt").write_text("[" + lines.removeprefix("entry-points.").replace('"', ""))
    code = "import numpy as np; from gradprism.concentration import METRICS; print(METRICS['peak'](np.ones((1, 4))), list(METRICS))"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.stdout.startswith("[0.25]") and "peak" in result.stdout, result.stderr
