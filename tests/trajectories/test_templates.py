"""Masks of templates that mark nothing: against a reference that renders prefix by prefix, and the choices that a person has."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradprism.runtime.errors import ConfigError, DataError, ModelError
from gradprism.trajectories.chat_options import ChatOptions
from gradprism.trajectories.masks import LostThoughtsError
from gradprism.trajectories.parallel import render_all
from gradprism.trajectories.record import Message, ToolCall, Trajectory
from gradprism.trajectories.rendering import Renderer, template_fingerprint
from helpers.templates import (
    ALPACA,
    CHATML,
    DEEPSEEK,
    GEMMA,
    GLM,
    HARMONY,
    LLAMA,
    MISTRAL,
    PHI,
    QWEN,
    TEXT_TEMPLATES,
    template_tokenizer,
)

TOKENIZERS = {name: template_tokenizer(template) for name, template in TEXT_TEMPLATES.items()}
RENDERERS = {name: Renderer(tokenizer, None) for name, tokenizer in TOKENIZERS.items()}
# What a model writes for a text, in each template.
GENERATED: dict[str, Callable[[str], str]] = {
    "chatml": lambda text: f"{text}<|im_end|>",
    "default system": lambda text: f"{text}<|im_end|>",
    "phi": lambda text: f"{text}<|end|>",
    "zephyr": lambda text: f"{text}</s>",
    "gemma": lambda text: f"{text.strip()}<end_of_turn>",
    "llama": lambda text: f"{text.strip()}<|eot_id|>",
    "mistral": lambda text: f" {text.strip()}</s>",
    "qwen": lambda text: f"{text}<|im_end|>",
    "deepseek": lambda text: f"{text}<｜end▁of▁sentence｜>",
    "harmony": lambda text: f"<|channel|>final<|message|>{text}<|return|>",
    "glm": lambda text: text.strip(),
    "parts": lambda text: f"{text}<end_of_utterance>",
    "alpaca": lambda text: text,
}
TRAIN = {
    "type": "function",
    "function": {"name": "find_train", "description": "Looks up trains.", "parameters": {"type": "object"}},
}
texts = st.text(st.sampled_from('ab .,\n{}"é😀'), max_size=12).map(lambda text: f"x{text}y")


def dialogue(*contents: str, **more: Any) -> Trajectory:
    messages = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(contents)]
    return Trajectory("t-1", tuple(messages), source="data.jsonl:7", **more)


def with_call(text: str = "", reasoning: str = "") -> Trajectory:
    call = ToolCall("find_train", {"from": "Bern", "n": 3, "note": 'a "b"\n'}, "c1")
    result = Message("tool", '{"dep": "09:12"}', name="find_train", tool_call_id="c1")
    asked = Message("assistant", text, reasoning=reasoning, tool_calls=(call,))
    return Trajectory("c-1", (Message("user", "when?"), asked, result, Message("assistant", "At 09:12.")), tools=(TRAIN,))


def turns_of(renderer: Renderer, trajectory: Trajectory) -> list[str]:
    rendered = renderer.render(trajectory)
    inside = np.zeros(len(rendered.input_ids), dtype=bool)
    for start, stop in rendered.turns.tolist():
        inside[start:stop] = True
    assert rendered.response_mask.tolist() == inside.tolist()
    return [renderer.tokenizer.decode(rendered.input_ids[a:b]) for a, b in rendered.turns.tolist()]


# Texts


@pytest.mark.parametrize("name", TEXT_TEMPLATES)
@settings(max_examples=25, deadline=None)
@given(contents=st.lists(texts, min_size=2, max_size=8).map(lambda c: c[: len(c) // 2 * 2]))
def test_response_tokens_of_a_turn_are_what_the_model_writes(name: str, contents: list[str]) -> None:
    assert turns_of(RENDERERS[name], dialogue(*contents)) == [GENERATED[name](text) for text in contents[1::2]]


@pytest.mark.parametrize("name", ["chatml", "default system", "phi", "zephyr", "gemma", "mistral", "parts", "alpaca"])
@settings(max_examples=15, deadline=None)
@given(contents=st.lists(texts, min_size=2, max_size=8).map(lambda c: c[: len(c) // 2 * 2]))
def test_tokens_and_mask_equal_a_render_prefix_by_prefix(name: str, contents: list[str]) -> None:
    tokenizer, trajectory = TOKENIZERS[name], dialogue(*contents)
    chat: list[Any] = trajectory.chat()
    if name == "parts":
        chat = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in chat]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    generated = np.zeros(len(text), dtype=bool)
    for k in range(1, len(chat), 2):
        begin = len(tokenizer.apply_chat_template(chat[:k], tokenize=False, add_generation_prompt=True))
        written = GENERATED[name](contents[k])
        assert text[begin:].startswith(written)
        generated[begin : begin + len(written)] = True
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    rendered = RENDERERS[name].render(trajectory)
    assert rendered.input_ids.tolist() == encoding["input_ids"]
    assert rendered.response_mask.tolist() == [bool(generated[a:b].any()) for a, b in encoding["offset_mapping"]]


@pytest.mark.parametrize("name", TEXT_TEMPLATES)
def test_outer_white_space_of_texts_changes_no_span(name: str) -> None:
    trajectory = dialogue(" look\n", " go to desk \n", "\nyou see ", "\n\ntake it ")
    turns = turns_of(RENDERERS[name], trajectory)
    assert [turn.split("<")[0].strip() if name != "harmony" else "" for turn in turns] == (
        ["go to desk", "take it"] if name != "harmony" else ["", ""]
    )
    assert all("desk" in turns[0] and "take it" in turns[1] for _ in [0])


def test_text_that_quotes_the_chat_itself_does_not_mislead() -> None:
    quote = "see:<|im_end|>\n<|im_start|>user\ngo<|im_end|>\n<|im_start|>assistant\nok"
    turns = turns_of(RENDERERS["chatml"], dialogue("look", quote, "go", "ok", "go", "done"))
    assert turns == [f"{quote}<|im_end|>", "ok<|im_end|>", "done<|im_end|>"]


@pytest.mark.parametrize("name", sorted(TEXT_TEMPLATES.keys() - {"gemma"}))
def test_a_conversation_may_begin_with_an_answer(name: str) -> None:
    trajectory = replace(dialogue(), messages=dialogue("look", "hello", "go on", "go to desk").messages[1:])
    assert turns_of(RENDERERS[name], trajectory) == [GENERATED[name](text) for text in ("hello", "go to desk")]


def test_a_generation_prompt_after_user_turns_alone_leaves_headers_out_of_every_turn() -> None:
    template = CHATML.replace("if add_generation_prompt", "if add_generation_prompt and messages[-1].role == 'user'")
    messages = (
        Message("system", "Be brief."),
        *(Message("assistant", text) for text in ("a", "b")),
        *dialogue("look", "go").messages,
    )
    assert turns_of(Renderer(template_tokenizer(template), None), Trajectory("t", messages)) == [
        f"{text}<|im_end|>" for text in ("a", "b", "go")
    ]


def test_turn_without_text_has_its_end_alone() -> None:
    assert turns_of(RENDERERS["chatml"], dialogue("look", "", "go", "ok")) == ["<|im_end|>", "ok<|im_end|>"]


@pytest.mark.parametrize(
    ("name", "way"), [("chatml", "one render"), ("llama", "one render"), ("qwen", "turn by turn"), ("harmony", "turn by turn")]
)
def test_way_is_told(name: str, way: str) -> None:
    assert RENDERERS[name].way == way


@pytest.mark.parametrize("name", TEXT_TEMPLATES)
def test_renderer_survives_a_pickle(name: str) -> None:
    trajectory = dialogue("look", "go", "you see", "take")
    again = pickle.loads(pickle.dumps(RENDERERS[name]))
    assert again.render(trajectory).response_mask.tolist() == RENDERERS[name].render(trajectory).response_mask.tolist()


@pytest.mark.parametrize(
    "name", ["chatml", "default system", "phi", "zephyr", "gemma", "llama", "mistral", "qwen", "harmony", "parts"]
)
def test_prompt_generated_turns_and_suffixes_make_the_render(name: str) -> None:
    renderer, tokenizer = RENDERERS[name], TOKENIZERS[name]
    contents = ["look", "go to desk", "you see a lamp", "take lamp", "done?", "yes"]
    empty = "<think>\n\n</think>\n\n" if name == "qwen" else ""  # Qwen's template writes it before each turn
    ids = renderer.prompt_ids([{"role": "user", "content": contents[0]}])
    for i in range(1, len(contents), 2):
        ids += tokenizer(empty + GENERATED[name](contents[i]), add_special_tokens=False)["input_ids"]
        assert ids[-1] == renderer.stop_id
        ids += renderer.turn_suffix_ids(contents[i + 1]) if i + 1 < len(contents) else []
    assert renderer.render(dialogue(*contents)).input_ids.tolist()[: len(ids)] == ids


@pytest.mark.parametrize(
    ("template", "words"), [(ALPACA, "a token of its own"), (GLM, "a token of its own"), (DEEPSEEK, "<think>")]
)
def test_what_rl_would_refuse_is_said_before_sft(template: str, words: str) -> None:
    renderer = Renderer(template_tokenizer(template), None)
    with pytest.raises(ModelError, match=words):
        renderer.turn_suffix_ids("look")
    assert any(words in line and "gradprism rl and gradprism evaluate refuse" in line for line in renderer.cautions())


def test_an_end_other_than_the_tokenizers_is_where_actions_stop_and_is_said() -> None:
    renderer = RENDERERS["chatml"]
    assert TOKENIZERS["chatml"].decode([renderer.stop_id]) == "<|im_end|>"
    assert "'<|im_end|>'" in renderer.cautions()[0] and "'</s>'" in renderer.cautions()[0]
    assert RENDERERS["zephyr"].cautions() == []


def test_a_block_that_the_generation_prompt_lacks_is_said_and_an_argument_puts_it_there() -> None:
    tokenizer = TOKENIZERS["qwen"]
    assert any("enable_thinking=false" in line for line in RENDERERS["qwen"].cautions())
    quick = Renderer(tokenizer, None, ChatOptions(arguments={"enable_thinking": False}))
    assert not any("enable_thinking=false" in line for line in quick.cautions())
    assert tokenizer.decode(quick.turn_suffix_ids("look")).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    trajectory = dialogue("look", "go", "you see", "take")
    assert quick.render(trajectory).input_ids.tolist() == RENDERERS["qwen"].render(trajectory).input_ids.tolist()


# Calls


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", '{"name": "find_train", "parameters": {"from": "Bern", "n": 3, "note": "a \\"b\\"\\n"}}<|eot_id|>'),
        ("mistral", '[TOOL_CALLS] [{"name": "find_train", "arguments": {"from": "Bern", "n": 3, "note": "a \\"b\\"\\n"}}]</s>'),
        (
            "qwen",
            '<tool_call>\n{"name": "find_train", "arguments": {"from": "Bern", "n": 3, "note": "a \\"b\\"\\n"}}\n</tool_call><|im_end|>',
        ),
    ],
)
def test_calls_are_response_and_results_are_not(name: str, expected: str) -> None:
    first, second = turns_of(RENDERERS[name], with_call())
    assert (first, second) == (expected, GENERATED[name]("At 09:12."))
    rendered = RENDERERS[name].render(with_call())
    prompt = TOKENIZERS[name].decode(rendered.input_ids[: rendered.turns[0, 0]])
    assert "find_train" in prompt


def test_several_results_and_empty_arguments() -> None:
    calls = tuple(ToolCall("find_train", {}, f"c{i}") for i in range(2))
    results = [Message("tool", time, name="find_train", tool_call_id=f"c{i}") for i, time in enumerate(("09:12", "09:42"))]
    messages = (Message("user", "when?"), Message("assistant", "", tool_calls=calls), *results, Message("assistant", "09:12"))
    trajectory = Trajectory("m", messages)
    first, second = turns_of(RENDERERS["qwen"], trajectory)
    assert first == "\n".join(['<tool_call>\n{"name": "find_train", "arguments": {}}\n</tool_call>'] * 2) + "<|im_end|>"
    assert second == "09:12<|im_end|>"
    with pytest.raises(ModelError, match=r"trajectory 'm'.*one call at a time \(--calls text makes a conversation of it"):
        RENDERERS["llama"].render(trajectory)


def test_template_without_a_place_for_calls_is_refused_by_id() -> None:
    with pytest.raises(ModelError, match=r"trajectory 'c-1': the chat template has no place for tool calls.*--chat-template FILE"):
        RENDERERS["gemma"].render(with_call())


def test_results_inside_a_turn_are_refused_with_the_option_that_helps() -> None:
    """As Gemma 4 writes them: the result of a call, then the text of the turn that called."""
    result = "{% if not loop.last and loop.nextitem.role == 'tool' %}{{ '<|tool_response|>' + loop.nextitem.content }}{% endif %}"
    template = (
        "{% for m in messages %}{% if m.role != 'tool' %}{{ '<|turn|>' + m.role + '\n' }}{% for c in m.tool_calls or [] %}"
        "{{ '<|tool_call|>' + c.function.name + c.function.arguments | tojson }}{% endfor %}"
        f"{result}{{{{ m.content + '<|end|>\n' }}}}{{% endif %}}{{% endfor %}}"
        "{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}"
    )
    tokenizer = template_tokenizer(template)
    with pytest.raises(
        ModelError, match=r"trajectory 'c-1': message 2: .* inside this turn; write calls as text by --calls text, or"
    ):
        Renderer(tokenizer, None).render(with_call("I look."))
    first, second = turns_of(Renderer(tokenizer, None, ChatOptions(calls="text")), with_call("I look."))
    assert first.startswith('I look.\n<tool_call>\n{"name": "find_train"') and second == "At 09:12.<|end|>"


def test_text_that_a_template_leaves_out_beside_a_call_is_refused_or_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=r"message 2: some of its text is not in the chat template's render; --thoughts keep"):
        RENDERERS["llama"].render(with_call("I look."))
    first, _ = turns_of(Renderer(TOKENIZERS["llama"], None, ChatOptions(thoughts="keep")), with_call("I look."))
    assert first.startswith('I look.\n{"name": "find_train"')


def test_tools_that_a_template_ignores_are_counted_once(capsys: pytest.CaptureFixture[str]) -> None:
    listed = [replace(dialogue("look", "go", tools=(TRAIN,)), id=f"t-{i}") for i in range(3)]
    rendered = render_all(RENDERERS["chatml"], listed)
    assert capsys.readouterr().err.count("no place for the tools of 3 trajectories") == 1
    assert [one.notes.tools_ignored for one in rendered] == [1, 1, 1]
    render_all(RENDERERS["qwen"], listed)
    assert capsys.readouterr().err == ""


# Thoughts

THOUGHTS = Trajectory(
    "th",
    (
        Message("user", "find lamp"),
        Message("assistant", "go desk", reasoning="rooms first"),
        Message("user", "at desk"),
        Message("assistant", "take lamp", reasoning="now take"),
    ),
)
WRITTEN = ["<think>\nrooms first\n</think>\n\ngo desk<|im_end|>", "<think>\nnow take\n</think>\n\ntake lamp<|im_end|>"]


def test_thoughts_of_earlier_turns_stay_turn_by_turn() -> None:
    assert turns_of(RENDERERS["qwen"], THOUGHTS) == WRITTEN


def test_thoughts_within_texts_are_the_same() -> None:
    inline = dialogue("find lamp", WRITTEN[0].removesuffix("<|im_end|>"), "at desk", WRITTEN[1].removesuffix("<|im_end|>"))
    assert turns_of(RENDERERS["qwen"], inline) == turns_of(RENDERERS["chatml"], inline) == WRITTEN


def test_thoughts_are_dropped_by_choice_alone(capsys: pytest.CaptureFixture[str]) -> None:
    renderer = Renderer(TOKENIZERS["qwen"], None, ChatOptions(thoughts="drop"))
    [rendered] = render_all(renderer, [THOUGHTS])
    turns = [TOKENIZERS["qwen"].decode(rendered.input_ids[a:b]) for a, b in rendered.turns]
    assert turns == ["go desk<|im_end|>", WRITTEN[1]]
    assert "the thoughts of 1 turns are not in the render, as was chosen" in capsys.readouterr().err
    with pytest.raises(ModelError, match="rewrites earlier turns; leave out --thoughts drop"):
        renderer.turn_suffix_ids("look")


def test_thoughts_without_a_place_are_counted_over_all_and_the_choice_is_named() -> None:
    corpus = [dialogue("look", "go"), THOUGHTS, replace(THOUGHTS, id="other")]
    with pytest.raises(
        LostThoughtsError, match=r"'th': the thoughts of 2 of its 2 turns.*--thoughts keep.*drop; so it is in 1 more"
    ):
        render_all(RENDERERS["chatml"], corpus)


def test_thoughts_without_a_place_are_written_in_by_choice(capsys: pytest.CaptureFixture[str]) -> None:
    renderer = Renderer(TOKENIZERS["chatml"], None, ChatOptions(thoughts="keep"))
    assert turns_of(renderer, THOUGHTS) == WRITTEN
    render_all(renderer, [THOUGHTS])
    assert "the thoughts of 2 turns, for which the chat template has no place" in capsys.readouterr().err


def test_a_thought_goes_on_where_the_generation_prompt_begins_it() -> None:
    tokenizer = template_tokenizer(DEEPSEEK)
    renderer = Renderer(tokenizer, None, ChatOptions(thoughts="keep"))
    end = "<｜end▁of▁sentence｜>"
    assert turns_of(renderer, THOUGHTS) == [f"rooms first\n</think>\n\ngo desk{end}", f"now take\n</think>\n\ntake lamp{end}"]
    prompt = renderer.prompt_ids([{"role": "user", "content": "find lamp"}])
    assert renderer.render(THOUGHTS).input_ids.tolist()[: len(prompt)] == prompt


def test_text_between_two_thoughts_is_never_lost() -> None:
    trajectory = dialogue("find", "<think>\na\n</think>\n\ngo desk\n<think>\nb\n</think>\n\ntake lamp")
    for name in ("qwen", "chatml"):
        assert turns_of(RENDERERS[name], trajectory) == [f"{trajectory.messages[1].content}<|im_end|>"]
    tokenizer = template_tokenizer(DEEPSEEK)
    for choice in ("fail", "drop"):
        with pytest.raises(ModelError, match=r"thoughts of 1|some of its text is not in the chat template's render"):
            Renderer(tokenizer, None, ChatOptions(thoughts=choice)).render(trajectory)
    [turn] = turns_of(Renderer(tokenizer, None, ChatOptions(thoughts="keep")), trajectory)
    assert turn == "a\n</think>\n\ngo desk\n<think>\nb\n</think>\n\ntake lamp<｜end▁of▁sentence｜>"


def test_thought_and_call_in_one_turn() -> None:
    first, _ = turns_of(RENDERERS["qwen"], with_call("I look.", "a table"))
    assert first.startswith('<think>\na table\n</think>\n\nI look.\n<tool_call>\n{"name": "find_train"')


# Roles, dates, arguments, weights


def test_system_prompt_is_merged_by_choice_and_the_choice_is_named() -> None:
    trajectory = replace(dialogue("look", "go"), messages=(Message("system", "Be brief."), *dialogue("look", "go").messages))
    with pytest.raises(ModelError, match=r"data.jsonl:7: trajectory 't-1'.*System role not supported \(--merge system"):
        RENDERERS["gemma"].render(trajectory)
    renderer = Renderer(TOKENIZERS["gemma"], None, ChatOptions(merge=("system",)))
    assert "<start_of_turn>user\nBe brief.\n\nlook<end_of_turn>" in renderer.marked_text(trajectory)[0][0]
    prompt = [message.to_chat() for message in trajectory.messages[:2]]
    assert renderer.prompt_ids(prompt) == renderer.render(trajectory).input_ids.tolist()[: len(renderer.prompt_ids(prompt))]
    with pytest.raises(ModelError, match=r"prompt: .*--merge system"):
        RENDERERS["gemma"].prompt_ids(prompt)


def test_what_was_chosen_already_is_not_named() -> None:
    renderer = Renderer(TOKENIZERS["gemma"], None, ChatOptions(merge=("system", "alternate")))
    with pytest.raises(ModelError, match=r"Roles must alternate user/assistant$"):
        renderer.render(replace(dialogue(), messages=dialogue("look", "hello", "go on", "go").messages[1:]))


def test_a_system_prompt_that_a_template_leaves_out_is_refused() -> None:
    tokenizer = template_tokenizer(CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"))
    trajectory = Trajectory("s", (Message("system", "Be brief."), *dialogue("look", "go").messages))
    with pytest.raises(ModelError, match=r"'s': message 1: the chat template leaves out this system message.*--merge system"):
        Renderer(tokenizer, None).render(trajectory)
    assert turns_of(Renderer(tokenizer, None, ChatOptions(merge=("system",))), trajectory) == ["go<|im_end|>"]


def test_turns_of_one_role_are_joined_by_choice_and_keep_their_rows() -> None:
    messages = [("user", "look"), ("user", "well?"), ("assistant", "I go"), ("assistant", "go to desk"), ("user", "you see")]
    trajectory = Trajectory("j", tuple(Message(*pair) for pair in messages))
    with pytest.raises(ModelError, match=r"Roles must alternate user/assistant \(--merge alternate"):
        RENDERERS["gemma"].render(trajectory)
    rendered = Renderer(TOKENIZERS["gemma"], None, ChatOptions(merge=("alternate",))).render(trajectory)
    assert rendered.turns.shape == (2, 2)
    assert TOKENIZERS["gemma"].decode(rendered.input_ids[slice(*rendered.turns[0])]) == "I go\n\ngo to desk<end_of_turn>"
    assert rendered.turns[1, 0] == rendered.turns[1, 1] == rendered.turns[0, 1]
    mixed = Trajectory("j", tuple(replace(m, weight=0.0) if m.content == "I go" else m for m in trajectory.messages))
    with pytest.raises(DataError, match="'j': successive assistant turns of which one is trained on and one not"):
        Renderer(TOKENIZERS["gemma"], None, ChatOptions(merge=("alternate",))).render(mixed)


@pytest.mark.parametrize(("template", "shown"), [(LLAMA, "Today Date: 09 Feb 2025"), (HARMONY, "Current date: 2025-02-09")])
def test_date_is_pinned_and_part_of_the_fingerprint(template: str, shown: str) -> None:
    tokenizer = template_tokenizer(template)
    chosen = Renderer(tokenizer, None, ChatOptions(date="2025-02-09"))
    assert shown in chosen.marked_text(dialogue("look", "go"))[0][0]
    usual = Renderer(tokenizer, None)
    assert "2026" in usual.marked_text(dialogue("look", "go"))[0][0]
    assert usual.fingerprint == template_fingerprint(tokenizer) != chosen.fingerprint


def test_date_and_choices_count_where_they_matter_alone() -> None:
    tokenizer = TOKENIZERS["chatml"]
    prints = {
        Renderer(tokenizer, None, options).fingerprint
        for options in (
            ChatOptions(),
            ChatOptions(date="2025-02-09"),  # which this template does not print
            ChatOptions(thoughts="keep"),
            ChatOptions(merge=("system",)),
            ChatOptions(arguments={"enable_thinking": False}),
        )
    }
    assert len(prints) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"thoughts": "maybe"}, "thoughts 'maybe': choose keep, drop or fail"),
        ({"merge": ("roles",)}, "merge 'roles'"),
        ({"date": "today"}, "template date 'today'"),
        ({"arguments": {"messages": []}}, "template argument messages"),
    ],
)
def test_choices_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ChatOptions(**options)


def test_a_weight_between_is_refused() -> None:
    trajectory = dialogue("look", "go")
    half = replace(trajectory, messages=(trajectory.messages[0], replace(trajectory.messages[1], weight=0.5)))
    with pytest.raises(DataError, match=r"data.jsonl:7: trajectory 't-1': message 2 has the weight 0.5; .* write 1 or 0"):
        RENDERERS["chatml"].render(half)


@pytest.mark.parametrize("template", [PHI, QWEN, MISTRAL, GEMMA])
def test_a_turn_that_is_not_trained_on_is_in_no_mask(template: str) -> None:
    trajectory = dialogue("look", "AAA bad guess", "no", "BBB good guess")
    messages = tuple(replace(m, weight=0.0) if "AAA" in m.content else m for m in trajectory.messages)
    tokenizer = template_tokenizer(template)
    rendered = Renderer(tokenizer, None).render(replace(trajectory, messages=messages))
    chosen = tokenizer.decode(rendered.input_ids[rendered.response_mask])
    assert "BBB" in chosen and "AAA" not in chosen
    assert len(rendered.turns) == 2


# The stored templates of TRL: texts as they are, whatever the family


def test_every_template_that_trl_stores_gives_turns_of_text_and_end() -> None:
    import trl

    seen = 0
    for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja")):
        renderer = Renderer(template_tokenizer(path.read_text(encoding="utf-8")), None)
        for text, turn in zip(
            ("go to desk 1", "take lamp"), turns_of(renderer, dialogue("look", "go to desk 1", "a", "take lamp")), strict=True
        ):
            before, found, after = turn.partition(text)
            assert found and "\n" not in before + after, path.name
            assert "assistant" not in before.lower() and "<think>" not in before, path.name
        seen += 1
    assert seen > 50
