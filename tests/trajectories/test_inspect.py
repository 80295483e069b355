"""What a person sees of a corpus, and the command that shows it."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import gradprism as gp
from gradprism.cli.inspect import command
from gradprism.environments.protocol import Task
from gradprism.runtime.errors import ConfigError, DataError, MissingFileError
from gradprism.trajectories.corpus import write_messages_jsonl
from gradprism.trajectories.display import heading, mask_text, summarise, visible
from gradprism.trajectories.doctor import LINTS
from gradprism.trajectories.parallel import render_all
from gradprism.trajectories.record import Message, Trajectory
from gradprism.trajectories.rendering import Renderer
from helpers.tiny import sample_trajectories, tiny_tokenizer

GO = [{"role": "assistant", "content": "go"}]
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
    corpus = render_all(Renderer(tokenizer, 9), [first, second])  # 4 + 5 of 12 tokens, and 3 + 2
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
    expected = asdict(summarise(Renderer(tiny_tokenizer(), 60).render(t) for t in sample_trajectories(6)))
    assert {key: summary[key] for key in expected} == expected
    assert summary["problems"] == []
    assert summary["masks"] == "markers"
    assert [lint["kind"] for lint in summary["lints"]] == ["huge-turn", "cut"]
    assert summary["unused_turn_keys"] == {}
    assert summary["truncated_trajectories"] > 0


def test_command_raises_deliberate_errors(folder: Path) -> None:
    assert isinstance(
        CliRunner().invoke(app, ["--data", str(folder / "data.jsonl"), "no.jsonl", "--model", str(folder / "model")]).exception,
        MissingFileError,
    )
    result = CliRunner().invoke(app, arguments(folder, "--context-length", "5"))
    assert isinstance(result.exception, DataError)
    assert "6 of 6 records cannot be used" in str(result.exception)
    assert "data.jsonl:1: trajectory 'sample-0000': empty response mask" in str(result.exception)


def test_command_lists_all_that_cannot_be_used_and_what_harms_training(folder: Path) -> None:
    samples = sample_trajectories(6)
    path, late = folder / "data.jsonl", {"id": "late", "messages": [{"role": "user", "content": "look " * 90}, *GO]}
    lines = ["{broken", json.dumps(late), "{broken too", json.dumps({"id": "again", "messages": samples[2].chat()})]
    path.write_text(path.read_text() + "\n".join(lines) + "\n")
    write_messages_jsonl(folder / "held.jsonl", samples[4:5])
    options = arguments(
        folder, "--context-length", "80", "--against", str(folder / "held.jsonl"), "--skipped", str(folder / "bad.jsonl")
    )
    result = CliRunner().invoke(app, options)
    assert isinstance(result.exception, DataError)
    assert f"3 of 10 records cannot be used, the first: {path}:7: broken JSON" in str(result.exception)
    assert (
        f"2 × broken JSON (Expecting property name enclosed in double quotes at column 2); repair or delete it ({path}:7, {path}:9)"
        in result.stdout
    )
    assert "1 × empty response mask" in result.stdout
    assert f"1 × the same turns as an earlier trajectory; keep one ({path}:10 of sample-0002)" in result.stdout
    assert f"1 × {LINTS['shared-task']} ({path}:5)" in result.stdout
    bad = [json.loads(line) for line in (folder / "bad.jsonl").read_text().splitlines()]
    assert [one["source"] for one in bad] == [f"{path}:{n}" for n in (7, 8, 9)]
    skips = CliRunner().invoke(app, [*options, "--json", "--on-bad", "skip"])
    assert skips.exit_code == 0
    found = json.loads(skips.stdout)
    assert [(one["kind"], one["count"]) for one in found["problems"]] == [("unreadable", 2), ("over-long", 1)]
    assert found["trajectories"] == 7


def test_command_knows_the_tasks_of_an_evaluation_split(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Environment:
        def ids(self, split: str) -> list[str]:
            return ["2", "4"] if split == "test" else []

        def task(self, reference: dict) -> Task:
            if "task_id" not in reference:
                raise ConfigError("no task")
            return Task("sample", reference["task_id"], "", "")

    monkeypatch.setattr(gp, "make_environment", lambda name, **options: Environment())
    result = CliRunner().invoke(app, arguments(folder, "--env", "x", "--against-split", "test", "--json"))
    (lint,) = json.loads(result.stdout)["lints"]
    assert (lint["kind"], lint["first"]) == ("shared-task", [f"{folder}/data.jsonl:3", f"{folder}/data.jsonl:5"])
    assert "name the environment" in str(CliRunner().invoke(app, arguments(folder, "--against-split", "test")).exception)


def test_without_a_model_it_looks_at_texts(folder: Path) -> None:
    samples, path = sample_trajectories(6), folder / "data.jsonl"
    turns = [{"role": "user", "content": "x" * 20_001}, {"role": "assistant", "content": ""}, *2 * GO]
    bad = [{"id": "again", "messages": samples[2].chat()}, {"id": "bad", "messages": turns, "reward": 0, "mood": ["odd"]}]
    path.write_text(path.read_text() + "\n".join(["{broken", *map(json.dumps, bad)]) + "\n")
    data = ["--data", str(path)]
    result = CliRunner().invoke(app, [*data, "--json"])
    assert "1 of 9 records cannot be used" in str(result.exception)
    found = json.loads(result.stdout)
    assert [one["kind"] for one in found["problems"]] == ["unreadable"]
    kinds = {one["kind"]: one["first"] for one in found["lints"]}
    assert kinds == {
        "exact-duplicate": [f"{path}:8 of sample-0002"],
        **{kind: [f"{path}:9"] for kind in ("failed", "repeated-turn", "empty-turn", "huge-turn")},
    }
    assert found["unused_record_keys"] == {"mood": 1}
    texts = [sum(len(m.content) for m in t.messages) for t in [*samples, samples[2]]]
    assert (found["trajectories"], found["characters"], found["masks"]) == (8, sum(texts) + 20_005, None)
    assert found["turns"] == sum(len(t.messages) for t in [*samples, samples[2]]) + 4
    assert found["character_quantiles"]["100"] == 20_005

    shown = CliRunner().invoke(app, [*data, "--on-bad", "skip", "--limit", "1"])
    assert shown.exit_code == 0
    assert "no --model: characters are counted in place of tokens" in shown.stderr
    assert json.dumps(samples[0].messages[-1].to_chat()) in shown.stdout and "sample-0001 ·" not in shown.stdout
    assert f"8 trajectories, {found['turns']} turns, of which {found['assistant_turns']} of the assistant, " in shown.stdout
    for options in (["--context-length", "9"], ["--thoughts", "keep"]):
        assert "give --model with them" in str(CliRunner().invoke(app, [*data, *options]).exception)
