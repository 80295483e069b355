"""Trajectories to tokens and response mask: one render of the whole conversation gives both.

Suffixes: T tokens, S assistant turns. All spans are half-open. What a mask marks is decided by characters: the chat template marks
the generated spans of the text, and a token is a response token if any of its own characters lies in one. `transformers`' own mask
asks instead which token holds a span's last character, and marks the rest of the text where the tokenizer dropped it.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from gradprism.checkpoints import HUB_ID, model_source
from gradprism.runtime.errors import ConfigError, ModelError, one_line
from gradprism.runtime.files import sha256_json
from gradprism.runtime.progress import Progress
from gradprism.trajectories.record import ChatMessage, Trajectory

_MARKER = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


@dataclass(frozen=True, slots=True, eq=False)
class RenderedTrajectory:
    """A trajectory as the model sees it.

    `input_ids` int32 [T]; `response_mask` bool [T], true on the tokens that are trained on; `n_truncated` tokens were cut on the right;
    `turns` int32 [S, 2], one row per assistant turn, trained on or not, empty where the cut took it. The first token has nothing that
    predicts it: the loss is the mean over `response_mask[1:]`, with `input_ids[1:]` as targets.
    """

    id: str
    input_ids: np.ndarray
    response_mask: np.ndarray
    n_truncated: int
    turns: np.ndarray

    @property
    def n_targets(self) -> int:
        """Number of tokens that the loss averages over; at least 1."""
        return int(self.response_mask[1:].sum())

    def n_unknown(self, unknown_id: int | None) -> int:
        """Number of tokens `unknown_id`, which a tokenizer has for what it does not know; 0 for None, of one that knows all."""
        return 0 if unknown_id is None else int((self.input_ids == unknown_id).sum())


@dataclass(frozen=True, slots=True, eq=False)
class _Tokenised:
    """A whole conversation before any cut; `spans` [T, 2] are the characters that each token stands for."""

    text: str
    ids: np.ndarray
    spans: np.ndarray
    mask: np.ndarray
    turns: np.ndarray


class Renderer:
    """Renders with one tokenizer, its training template and one context length (None: no cut)."""

    def __init__(self, tokenizer: Any, context_length: int | None) -> None:
        """Raises `ModelError` for a slow tokenizer or a template without marks, `ConfigError` for a context below 2 tokens."""
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(f"{_name(tokenizer)}: is not a fast tokenizer, which alone tells characters of tokens; convert it")
        if context_length is not None and context_length < 2:
            raise ConfigError(f"context length {context_length}: must be at least 2 tokens")
        self.tokenizer, self.context_length = tokenizer, context_length
        self.template = training_template(tokenizer)

    @property
    def unknown_id(self) -> int | None:
        """The token that stands for what the tokenizer does not know; None for one that knows all."""
        return self.tokenizer.unk_token_id

    def render(self, trajectory: Trajectory) -> RenderedTrajectory:
        """Tokens and mask of a trajectory, cut to the context length.

        Raises `ModelError` where the template refuses the conversation, does not mark each assistant turn, or leaves the loss
        without a token.
        """
        whole = self._tokenise(trajectory)
        length = len(whole.ids) if self.context_length is None else min(len(whole.ids), self.context_length)
        mask = whole.mask[:length]
        if not mask[1:].any():
            raise ModelError(f"{_place(trajectory)}: empty response mask: {self._why_empty(trajectory, whole)}")
        return RenderedTrajectory(trajectory.id, whole.ids[:length], mask, len(whole.ids) - length, np.minimum(whole.turns, length))

    def render_all(self, trajectories: Sequence[Trajectory]) -> list[RenderedTrajectory]:
        """`render` of each, with progress."""
        rendered = []
        with Progress("rendering", len(trajectories)) as progress:
            for trajectory in trajectories:
                rendered.append(self.render(trajectory))
                progress.advance()
        return rendered

    def marked_text(self, trajectory: Trajectory) -> list[tuple[str, bool]]:
        """The text as its tokens cover it, cut like `render`, for people: runs of (text, is response).

        A word that the tokenizer does not know appears as its unknown token. White space that no token stands for is response only
        between two response tokens.
        """
        whole = self._tokenise(trajectory)
        unknown = self.unknown_id
        runs: list[tuple[str, bool]] = []
        at, before = 0, False
        for token, (start, end), marked in zip(whole.ids[: self.context_length], whole.spans, whole.mask.tolist(), strict=False):
            runs.append((whole.text[at:start], before and marked))
            is_unknown = unknown is not None and token == unknown
            runs.append((self.tokenizer.unk_token if is_unknown else whole.text[max(at, start) : end], marked))
            at, before = max(at, end), marked
        return [("".join(text for text, _ in run), marked) for marked, run in groupby(runs, key=itemgetter(1))]

    def prompt_ids(self, messages: list[ChatMessage]) -> list[int]:
        """Tokens of a conversation up to where the model is to answer. The context length is not applied."""
        return self._encode(self._render_text(messages, "prompt", generate=True)[0])["input_ids"]

    def turn_suffix_ids(self, observation: str) -> list[int]:
        """The tokens between a generated turn and the next: those after its end-of-sequence token, through the generation prompt.

        `prompt_ids`, the generated tokens and these, in turn, make the same sequence as one render of the whole conversation.
        Raises `ModelError` where the template does not allow it: no end-of-sequence token after a turn, or earlier turns that
        change with what follows (Qwen3's own template drops their thoughts; its training template keeps them).
        """
        head, end = self._answered, self.tokenizer.eos_token
        text, _ = self._render_text([*_QUESTION, *_ANSWER, {"role": "user", "content": observation}], "observation", generate=True)
        if not text.startswith(head + end):
            raise ModelError(f"{_name(self.tokenizer)}: the chat template rewrites earlier turns; {_GIVE_TEMPLATE}")
        # Encoded behind the end token, as it will stand: some tokenizers treat the start of a text in a way of its own.
        ids = self._encode(text[len(head) :])["input_ids"]
        if ids[0] != self.tokenizer.eos_token_id:
            raise ModelError(f"{_name(self.tokenizer)}: the end-of-sequence token {end!r} is not a token of its own")
        return ids[1:]

    @cached_property
    def _answered(self) -> str:
        """A one-turn conversation up to, not including, the end-of-sequence token of the answer."""
        text, spans = self._render_text([*_QUESTION, *_ANSWER], "dummy conversation")
        prompt, _ = self._render_text(_QUESTION, "dummy conversation", generate=True)
        end = self.tokenizer.eos_token
        at = text.find(end, spans[0][0]) if end and spans else -1
        if at < 0:
            raise ModelError(
                f"{_name(self.tokenizer)}: the chat template does not end a turn with the eos token {end!r}; {_GIVE_TEMPLATE}"
            )
        if not text.startswith(prompt):
            raise ModelError(f"{_name(self.tokenizer)}: the generation prompt is not how a turn begins; {_GIVE_TEMPLATE}")
        return text[:at]

    def _tokenise(self, trajectory: Trajectory) -> _Tokenised:
        text, generated = self._render_text(trajectory.chat(), _place(trajectory))
        answers = [message for message in trajectory.messages if message.role == "assistant"]
        if len(generated) != len(answers):
            raise ModelError(
                f"{_place(trajectory)}: the chat template marks {len(generated)} spans for {len(answers)} assistant turns; "
                f"{_GIVE_TEMPLATE}"
            )
        encoding = self._encode(text, return_offsets_mapping=True)
        spans = np.array(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        # Some byte-level tokenizers trim spaces off a token's span (Llama 3). What has no width then was the space before it.
        spans[:, 0] -= spans[:, 0] == spans[:, 1]
        starts, ends = spans.T
        mask = np.zeros(len(spans), dtype=bool)
        turns = np.zeros((len(answers), 2), dtype=np.int32)
        for index, ((begin, stop), message) in enumerate(zip(generated, answers, strict=True)):
            inside = np.flatnonzero((starts < stop) & (ends > begin))
            if inside.size:
                turns[index] = inside[0], inside[-1] + 1
                mask[inside] |= message.train
        return _Tokenised(text, np.array(encoding["input_ids"], dtype=np.int32), spans, mask, turns)

    def _render_text(self, messages: list[ChatMessage], place: str, generate: bool = False) -> tuple[str, list[tuple[int, int]]]:
        """The conversation's text and the character spans that the template marks as generated."""
        try:
            texts, spans = render_jinja_template(
                [messages],
                chat_template=self.template,
                return_assistant_tokens_mask=True,
                add_generation_prompt=generate,
                **self.tokenizer.special_tokens_map,
            )
        except TemplateSyntaxError as error:
            raise ModelError(f"{_name(self.tokenizer)}: chat template, line {error.lineno}: {error.message}") from None
        except (TemplateError, TypeError) as error:
            raise ModelError(f"{place}: the chat template refuses the conversation: {one_line(error)}") from None
        return str(texts[0]), spans[0]  # pyright: ignore[reportReturnType] (the stub says `str` for a pair of lists)

    def _encode(self, text: str, **options: Any) -> Any:
        # The template has written every special token already, as in `apply_chat_template`.
        return self.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False, **options)

    def _why_empty(self, trajectory: Trajectory, whole: _Tokenised) -> str:
        if not any(message.train for message in trajectory.messages if message.role == "assistant"):
            return "no assistant turn is to be trained on (each one's flag is false); delete the record or correct its flags"
        if not whole.mask[1:].any():
            return f"the chat template marks no text in the assistant turns, or only the first token; {_GIVE_TEMPLATE}"
        first = 1 + int(whole.mask[1:].argmax())
        return f"the response begins at token {first + 1}, past the context length {self.context_length}; raise --context-length"


_QUESTION = [{"role": "user", "content": "u"}]
_ANSWER = [{"role": "assistant", "content": "a"}]
_GIVE_TEMPLATE = "give one that fits, with {% generation %} around each assistant turn, by --chat-template FILE"


def check_vocabulary(rendered: RenderedTrajectory, vocabulary: int | None) -> None:
    """Raises `ModelError` for a token past a model's `vocabulary` embeddings; does nothing where their number is not known."""
    if vocabulary is not None and (token := int(rendered.input_ids.max())) >= vocabulary:
        raise ModelError(
            f"trajectory {rendered.id!r}: token {token} is past the model's {vocabulary} embeddings; the tokenizer is not the model's"
        )


def load_tokenizer(name_or_path: str | Path, chat_template: Path | None = None) -> Any:
    """Loads a tokenizer from a local folder, or from the hub where `name_or_path` is `org/name` and there is no folder `org` here.

    `chat_template` names a Jinja file that replaces the tokenizer's own template. Raises `ModelError` in one line.
    """
    name = str(name_or_path)
    is_local = Path(name).exists()
    if not is_local and (not HUB_ID.fullmatch(name) or Path(name).parent.is_dir()):
        raise ModelError(f"{name}: no such folder; give a model folder, or a hub id of the form org/name")
    template = None if chat_template is None else _read_template(chat_template)

    try:
        source = model_source(name)
        tokenizer = AutoTokenizer.from_pretrained(source.name, trust_remote_code=False, local_files_only=is_local, **source.options)
    except Exception as error:  # the loader raises whatever its many parsers raise, down to bare Exception
        where = "cannot load its tokenizer" if is_local else "no such folder, and no tokenizer from the hub"
        raise ModelError(f"{name}: {where} ({one_line(error)})") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what the loader makes of a model folder without tokenizer files
        raise ModelError(f"{name}: holds no tokenizer; save the model's tokenizer into it")
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def training_template(tokenizer: Any) -> str:
    """The tokenizer's chat template if it has generation markers, else TRL's training variant of it.

    Raises `ModelError` where there is no template, or TRL has no variant of it.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError:
        raise ModelError(f"{_name(tokenizer)}: has no chat template; {_GIVE_TEMPLATE}") from None
    if _MARKER.search(template):
        return template

    # Here: it takes seconds to import, and a template with markers does not need it.
    from trl.chat_template_utils import get_training_chat_template

    try:
        # None would mean that the template needs no change, which one without markers always does.
        return str(get_training_chat_template(tokenizer))
    except (ValueError, TemplateError):
        raise ModelError(
            f"{_name(tokenizer)}: the chat template has no {{% generation %}} markers and TRL has no training variant of it; "
            + _GIVE_TEMPLATE
        ) from None


def template_fingerprint(tokenizer: Any) -> str:
    """Hex SHA-256 of the template that rendering uses, with the special tokens that it may write."""
    return sha256_json([training_template(tokenizer), tokenizer.special_tokens_map])


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hex SHA-256 of a fast tokenizer's whole definition; padding and truncation, set by its last call, play no part."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    return sha256_json({key: value for key, value in definition.items() if key not in ("padding", "truncation")})


def _read_template(path: Path) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot read the chat template ({getattr(error, 'strerror', None) or error})") from None
    if not text.strip():
        raise ModelError(f"{path}: the chat template is empty")
    return text


def _place(trajectory: Trajectory) -> str:
    return f"{trajectory.source}: trajectory {trajectory.id!r}" if trajectory.source else f"trajectory {trajectory.id!r}"


def _name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", "") or "the tokenizer"
