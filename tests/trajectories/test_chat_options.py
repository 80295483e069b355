"""Options of rendering: what they may be, and how they stay with a model."""

import json
import tomllib
from pathlib import Path

import pytest

from gradprism.experiments.config import ModelConfig
from gradprism.runtime.errors import ConfigError, DataError, ModelError
from gradprism.trajectories.chat_options import DATE, SAVED, ChatOptions, other_options, saved_options
from gradprism.trajectories.record import Message, ToolCall, Trajectory
from gradprism.trajectories.rendering import Renderer, load_tokenizer
from helpers.templates import CHATML, LLAMA, QWEN, template_tokenizer

OWN = ChatOptions(thoughts="keep", merge=("system",), calls="text", date="2025-02-09", arguments={"a": 1})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"thoughts": "maybe"}, "choose keep, drop or fail"),
        ({"merge": ("roles",)}, "merge 'roles'"),
        ({"calls": "json"}, "choose template or text"),
        ({"date": "today"}, "YYYY-MM-DD"),
        ({"arguments": {"tools": []}}, "is what rendering itself gives"),
    ],
)
def test_values_that_are_none_are_refused(values, words) -> None:
    with pytest.raises(ConfigError, match=words):
        ChatOptions(**values)


def test_what_is_not_given_is_as_the_model_was_trained(tmp_path: Path) -> None:
    assert ChatOptions.of_model(str(tmp_path)) == ChatOptions() and saved_options(str(tmp_path)) is None
    OWN.save(tmp_path)
    assert saved_options(str(tmp_path)) == OWN == ChatOptions.of_model(str(tmp_path))
    given = ChatOptions.of_model(str(tmp_path), thoughts="fail", merge=(), date=DATE, arguments={"b": 2})
    assert given == ChatOptions(calls="text", arguments={"a": 1, "b": 2})
    assert ChatOptions().changed() == {} and OWN.changed() == OWN.to_json()


def test_what_differs_from_the_training_is_told(tmp_path: Path) -> None:
    assert other_options(str(tmp_path), OWN) == ""
    template_tokenizer(CHATML).save_pretrained(tmp_path)
    OWN.save(tmp_path)
    (tmp_path / "other.jinja").write_text(QWEN)
    (tmp_path / "same.jinja").write_text(CHATML)
    assert other_options(str(tmp_path), ChatOptions.of_model(str(tmp_path), file=tmp_path / "same.jinja")) == ""
    other = ChatOptions.of_model(str(tmp_path), file=tmp_path / "other.jinja", thoughts="drop")
    assert other_options(str(tmp_path), other) == (
        f"chat template: the model's own → {tmp_path / 'other.jinja'}; thoughts: keep → drop"
    )


@pytest.mark.parametrize("text", ["[]", '{"thoughts": "maybe"}', '{"colour": 1}', "{"])
def test_a_broken_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / SAVED).write_text(text)
    with pytest.raises(DataError, match=SAVED):
        saved_options(str(tmp_path))


def test_a_tokenizer_has_the_options_of_its_folder_unless_others_are_given(tmp_path: Path) -> None:
    template_tokenizer(LLAMA).save_pretrained(tmp_path)
    ChatOptions(date="2025-02-09").save(tmp_path)
    messages = (Message("user", "look"), Message("assistant", "go"))

    def text(options: ChatOptions | Path | None) -> str:
        renderer = Renderer(load_tokenizer(tmp_path, options), None)
        return "".join(part for part, _ in renderer.marked_text(Trajectory("t", messages)))

    assert "Today Date: 09 Feb 2025" in text(None)
    assert "Today Date: 01 Jan 2026" in text(ChatOptions())
    (tmp_path / "other.jinja").write_text("{{ strftime_now('%Y') }}" + CHATML)
    assert text(tmp_path / "other.jinja").startswith("2025<|im_start|>user")


CALLED = Trajectory(
    "called",
    (
        Message("user", "look"),
        Message("assistant", "I look.", tool_calls=(ToolCall("look", {"at": "desk"}, "1"), ToolCall("wait", {}, "2"))),
        Message("tool", "a lamp", name="look", tool_call_id="1"),
        Message("tool", "done", name="wait", tool_call_id="2"),
        Message("assistant", "", tool_calls=(ToolCall("take", {"what": "lámp"}),)),
        Message("tool", "taken"),
        Message("assistant", "There."),
    ),
)


@pytest.mark.parametrize("template", [CHATML, QWEN])
def test_calls_may_be_written_as_text(template: str) -> None:
    renderer = Renderer(template_tokenizer(template), None, ChatOptions(calls="text"))
    runs = renderer.marked_text(CALLED)
    first, second = {"name": "look", "arguments": {"at": "desk"}}, {"name": "wait", "arguments": {}}
    assert [text for text, is_response in runs if is_response][:2] == [
        f"I look.\n<tool_call>\n{json.dumps(first)}\n</tool_call>\n<tool_call>\n{json.dumps(second)}\n</tool_call><|im_end|>",
        '<tool_call>\n{"name": "take", "arguments": {"what": "lámp"}}\n</tool_call><|im_end|>',
    ]
    results = "<tool_response>\na lamp\n</tool_response>\n<tool_response>\ndone\n</tool_response>"
    assert f"<|im_start|>user\n{results}<|im_end|>" in "".join(text for text, _ in runs)
    assert renderer.fingerprint != Renderer(template_tokenizer(template), None).fingerprint
    assert len(renderer.render(CALLED).turns) == 3


def test_calls_that_a_template_has_no_place_for_are_refused_with_what_helps() -> None:
    with pytest.raises(ModelError, match=r"no place for tool calls; --calls text writes them into the turn's text as <tool_call>"):
        Renderer(template_tokenizer(CHATML), None).render(CALLED)


@pytest.mark.parametrize(
    ("option", "value", "as_option", "as_setting"),
    [
        ("calls", "text", "--calls text", 'model.calls = "text"'),
        ("thoughts", "drop", "--thoughts drop", 'model.thoughts = "drop"'),
        ("merge", "system,alternate", "--merge system,alternate", 'model.merge = ["system", "alternate"]'),
        ("template-date", "2025-02-09", "--template-date 2025-02-09", 'model.template_date = "2025-02-09"'),
        ("template-arg", "effort=3", "--template-arg effort=3", "model.template_args.effort = 3"),
        ("chat-template", "FILE", "--chat-template FILE", 'model.chat_template = "FILE"'),
        ("context-length", "", "--context-length", "model.context_length"),
    ],
)
def test_a_choice_is_called_as_the_command_at_hand_has_it(option, value, as_option, as_setting) -> None:
    own, configured = ChatOptions(), ChatOptions(configured=True)
    assert (own.called(option, value), configured.called(option, value)) == (as_option, as_setting)
    assert own == configured and own.to_json() == configured.to_json(), "it is no choice"
    if value:  # what is said can be set
        [(key, said)] = tomllib.loads(as_setting)["model"].items()
        assert getattr(ModelConfig.model_validate({"path": "m", key: said}), key)


def test_a_run_names_its_settings_and_no_option() -> None:
    chat = ModelConfig(path="nowhere").chat
    with pytest.raises(ModelError, match=r'; model\.calls = "text" writes them .* model\.chat_template = "FILE"$') as caught:
        Renderer(template_tokenizer(CHATML), None, chat).render(CALLED)
    assert "--" not in str(caught.value)
