"""Tokens, response mask and turn deltas, against references that know nothing of offsets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradprism.runtime.errors import ConfigError, ModelError
from gradprism.trajectories import rendering
from gradprism.trajectories.chat_options import ChatOptions
from gradprism.trajectories.parallel import render_all
from gradprism.trajectories.record import Message, Trajectory
from gradprism.trajectories.rendering import (
    Renderer,
    load_tokenizer,
    template_fingerprint,
    tokenizer_fingerprint,
)
from helpers.tiny import SENTENCES, TEMPLATE, WORDS, chatml_tokenizer, sample_trajectories, tiny_tokenizer

# A span that ends, and one that begins, in white space: word-level tokenizers drop it.
SPACE_AT_END = TEMPLATE.replace("<|end|>{% endgeneration %}", "<|end|>{{ '\\n' }}{% endgeneration %}")
SPACE_AT_START = TEMPLATE.replace("{% generation %}", "{% generation %}{{ '\\n' }}")
UNMARKED = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def conversation(*contents: str, train: tuple[bool, ...] = ()) -> Trajectory:
    """User and assistant in turn; `train` flags the assistant turns."""
    flags = dict(enumerate(train))
    messages = [
        Message("assistant", text, float(flags.get(i // 2, True))) if i % 2 else Message("user", text)
        for i, text in enumerate(contents)
    ]
    return Trajectory("t-1", tuple(messages), source="data.jsonl:7")


def reference(tokenizer: Any, trajectory: Trajectory, opening: str = "", closing: str = "<|end|>") -> tuple[list[int], list[bool]]:
    """Ids and mask of `TEMPLATE` with `opening` and `closing` inside the span: each part is tokenised by itself."""
    ids, mask = [], []
    for message in trajectory.messages:
        is_answer = message.role == "assistant"
        text = opening + message.content + closing if is_answer else message.content
        for part, marked in ((f"<|{message.role}|>", False), (text, is_answer and message.train)):
            tokens = tokenizer(part, add_special_tokens=False)["input_ids"]
            ids += tokens
            mask += [marked] * len(tokens)
    return ids, mask


def transformers_mask(tokenizer: Any, trajectory: Trajectory) -> list[bool]:
    out = tokenizer.apply_chat_template(trajectory.chat(), return_dict=True, return_assistant_tokens_mask=True)
    return [bool(m) for m in out["assistant_masks"]]


# The mask


def test_types_and_shapes() -> None:
    trajectory = sample_trajectories(1)[0]
    rendered = Renderer(tiny_tokenizer(), None).render(trajectory)
    n_turns = sum(message.role == "assistant" for message in trajectory.messages)
    assert rendered.id == trajectory.id
    assert (rendered.input_ids.dtype, rendered.response_mask.dtype, rendered.turns.dtype) == (np.int32, np.bool_, np.int32)
    assert rendered.input_ids.shape == rendered.response_mask.shape
    assert rendered.turns.shape == (n_turns, 2)
    assert rendered.n_truncated == 0
    assert rendered.n_targets == rendered.response_mask.sum()


def test_mask_and_turns_equal_the_part_by_part_reference() -> None:
    tokenizer = tiny_tokenizer()
    renderer = Renderer(tokenizer, None)
    for trajectory in sample_trajectories(30):
        rendered = renderer.render(trajectory)
        ids, mask = reference(tokenizer, trajectory)
        assert rendered.input_ids.tolist() == ids
        assert rendered.response_mask.tolist() == mask == transformers_mask(tokenizer, trajectory)
        answers = [m.content for m in trajectory.messages if m.role == "assistant"]
        assert [tokenizer.decode(rendered.input_ids[a:b]) for a, b in rendered.turns] == [f"{text} <|end|>" for text in answers]


@pytest.mark.parametrize(("template", "opening", "closing"), [(SPACE_AT_END, "", "<|end|>\n"), (SPACE_AT_START, "\n", "<|end|>")])
def test_white_space_that_the_tokenizer_drops_at_a_spans_edge(template: str, opening: str, closing: str) -> None:
    tokenizer = tiny_tokenizer(template)
    trajectory = conversation("look at desk 1", "go to desk 1", "you see a mug 2", "take mug 2", "nothing happens")
    rendered = Renderer(tokenizer, None).render(trajectory)
    ids, mask = reference(tokenizer, trajectory, opening, closing)
    assert rendered.input_ids.tolist() == ids
    assert rendered.response_mask.tolist() == mask
    assert sum(mask) == 5 + 4
    assert rendered.turns.tolist() == [[6, 11], [18, 22]]
    assert transformers_mask(tokenizer, trajectory) != mask  # which is why there is a mask of our own


def test_transformers_marks_the_rest_of_the_text_after_dropped_white_space() -> None:
    tokenizer = tiny_tokenizer(SPACE_AT_END)
    trajectory = conversation("look", "go to desk 1", "you see a mug 2 on the desk 1")
    theirs, ours = transformers_mask(tokenizer, trajectory), Renderer(tokenizer, None).render(trajectory).response_mask
    assert theirs == [i >= 3 for i in range(len(theirs))]
    assert np.flatnonzero(ours).tolist() == [3, 4, 5, 6, 7]


words = st.lists(st.sampled_from([*WORDS, "<|end|>", " ", "\n", "\t", "zzz"]), max_size=6).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, words, st.booleans()), min_size=1, max_size=4), st.sampled_from(["", "\n", " \n "]))
def test_any_conversation_equals_the_reference(turns: list[tuple[str, str, bool]], space: str) -> None:
    template = TEMPLATE.replace("<|end|>{% endgeneration %}", f"<|end|>{{{{ {space!r} }}}}{{% endgeneration %}}")
    tokenizer = tiny_tokenizer(template)
    trajectory = conversation(*(t for user, answer, _ in turns for t in (user, answer)), train=tuple(train for *_, train in turns))
    ids, mask = reference(tokenizer, trajectory, closing="<|end|>" + space)
    renderer = Renderer(tokenizer, None)
    if any(mask):
        rendered = renderer.render(trajectory)
        assert rendered.input_ids.tolist() == ids
        assert rendered.response_mask.tolist() == mask
    else:
        with pytest.raises(ModelError, match="no assistant turn is to be trained on"):
            renderer.render(trajectory)


def test_turn_that_is_not_trained_on_has_a_span_but_no_mask() -> None:
    rendered = Renderer(tiny_tokenizer(), None).render(conversation("look", "yes", "go", "no", train=(False, True)))
    assert rendered.turns.tolist() == [[3, 5], [8, 10]]
    assert np.flatnonzero(rendered.response_mask).tolist() == [8, 9]


def test_no_special_token_is_added_to_those_of_the_template() -> None:
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    plain = Renderer(tokenizer, None).render(conversation("look", "yes"))
    start = ("<|pad|>", tokenizer.pad_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<|pad|> $A", special_tokens=[start])
    assert tokenizer("look")["input_ids"][0] == tokenizer.pad_token_id
    assert Renderer(tokenizer, None).render(conversation("look", "yes")).input_ids.tolist() == plain.input_ids.tolist()


@pytest.mark.parametrize("trim", [False, True])
def test_byte_level_tokens_of_wide_characters_and_trimmed_spaces(trim: bool) -> None:
    """Llama 3's post-processor takes spaces off a token's span, so that a token of spaces has no width."""
    from tokenizers import processors

    tokenizer = chatml_tokenizer(
        "{% for m in messages %}<|im_start|>{{ m.role }}:"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
        "<|im_end|>{% endfor %}"
    )
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    answer = "  a 😀   é\n\n  b  "
    trajectory = conversation("x  ", answer, "  y")
    rendered = Renderer(tokenizer, None).render(trajectory)
    parts = [
        ("<|im_start|>user:x  <|im_end|><|im_start|>assistant:", False),
        (answer, True),
        ("<|im_end|><|im_start|>user:  y<|im_end|>", False),
    ]
    encoded = [(tokenizer(text)["input_ids"], marked) for text, marked in parts]
    assert rendered.input_ids.tolist() == [i for ids, _ in encoded for i in ids]
    assert rendered.response_mask.tolist() == [marked for ids, marked in encoded for _ in ids]
    assert Renderer(tokenizer, None).marked_text(trajectory) == parts


# Templates


def test_template_that_rewrites_earlier_turns_is_rendered_turn_by_turn() -> None:
    tokenizer = chatml_tokenizer()
    trajectory = conversation(SENTENCES[1], SENTENCES[2], "ok", SENTENCES[3])
    renderer = Renderer(tokenizer, None)
    assert (renderer.template, renderer.way) == (tokenizer.chat_template, "turn by turn")
    rendered = renderer.render(trajectory)
    marked = [tokenizer.decode(rendered.input_ids[a:b]) for a, b in rendered.turns]
    assert marked == [f"{SENTENCES[i]}<|im_end|>" for i in (2, 3)]
    assert rendered.n_targets == sum(b - a for a, b in rendered.turns)


def test_trls_training_template_is_corrected_and_gives_the_same_tokens() -> None:
    from trl.chat_template_utils import qwen3_training_chat_template

    trajectory = conversation(SENTENCES[1], SENTENCES[2], "ok", SENTENCES[3])
    own, trls = chatml_tokenizer(), chatml_tokenizer(qwen3_training_chat_template)
    first, second = (Renderer(tokenizer, None).render(trajectory) for tokenizer in (own, trls))
    assert Renderer(trls, None).way == "markers, corrected"
    assert first.input_ids.tolist() == second.input_ids.tolist()
    assert first.response_mask.tolist() == second.response_mask.tolist()
    theirs = np.array(transformers_mask(trls, trajectory))
    extra = trls.decode(second.input_ids[theirs & ~second.response_mask])
    assert extra == "<think>\n\n</think>\n\n\n" * 2  # the block that no model writes, and the line break after each turn


def test_template_with_right_markers_is_used_as_it_is() -> None:
    renderer = Renderer(tiny_tokenizer(), None)
    assert (renderer.template, renderer.way) == (TEMPLATE, "markers")


def test_template_without_markers_gives_the_mask_that_its_markers_would_give() -> None:
    marked, unmarked = Renderer(tiny_tokenizer(), None), Renderer(tiny_tokenizer(UNMARKED), None)
    assert unmarked.way == "one render"
    for trajectory in sample_trajectories(20, seed=3):
        first, second = marked.render(trajectory), unmarked.render(trajectory)
        assert first.input_ids.tolist() == second.input_ids.tolist()
        assert first.response_mask.tolist() == second.response_mask.tolist()
        assert first.turns.tolist() == second.turns.tolist()


@pytest.mark.parametrize(("template", "words"), [(None, "has no chat template"), ("{{ oops", "chat template, line 1")])
def test_template_that_cannot_serve(template: str | None, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Renderer(tiny_tokenizer(template), None)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% generation %}{% endgeneration %}{% if %}", "chat template, line 1"),
        (
            "{{ raise_exception('roles must alternate') }}{% generation %}{% endgeneration %}",
            r"data.jsonl:7: trajectory 't-1'.*must alternate",
        ),
        (
            "{% generation %}{{ messages[0].content }}{% endgeneration %}",
            r"data.jsonl:7: trajectory 't-1'.*1 spans for 2 assistant turns",
        ),
        (
            TEMPLATE.replace("{{ message.content }}<|end|>{%", "{%"),
            r"data.jsonl:7: trajectory 't-1': message 2: some of its text is not in the chat template's render",
        ),
    ],
)
def test_template_that_fails_on_a_conversation(template: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Renderer(tiny_tokenizer(template), None).render(conversation("look", "yes", "go", "no"))


def test_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ModelError, match="not a fast tokenizer"):
        Renderer(object(), None)


# Context length and empty masks


def test_cut_on_the_right_is_counted() -> None:
    tokenizer = tiny_tokenizer()
    trajectory = conversation("look", "yes", "go", "no")  # 2 + 3 + 2 + 3 tokens
    whole = Renderer(tokenizer, 10).render(trajectory)
    assert (len(whole.input_ids), whole.n_truncated) == (10, 0)
    cut = Renderer(tokenizer, 6).render(trajectory)
    assert cut.input_ids.tolist() == whole.input_ids[:6].tolist()
    assert cut.response_mask.tolist() == whole.response_mask[:6].tolist()
    assert cut.n_truncated == 4
    assert cut.turns.tolist() == [[3, 5], [6, 6]]


def test_empty_mask_names_trajectory_and_cause() -> None:
    tokenizer = tiny_tokenizer()
    place = r"data.jsonl:7: trajectory 't-1': empty response mask: "
    with pytest.raises(
        ModelError, match=place + r"the response begins at token 4, past the context length 3; raise --context-length"
    ):
        Renderer(tokenizer, 3).render(conversation("look", "yes"))
    with pytest.raises(ModelError, match=place + "no assistant turn is to be trained on"):
        Renderer(tokenizer, 3).render(conversation("look", "yes", train=(False,)))
    with pytest.raises(ConfigError, match="at least 2"):
        Renderer(tokenizer, 1)


def test_first_token_is_no_target() -> None:
    bare = "{% for m in messages[1:] %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    renderer = Renderer(tiny_tokenizer(bare), None)
    rendered = renderer.render(conversation("", "go to desk"))
    assert (rendered.response_mask.sum(), rendered.n_targets) == (3, 2)
    with pytest.raises(ModelError, match="only the first token"):
        renderer.render(conversation("", "go"))


# Deltas for generation


@pytest.mark.parametrize("make", [tiny_tokenizer, chatml_tokenizer])
def test_prompt_generated_tokens_and_suffixes_make_one_render(make: Any) -> None:
    tokenizer = make()
    renderer = Renderer(tokenizer, None)
    think = "<think>\n\n</think>\n\n" if make is chatml_tokenizer else ""  # Qwen3's template writes it before each turn
    for trajectory in sample_trajectories(10, seed=1):
        users = [m.content for m in trajectory.messages if m.role == "user"]
        answers = [m.content for m in trajectory.messages if m.role == "assistant"]
        ids = renderer.prompt_ids([{"role": "user", "content": users[0]}])
        generated = [False] * len(ids)
        for answer, observation in zip(answers, [*users[1:], None], strict=True):
            tokens = tokenizer(think + answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
            suffix = renderer.turn_suffix_ids(observation) if observation is not None else []
            ids, generated = ids + tokens + suffix, generated + [True] * len(tokens) + [False] * len(suffix)
        rendered = renderer.render(trajectory)
        assert rendered.input_ids[: len(ids)].tolist() == ids
        extra = np.flatnonzero(rendered.response_mask[: len(ids)] != np.array(generated))
        assert tokenizer.decode(rendered.input_ids[extra]) == think * len(answers)
        assert len(rendered.input_ids) - len(ids) == (make is chatml_tokenizer)


def test_prompt_ids_are_those_of_transformers() -> None:
    tokenizer = tiny_tokenizer()
    messages = [{"role": "system", "content": "help"}, {"role": "user", "content": "look"}]
    assert (
        Renderer(tokenizer, None).prompt_ids(messages)
        == tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    )


def test_a_turn_end_that_is_never_trained_on_is_said() -> None:
    assert Renderer(tiny_tokenizer(), None).cautions() == []
    late = TEMPLATE.replace("<|end|>{% endgeneration %}", "{% endgeneration %}<|end|>")
    [line] = Renderer(tiny_tokenizer(late), None).cautions()
    assert "the turn's end '<|end|>' gets no loss" in line and "{% endgeneration %}" in line


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            TEMPLATE.replace("{{ message.content }}<|end|>", "{% if loop.last %}think {% endif %}{{ message.content }}<|end|>"),
            "rewrites earlier",
        ),
        (TEMPLATE.replace("<|end|>", ""), "does not end a turn with a token of its own"),
        (TEMPLATE.replace("add_generation_prompt -%}", "add_generation_prompt -%}now "), "not how a turn begins"),
    ],
)
def test_template_that_does_not_grow_turn_by_turn(template: str, words: str) -> None:
    renderer = Renderer(tiny_tokenizer(template), None, ChatOptions(thoughts="drop"))
    with pytest.raises(ModelError, match=rf"{words}.*--chat-template FILE"):
        renderer.turn_suffix_ids("look")
    assert words.startswith("rewrites") or any("gradprism rl and gradprism evaluate refuse" in line for line in renderer.cautions())


# Loading


def test_load_tokenizer_from_a_folder(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "other.jinja").write_text(SPACE_AT_END)
    trajectory = sample_trajectories(1)[0]
    loaded = load_tokenizer(tmp_path)
    assert Renderer(loaded, None).render(trajectory).input_ids.tolist() == reference(loaded, trajectory)[0]
    assert load_tokenizer(tmp_path, tmp_path / "other.jinja").chat_template == SPACE_AT_END


def test_load_tokenizer_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    calls = []
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/tokenizer.json").write_text("{")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/config.json").write_text('{"model_type": "qwen3"}')
    (tmp_path / "empty.jinja").touch()
    cases = [
        ("broken", None, "cannot load its tokenizer"),
        ("bare", None, "holds no tokenizer"),
        ("bare", "no.jinja", "No such file"),
        ("bare", "empty.jinja", "is empty"),
    ]
    for name, template, expected in cases:
        with pytest.raises(ModelError, match=expected) as raised:
            load_tokenizer(tmp_path / name, None if template is None else tmp_path / template)
        assert "\n" not in str(raised.value)

    def refuse(name: str, **options: Any) -> None:
        calls.append((name, options))
        raise OSError("no\nnetwork")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("missing", "./missing", "/missing/model", "a/b/c", "models/missing"):
        with pytest.raises(ModelError, match="no such folder; give"):
            load_tokenizer(name)
    assert calls == []  # none of these is a hub id: nothing was asked of the network
    with pytest.raises(ModelError, match=r"^org/name: .*\(no network\)$"):
        load_tokenizer("org/name")
    assert calls == [("org/name", {"trust_remote_code": False, "local_files_only": False})]


def test_fingerprints() -> None:
    first, same, other = tiny_tokenizer(), tiny_tokenizer(), tiny_tokenizer(SPACE_AT_END)
    same(["look", "go to desk"], padding=True, truncation=True, max_length=4)  # leaves its mark in the backend
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(same) == tokenizer_fingerprint(other)
    assert template_fingerprint(first) == template_fingerprint(same) != template_fingerprint(other)
    same.add_tokens(["newword"])
    assert tokenizer_fingerprint(first) != tokenizer_fingerprint(same)
    assert len(bytes.fromhex(tokenizer_fingerprint(first))) == len(bytes.fromhex(template_fingerprint(first))) == 32


# For people


def test_marked_text_shows_unknown_words_and_the_cut() -> None:
    trajectory = conversation("look at zzz", "go  to desk 1", "yes")
    tokenizer = tiny_tokenizer(SPACE_AT_END)
    assert Renderer(tokenizer, None).marked_text(trajectory) == [
        ("<|user|>look at <|unk|><|assistant|>", False),
        ("go  to desk 1<|end|>", True),
        ("\n<|user|>yes", False),
    ]
    assert Renderer(tokenizer, 7).marked_text(trajectory)[-1] == ("go  to", True)


def test_render_all_keeps_order() -> None:
    trajectories = sample_trajectories(5)
    renderer = Renderer(tiny_tokenizer(), None)
    assert [r.id for r in render_all(renderer, trajectories)] == [t.id for t in trajectories]
    assert rendering.RenderedTrajectory.__eq__ is object.__eq__  # arrays have no truth value to compare by
