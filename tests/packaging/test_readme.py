"""What the README promises about commands is what exists."""

import os
import re
import subprocess
import sys
from pathlib import Path

from gradprism.cli.commands import GROUPS

README = Path("README.md").read_text()


def test_ci_runs_exactly_the_readmes_test_command():
    [command] = [line for line in README.splitlines() if "scripts/check.py" in line and line.startswith("python3")]
    assert command in Path(".ci/run").read_text().splitlines()


def test_every_command_and_option_that_the_readme_shows_exists():
    lines = re.findall(r"^(?:\.venv/bin/)?gradprism (.*)$", README, flags=re.MULTILINE)
    help_text = subprocess.run([sys.executable, "-m", "gradprism", "--help"], capture_output=True, text=True, check=True).stdout
    by_command: dict[tuple[str, ...], set[str]] = {}
    for line in lines:
        name, *rest = line.partition("#")[0].split()
        command = (name, rest[0]) if name in GROUPS else (name,)
        by_command.setdefault(command, set()).update(re.findall(r"(?<= )--[a-z-]+", line.partition("#")[0]))
    names = {command[0] for command in by_command}
    assert names >= {
        "run",
        "probe",
        "route",
        "sft",
        "rl",
        "evaluate",
        "inspect",
        "report",
        "collect",
        "export",
        "audit",
        "experiment",
        "alfworld",
        "webshop",
    }
    for command, options in by_command.items():
        assert re.search(rf"\b{command[0]}\b", help_text)
        page = subprocess.run(
            [sys.executable, "-m", "gradprism", *command, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": "200"},  # narrow pages cut long names
        ).stdout
        for option in options:
            assert option in page, f"{command} {option}"


def test_help_does_not_load_heavy_libraries():
    code = (
        "import sys; sys.argv = ['gradprism', '--help']\n"
        "from gradprism.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'trl', 'textworld', 'numpy', 'polars', 'pyarrow', 'pydantic'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"


def test_the_readmes_library_example_runs():
    [example] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    output = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True).stdout
    names, scores = output.strip().split("}\n")
    assert "layers.0.q_proj" in names
    assert 0 < float(scores.strip(" []").split()[0]) < 1
