"""The options of rendering on the command line."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from gradprism.cli.inspect import command
from gradprism.runtime.errors import ConfigError, DataError, GradprismError
from gradprism.trajectories.corpus import write_messages_jsonl
from gradprism.trajectories.record import Message, ToolCall, Trajectory
from helpers.templates import CHATML, GEMMA, LLAMA, template_tokenizer
from helpers.tiny import tiny_qwen3

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(command)
MESSAGES = (Message("system", "Be brief."), Message("user", "look"), Message("assistant", "go", reasoning="why not"))


def inspect(folder: Path, template: str, *options: str, messages: tuple[Message, ...] = MESSAGES) -> str:
    template_tokenizer(template).save_pretrained(folder / "model")
    write_messages_jsonl(folder / "data.jsonl", [Trajectory("t", messages)])
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


def test_a_trained_model_keeps_its_options(cli, tmp_path: Path) -> None:
    tokenizer = template_tokenizer(CHATML)
    tiny_qwen3(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "own.jinja").write_text(GEMMA)
    write_messages_jsonl(tmp_path / "data.jsonl", [Trajectory("t", MESSAGES)])
    sft = ["sft", "--data", tmp_path / "data.jsonl", "--max-steps", 1, "--device", "cpu"]
    own = ["--chat-template", tmp_path / "own.jinja", "--merge", "system", "--thoughts", "keep"]
    trained, again = tmp_path / "trained", tmp_path / "again"
    for model, out, options in ((tmp_path / "model", trained, own), (trained, again, [])):
        code, _, err = cli(*sft, "--model", model, "--out", out, *options)
        assert code == 0 and "other options" not in err, err

    look = ["inspect", "--data", tmp_path / "data.jsonl", "--model", again]
    code, out, err = cli(*look)
    assert code == 0 and "Be brief.⏎\n⏎\nlook" in out and "why not" in out and "other options" not in err
    code, out, err = cli(*look, "--thoughts", "drop")
    assert code == 0 and "why not" not in out
    assert "warning: the model was trained with other options of its chat template (thoughts: keep → drop)" in err

    play = ["--env-option", "difficulty=tiny", "--count", 1, "--split", "seen", "--max-steps", 1, "--workers", 1]
    play = ["evaluate", "--model", again, *play, "--max-action-tokens", 4]
    code, out, _ = cli(*play, "--out", tmp_path / "same")
    assert code == 0 and "other options" not in out
    code, out, _ = cli(*play, "--merge", "alternate", "--out", tmp_path / "other")
    assert code == 0 and "than it plays with here (merge: ['system'] → ['alternate'])" in out
    assert "other options" in (tmp_path / "other/summary.json").read_text()


def test_calls_are_text_only_where_that_is_asked(tmp_path: Path) -> None:
    calls = (ToolCall("look", {"at": "desk"}),)
    called = (Message("user", "look"), Message("assistant", "", tool_calls=calls), Message("tool", "a lamp"))
    with pytest.raises(DataError, match="no place for tool calls"):
        inspect(tmp_path, CHATML, messages=called)
    assert '⟦<tool_call>⏎\n{"name": "look"' in inspect(tmp_path, CHATML, "--calls", "text", messages=called)
