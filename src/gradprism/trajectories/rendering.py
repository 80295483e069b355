"""Trajectories to tokens and response mask: one render of the whole conversation gives both.

Suffixes: T tokens, S assistant turns. All spans are half-open. What a mask marks is decided by characters: `masks` says which of the
text were generated, and a token is a response token if any of its own characters was. `transformers`' own mask asks instead which
token holds a span's last character, and marks the rest of the text where the tokenizer dropped it.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from gradprism.checkpoints import HUB_ID, check_finished, model_source
from gradprism.runtime.errors import ConfigError, ModelError, one_line
from gradprism.runtime.files import sha256_json
from gradprism.trajectories.chat import ChatTemplate, TemplateRefusedError
from gradprism.trajectories.chat_options import ChatOptions
from gradprism.trajectories.conversation import merge
from gradprism.trajectories.masks import ANSWER, NO_NOTES, QUESTION, Notes, TurnMasker, Way
from gradprism.trajectories.record import ChatMessage, Message, Trajectory
from gradprism.trajectories.spans import Shape

_OPTIONS = "gradprism_chat_options"  # an attribute of tokenizers: the options go where the template goes


@dataclass(frozen=True, slots=True, eq=False)
class RenderedTrajectory:
    """A trajectory as the model sees it.

    `input_ids` int32 [T]; `response_mask` bool [T], true on the tokens that are trained on; `n_truncated` tokens were cut on the right;
    `turns` int32 [S, 2], one row per assistant turn, trained on or not, empty where the cut took it; `notes` say what was left out or
    added. The first token has nothing that predicts it: the loss is the mean over `response_mask[1:]`, with `input_ids[1:]` as targets.
    `weight` is how much the trajectory counts in SFT's loss.
    """

    id: str
    input_ids: np.ndarray
    response_mask: np.ndarray
    n_truncated: int
    turns: np.ndarray
    notes: Notes = NO_NOTES
    weight: float = 1.0

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
    notes: Notes


class Renderer:
    """Renders with one tokenizer, its chat template and one context length (None: no cut); picklable.

    `options` are by default those that the tokenizer was loaded with. `way` says how response tokens are found.
    """

    def __init__(self, tokenizer: Any, context_length: int | None, options: ChatOptions | None = None) -> None:
        """Raises `ModelError` for a slow tokenizer or one without a template, `ConfigError` for a context below 2 tokens."""
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(f"{_name(tokenizer)}: is not a fast tokenizer, which alone tells characters of tokens; convert it")
        if context_length is not None and context_length < 2:
            raise ConfigError(f"context length {context_length}: must be at least 2 tokens")
        self.tokenizer, self.context_length = tokenizer, context_length
        self._masker = _masker(tokenizer, options)

    @property
    def template(self) -> str:
        """The chat template's text."""
        return self._masker.template.text

    @property
    def way(self) -> Way:
        """How response tokens are found."""
        return self._masker.way

    @property
    def fingerprint(self) -> str:
        """`template_fingerprint` with this renderer's options."""
        return sha256_json(self._masker.template.causes(self.way))

    @property
    def unknown_id(self) -> int | None:
        """The token that stands for what the tokenizer does not know; None for one that knows all."""
        return self.tokenizer.unk_token_id

    @cached_property
    def end_id(self) -> int:
        """The token that ends a turn, at which generation stops. Raises `ModelError` where the template has none."""
        if not (end := self._shape.end):
            raise ModelError(
                f"{_name(self.tokenizer)}: the chat template does not end a turn with a token of its own; {self._options.give_template}"
            )
        ids = self._encode(end)["input_ids"]
        if len(ids) != 1:
            raise ModelError(f"{_name(self.tokenizer)}: the end of a turn {end!r} is not a token of its own")
        return ids[0]

    @cached_property
    def stop_id(self) -> int:
        """The token at which an action ends: the turn's end, or the end of sequence of a tokenizer whose template ends no turn."""
        try:
            return self.end_id
        except ModelError:
            if self.tokenizer.eos_token_id is None:
                raise ConfigError("the tokenizer has no end-of-sequence token; an action would never end") from None
            return self.tokenizer.eos_token_id

    def control_in(self, text: str) -> set[str]:
        """The control tokens whose text is in `text`: the tokenizer reads them as if the template had written them."""
        return self._masker.control_in(text)

    def cautions(self) -> list[str]:
        """What stands in the way of playing with this template, one line each: to be said before a model is trained with it."""
        found = []
        try:
            eos = self.tokenizer.eos_token
            if self.end_id != self.tokenizer.eos_token_id:
                found.append(
                    f"the chat template ends a turn with {self._shape.end!r} and the tokenizer's end-of-sequence token is {eos!r}: "
                    "episodes here stop at the turn's end, other programs have to be told to"
                )
            if not self._trains_end():
                found.append(
                    f"the turn's end {self._shape.end!r} gets no loss, as it lies behind the chat template's {{% endgeneration %}}: a "
                    "model that does not write it already never ends a turn; move the mark behind it, by "
                    f"{self._options.called('chat-template', 'FILE')}"
                )
            self._check_begins()
            if empty := self._shape.empty_thought:
                found.append(
                    f"the chat template writes {empty!r} before a turn without thoughts, and the generation prompt does not: in episodes "
                    "the model has to write it; where the template knows it, "
                    f"{self._options.called('template-arg', 'enable_thinking=false')} puts it into the prompt"
                )
        except ModelError as error:
            found.append(f"{error}; until then gradprism rl and gradprism evaluate refuse the model")
        return found

    def _trains_end(self) -> bool:
        """Whether the token that ends a turn is a response token."""
        turns = Message("user", "look"), Message("assistant", "go"), Message("user", "look")
        whole = self._tokenise(Trajectory("turn", turns))
        return bool(whole.mask[whole.ids == self.end_id].any())

    def render(self, trajectory: Trajectory) -> RenderedTrajectory:
        """Tokens and mask of a trajectory, cut to the context length.

        Raises `ModelError` where the template refuses the conversation or loses some of it, where its turns cannot be told from the
        rest, or the loss is left without a token; `DataError` for a weight other than 0 and 1.
        """
        whole = self._tokenise(trajectory)
        length = len(whole.ids) if self.context_length is None else min(len(whole.ids), self.context_length)
        mask = whole.mask[:length]
        if not mask[1:].any():
            raise ModelError(f"{place_of(trajectory)}: empty response mask: {self._why_empty(trajectory, whole)}")
        turns = np.minimum(whole.turns, length)
        cut = len(whole.ids) - length
        return RenderedTrajectory(trajectory.id, whole.ids[:length], mask, cut, turns, whole.notes, trajectory.weight)

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
        """Tokens of a conversation of system, user and assistant texts up to where the model is to answer. The context length is not
        applied."""
        own = [Message(message["role"], message["content"]) for message in messages]
        masker = self._masker
        merged = merge(own, masker.options, "prompt")
        try:
            text = masker.template.render(masker.dialect.chat(merged), generate=True)
        except TemplateRefusedError as error:
            unmerged = any(message.role == "system" for message in merged)
            helps = (
                f"; {self._options.called('merge', 'system')} puts the system prompt into the first user turn" if unmerged else ""
            )
            raise ModelError(f"prompt: {error}{helps}") from None
        return self._encode(text)["input_ids"]

    def turn_suffix_ids(self, observation: str) -> list[int]:
        """The tokens between a generated turn and the next: those after its end token, through the generation prompt.

        `prompt_ids`, the generated tokens and these, in turn, make the same sequence as one render of the whole conversation.
        Raises `ModelError` where the template does not allow it: no end token after a turn, or earlier turns that change with what
        follows and are trained on as they have become (`--thoughts drop`).
        """
        end_id, masker = self.end_id, self._masker
        self._check_begins()
        if masker.rewrites:
            raise ModelError(
                f"{_name(self.tokenizer)}: the chat template rewrites earlier turns; leave out "
                f"{self._options.called('thoughts', 'drop')}, or {self._options.give_template}"
            )
        rest = masker.finder.after([QUESTION, ANSWER, Message("user", observation)], 1, self._followed)
        # Encoded behind the end token, as it will stand: some tokenizers treat the start of a text in a way of its own.
        ids = self._encode(self._shape.end + rest)["input_ids"]
        if ids[0] != end_id:
            raise ModelError(f"{_name(self.tokenizer)}: the end of a turn {self._shape.end!r} is not a token of its own")
        return ids[1:]

    @property
    def _options(self) -> ChatOptions:
        return self._masker.options

    @property
    def _shape(self) -> Shape:
        try:
            return self._masker.plain
        except ModelError as error:
            raise ModelError(f"{_name(self.tokenizer)}: {error}; {self._options.give_template}") from None

    @cached_property
    def _followed(self) -> Shape:
        """What the template makes of an answer that an observation follows."""
        return self._masker.finder.shape([QUESTION, ANSWER, QUESTION], 1)

    def _check_begins(self) -> None:
        if more := self._shape.unlike_prompt:
            raise ModelError(
                f"{_name(self.tokenizer)}: the generation prompt is not how a turn begins: it goes on with {more!r}; "
                f"{self._options.give_template}"
            )

    def _tokenise(self, trajectory: Trajectory) -> _Tokenised:
        pieces, conversation, notes = self._masker.pieces(trajectory, place_of(trajectory))
        encoding = self._encode(text := pieces.text, return_offsets_mapping=True)
        spans = np.array(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        # Some byte-level tokenizers trim spaces off a token's span (Llama 3). What has no width then was the space before it.
        spans[:, 0] -= spans[:, 0] == spans[:, 1]
        starts, ends = spans.T
        mask, turns = np.zeros(len(spans), dtype=bool), list[tuple[int, int]]()
        for (begin, stop), message, merged in zip(pieces.spans, conversation.answers, conversation.merged, strict=True):
            inside = np.flatnonzero((starts < stop) & (ends > begin))
            first, last = (int(inside[0]), int(inside[-1]) + 1) if inside.size else (0, 0)
            mask[inside] |= message.train
            # Of turns that were joined the first has all tokens.
            turns += [(first, last), *[(last, last)] * (merged - 1)]
        ids = np.array(encoding["input_ids"], dtype=np.int32)
        return _Tokenised(text, ids, spans, mask, np.array(turns, dtype=np.int32).reshape(-1, 2), notes)

    def _encode(self, text: str, **options: Any) -> Any:
        # The template has written every special token already, as in `apply_chat_template`.
        return self.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False, **options)

    def _why_empty(self, trajectory: Trajectory, whole: _Tokenised) -> str:
        if not any(message.train for message in trajectory.messages if message.role == "assistant"):
            return "no assistant turn is to be trained on (each one's flag is false); delete the record or correct its flags"
        if not whole.mask[1:].any():
            return f"the chat template marks no text in the assistant turns, or only the first token; {self._options.give_template}"
        first = 1 + int(whole.mask[1:].argmax())
        past = f"the response begins at token {first + 1}, past the context length {self.context_length}"
        return f"{past}; raise {self._options.called('context-length')}"


def check_vocabulary(rendered: RenderedTrajectory, vocabulary: int | None) -> None:
    """Raises `ModelError` for a token past a model's `vocabulary` embeddings; does nothing where their number is not known."""
    if vocabulary is not None and (token := int(rendered.input_ids.max())) >= vocabulary:
        raise ModelError(
            f"trajectory {rendered.id!r}: token {token} is past the model's {vocabulary} embeddings; the tokenizer is not the model's"
        )


def load_tokenizer(name_or_path: str | Path, chat_template: Path | ChatOptions | None = None) -> Any:
    """Loads a tokenizer from a local folder, or from the hub where `name_or_path` is `org/name` and there is no folder `org` here.

    `chat_template` names a Jinja file that replaces the tokenizer's own template, or holds all choices of rendering, which then go with
    the tokenizer; unless it does, they are those that the model was trained with here, or the defaults. Raises `ModelError` in one line.
    """
    name = str(name_or_path)
    is_local = Path(name).exists()
    if not is_local and (not HUB_ID.fullmatch(name) or Path(name).parent.is_dir()):
        raise ModelError(f"{name}: no such folder; give a model folder, or a hub id of the form org/name")
    if is_local:
        check_finished(Path(name))
    options = chat_template if isinstance(chat_template, ChatOptions) else ChatOptions.of_model(name, file=chat_template)
    template = None if options.file is None else _read_template(options.file)

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
    setattr(tokenizer, _OPTIONS, options)
    return tokenizer


def chat_options(tokenizer: Any) -> ChatOptions:
    """The choices that a tokenizer was loaded with."""
    return getattr(tokenizer, _OPTIONS, ChatOptions())


def template_fingerprint(tokenizer: Any) -> str:
    """Hex SHA-256 of all that a render depends on beside conversation and tokenizer: the template, the special tokens that it may write,
    how masks are found, and what was chosen."""
    masker = _masker(tokenizer, None)
    return sha256_json(masker.template.causes(masker.way))


def _masker(tokenizer: Any, options: ChatOptions | None) -> TurnMasker:
    """What renders with a tokenizer's own template; raises `ModelError` where it has none."""
    options = options or chat_options(tokenizer)
    try:
        text = tokenizer.get_chat_template()
    except ValueError:
        raise ModelError(f"{_name(tokenizer)}: has no chat template; {options.give_template}") from None
    template = ChatTemplate(text, _name(tokenizer), tokenizer.special_tokens_map, options)
    added = [token for token in tokenizer.added_tokens_decoder.values() if str(token).strip()]
    return TurnMasker(template, frozenset(map(str, added)), frozenset(str(token) for token in added if token.special))


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


def place_of(trajectory: Trajectory) -> str:
    return f"{trajectory.source}: trajectory {trajectory.id!r}" if trajectory.source else f"trajectory {trajectory.id!r}"


def _name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", "") or "the tokenizer"
