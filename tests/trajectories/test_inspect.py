"""What a person sees of a corpus, and the command that shows it."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from gradprism.cli.inspect import command
from gradprism.runtime.errors import MissingFileError, ModelError
from gradprism.trajectories.corpus import write_messages_jsonl
from gradprism.trajectories.display import heading, mask_text, summarise, visible
from gradprism.trajectories.record import Message, Trajectory
from gradprism.trajectories.rendering import Renderer
from helpers.tiny import sample_trajectories, tiny_tokenizer

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(command)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer and a corpus of 6 trajectories."""
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    write_messages_jsonl(tmp_path / "data.jsonl", sample_trajectories(6))
    return tmp_path


def arguments(folder: Path, *more: str) -> list[str]:
    return ["--data", str(folder / "data.jsonl"), "--model", str(folder / "model"), *more]


def test_control_characters_are_made_visible() -> None:
    assert visible("a\tb\x1b[31m\x7f\x9b\u202e\u200b\U000e0041é😀") == "a␉b␛[31m␡\\u009b\\u202e\\u200b\\U000e0041é😀"
    assert visible("a\r\nb") == "a␍⏎\nb"


def test_mask_is_colour_or_brackets_and_data_is_never_markup() -> None:
    runs = [("look [bold]now[/bold] :smile:", False), ("go", True), ("on", False)]
    plain = mask_text(runs, coloured=False)
    assert plain.plain == "look [bold]now[/bold] :smile:⟦go⟧on"
    assert plain.spans == []
    coloured = mask_text(runs, coloured=True)
    assert coloured.plain == "look [bold]now[/bold] :smile:goon"
    assert [(s.start, s.end) for s in coloured.spans] == [(29, 31)]


def test_heading_and_summary_count_what_was_rendered() -> None:
    tokenizer = tiny_tokenizer()
    first = Trajectory(
        "a", (Message("user", "look zzz"), Message("assistant", "go to desk 1"), Message("user", "yes no")), source="d:1"
    )
    second = Trajectory("b", (Message("user", "look"), Message("assistant", "go")), source="d:2")
    corpus = Renderer(tokenizer, 9).render_all([first, second])  # 4 + 5 of 12 tokens, and 3 + 2
    assert heading(first, corpus[0], tokenizer.unk_token_id) == (
        "a · d:1 · 9 tokens · 5 response (55.6%) · assistant turns: 1 · 3 tokens cut off · unknown tokens: 1"
    )
    assert (
        heading(second, corpus[1], tokenizer.unk_token_id)
        == "b · d:2 · 5 tokens · 2 response (40.0%) · assistant turns: 1 · nothing cut off"
    )
    summary = asdict(summarise(corpus, tokenizer.unk_token_id))
    quantiles = summary.pop("length_quantiles")
    assert quantiles == {str(p): np.percentile([9, 5], p) for p in (0, 5, 25, 50, 75, 95, 100)}
    assert summary.pop("response_length_quantiles")["50"] == 3.5
    assert summary == {
        "trajectories": 2,
        "tokens": 14,
        "response_tokens": 7,
        "response_share": 0.5,
        "unknown_tokens": 1,
        "assistant_turns": 2,
        "truncated_trajectories": 1,
        "truncated_tokens": 3,
    }
    assert str(summarise(corpus)).splitlines()[0] == "2 trajectories, 2 assistant turns, 14 tokens, of which response 7 (50.0%)"


def test_command_prints_marked_trajectories_and_the_summary(folder: Path) -> None:
    result = CliRunner().invoke(app, arguments(folder, "--limit", "2"))
    assert result.exit_code == 0, result.output
    trajectories = sample_trajectories(6)
    assert f"── sample-0001 · {folder / 'data.jsonl'}:2 · " in result.stdout
    assert "sample-0002" not in result.stdout
    assert "\x1b" not in result.stdout
    shown = [m.content for t in trajectories[:2] for m in t.messages if m.role == "assistant"]
    assert result.stdout.count("⟦") == result.stdout.count("⟧") == len(shown)
    for answer in shown:
        assert f"<|assistant|>⟦{answer}<|end|>⟧" in result.stdout
    assert "6 trajectories, " in result.stdout


def test_command_colours_on_a_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    result = CliRunner().invoke(app, arguments(folder, "--limit", "1"), color=True)
    answer = next(m.content for m in sample_trajectories(1)[0].messages if m.role == "assistant")
    assert f"m{answer}<|end|>\x1b[0m" in result.stdout
    assert "⟦" not in result.stdout


def test_command_prints_the_summary_as_json(folder: Path) -> None:
    result = CliRunner().invoke(app, arguments(folder, "--json", "--context-length", "60"))
    summary = json.loads(result.stdout)
    expected = asdict(summarise(Renderer(tiny_tokenizer(), 60).render_all(sample_trajectories(6))))
    assert summary == expected
    assert summary["truncated_trajectories"] > 0


def test_command_raises_deliberate_errors(folder: Path) -> None:
    assert isinstance(
        CliRunner().invoke(app, ["--data", str(folder / "data.jsonl"), "no.jsonl", "--model", str(folder / "model")]).exception,
        MissingFileError,
    )
    result = CliRunner().invoke(app, arguments(folder, "--context-length", "5"))
    assert isinstance(result.exception, ModelError)
    assert "data.jsonl:1: trajectory 'sample-0000'" in str(result.exception)
