"""README, guides and configurations promise what exists."""

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import gradprism as gp
from gradprism.cli import commands
from gradprism.cli.help import new_app

README = Path("README.md").read_text()
PAGES = [
    Path("README.md"),
    Path("CONTRIBUTING.md"),
    *sorted(Path("docs").glob("*.md")),
    *sorted(Path("results").glob("*/README.md")),
]


@functools.cache
def options_of(*words: str) -> set[str]:
    """The options of a command; empty where there is no such command."""
    app = new_app()
    app.callback()(lambda: None)
    commands.register(app, words)
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands.get(word)
        if command is None:
            return set()
    return {name for parameter in command.params for name in parameter.opts} | {"--help"}


def commands_shown(text: str):
    """Every `gradprism …` in a page's shell blocks, also behind a launcher, as lists of words."""
    for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for shown in re.findall(
                r"(?:^|&& |-m |bin/|\$LAUNCH )(?:gradprism )?((?<=gradprism )[a-z].*|(?<=LAUNCH )[a-z].*)", line
            ):
                yield shlex.split(re.split(r" && |; | > ", shown)[0], comments=True)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_command_and_option_that_a_page_shows_exists(page):
    for words in commands_shown(page.read_text()):
        name = words[:2] if words[0] in commands.GROUPS and options_of(*words[:2]) else words[:1]
        if name == ["experiment"]:
            assert words[1].endswith(".toml"), f"{page}: gradprism experiment {words[1]} is no command"
            name = ["experiment", "run"]
        known = options_of(*name)
        assert known, f"{page}: gradprism {' '.join(words)}"
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in known, f"{page}: {word} of gradprism {' '.join(name)}"


def test_the_readme_shows_the_commands_that_matter_and_fits_two_screens():
    assert len(README.splitlines()) <= 115
    shown = {words[0] for words in commands_shown(Path("docs/commands.md").read_text())}
    assert shown >= commands.COMMANDS.keys() - {"quickstart", "init"}
    assert shown >= commands.GROUPS.keys()
    assert "gradprism quickstart" in README and "gradprism init" in README


def test_ci_runs_exactly_the_readmes_test_command():
    [command] = [line for line in README.splitlines() if "scripts/check.py" in line and line.startswith("python3")]
    assert command in Path(".ci/run").read_text().splitlines()


def test_the_readmes_example_runs():
    [example] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    output = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True).stdout
    assert output.startswith("(32, 28) layers.0.q_proj")


def test_links_between_pages_and_files_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_small_files_of_the_repository_say_who_and_what():
    citation = yaml.safe_load(Path("CITATION.cff").read_text())
    version = re.search(r'^version = "(.*)"', Path("pyproject.toml").read_text(), flags=re.MULTILINE)
    assert version and citation["version"] == version[1]
    assert "2601.07224" in str(citation["references"])
    hooks = [hook["id"] for hook in yaml.safe_load(Path(".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]]
    assert hooks == ["ruff-check", "ruff-format", "lint-imports", "pyright"]
    assert "## Unreleased" in Path("CHANGELOG.md").read_text()


def test_every_public_name_is_in_the_reference():
    pages = "\n".join(page.read_text() for page in Path("docs/reference").glob("*.md"))
    assert sorted(re.findall(r"^::: gradprism\.(\w+)$", pages, flags=re.MULTILINE)) == sorted(gp.__all__)
