"""Help pages: whole at any width, and quick."""

import os
import re
import subprocess
import sys
from typing import Any

import pytest
import typer

from gradprism.cli import commands
from gradprism.cli.help import new_app

PAGES = [
    *((name,) for name in commands.COMMANDS),
    *((name,) for name in commands.GROUPS),
    ("experiment", "run"),
    ("experiment", "status"),
    ("experiment", "tables"),
    ("export",),
    ("alfworld", "replay"),
    ("webshop", "serve"),
    ("webshop", "generate"),
]


def help_page(arguments, width, monkeypatch, capsys):
    """The page as printed at a width, and the options it is made of: names and text of each."""
    monkeypatch.setenv("COLUMNS", str(width))
    app = new_app()
    app.callback()(lambda: None)
    commands.register(app, arguments)
    group: Any = typer.main.get_command(app)
    with pytest.raises(SystemExit) as stop:
        group.main([*arguments, "--help"], prog_name="gradprism")
    assert not stop.value.code
    command = group
    for word in arguments:
        command = command.commands[word]
    return capsys.readouterr().out, [p for p in command.params if p.param_type_name == "option"]


@pytest.mark.parametrize("arguments", PAGES, ids=" ".join)
def test_every_option_is_there_in_full_at_any_width(arguments, monkeypatch, capsys):
    for width in (40, 60, 80, 132, 200):
        page, options = help_page(arguments, width, monkeypatch, capsys)
        squeezed = "".join(page.split())
        for option in options:
            for name in option.opts:
                assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", page), (width, name)
            assert option.help, f"{option.opts}: says nothing"
            assert "".join(option.help.split()) in squeezed, (width, option.opts)
        assert max(map(len, page.splitlines())) <= max(width, 60), width


def test_the_list_of_commands_has_each_line_whole(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "48")
    app = new_app()
    app.callback()(lambda: None)
    commands.register(app, [])
    with pytest.raises(SystemExit):
        typer.main.get_command(app).main(["--help"], prog_name="gradprism")
    squeezed = " ".join(capsys.readouterr().out.split())
    for name, line in {**commands.COMMANDS, **commands.GROUPS}.items():
        assert f"{name} {line}" in squeezed


def test_help_does_not_load_heavy_libraries():
    code = (
        "import sys; sys.argv = ['gradprism', '--help']\n"
        "from gradprism.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'trl', 'textworld', 'numpy', 'polars', 'pyarrow', 'pydantic'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}).stdout
    assert output.splitlines()[-1] == "[]"
