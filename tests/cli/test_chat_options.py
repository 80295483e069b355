"""The options of rendering on the command line."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from gradprism.cli.inspect import command
from gradprism.runtime.errors import ConfigError, DataError, GradprismError
from gradprism.trajectories.corpus import write_messages_jsonl
from gradprism.trajectories.record import Message, Trajectory
from helpers.templates import GEMMA, LLAMA, template_tokenizer

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(command)
MESSAGES = (Message("system", "Be brief."), Message("user", "look"), Message("assistant", "go", reasoning="why not"))


def inspect(folder: Path, template: str, *options: str) -> str:
    template_tokenizer(template).save_pretrained(folder / "model")
    write_messages_jsonl(folder / "data.jsonl", [Trajectory("t", MESSAGES)])
    arguments = ["--data", str(folder / "data.jsonl"), "--model", str(folder / "model"), *options]
    result = CliRunner().invoke(app, arguments)
    if isinstance(result.exception, GradprismError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_options_reach_the_render(tmp_path: Path) -> None:
    output = inspect(tmp_path, GEMMA, "--merge", "system", "--thoughts", "keep")
    assert "Be brief.⏎\n⏎\nlook" in output
    assert "⟦<think>⏎\nwhy not⏎\n</think>⏎\n⏎\ngo<end_of_turn>⟧" in output
    assert "response tokens found by: one render" in output
    dated = inspect(tmp_path, LLAMA, "--thoughts", "drop", "--template-date", "2025-02-09")
    assert "Today Date: 09 Feb 2025" in dated


def test_arguments_are_json_or_text(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ m.content }}{{ reply ~ (2 * number) if m.role == 'assistant' else '?' }}<|im_end|>{% endfor %}"
    )
    output = inspect(tmp_path, template, "--thoughts", "drop", "--template-arg", "reply=yes", "--template-arg", "number=21")
    assert "yes42" in output
    summary = json.loads(inspect(tmp_path, template, "--thoughts", "drop", "--template-arg", "number=1", "--json"))
    assert summary["masks"] == "one render"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (["--thoughts", "maybe"], ConfigError, "choose keep, drop or fail"),
        (["--merge", "roles"], ConfigError, "merge 'roles'"),
        (["--template-date", "today"], ConfigError, "YYYY-MM-DD"),
        (["--template-arg", "enable_thinking"], ConfigError, "expected key=value"),
        ([], DataError, "--merge system makes a conversation of it that the template takes"),
        (["--merge", "system"], DataError, "choose --thoughts keep"),
    ],
)
def test_what_cannot_be_is_said_with_the_option_that_helps(
    options: list[str], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        inspect(tmp_path, GEMMA, *options)
