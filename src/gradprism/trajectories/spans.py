"""Where a chat template writes what an assistant turn generated, for templates that do not mark it themselves.

A conversation is rendered twice: as it is, and with all that its assistant turns say replaced by words that occur nowhere else. Around
those words the second render shows what the template adds to a turn. Where the turn begins follows from the generation prompt, since
that is where a model begins to write; where it ends, from what the text after it shares with a render that ends there. The text
between the turns is the same in both renders, so it cuts the first into the same parts, and there must be one way only to do so.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest

from gradprism.runtime.errors import ModelError
from gradprism.trajectories.chat import ChatTemplate, Tools
from gradprism.trajectories.dialect import Dialect
from gradprism.trajectories.record import Message, ToolCall

# A block of thought without a thought: what templates write before the text of a turn that has none.
EMPTY_THOUGHT = re.compile(
    r"\s*(?:<([\w:]*think\w*)>\s*</\1>|\[THINK\]\s*\[/THINK\]|<\|channel>thought\s*<channel\|>|</think>)\s*", re.IGNORECASE
)
_THOUGHT_WORD = re.compile(r"zqr\d{6}qz")
_WORD = re.compile(r"zq([trc])(\d{6})qz")


class UnderivableError(ModelError):
    """A template's render from which the turns' text cannot be told."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """A render as `outer[0], turns[0], outer[1], …, outer[S]`: `turns` are what the S assistant turns generate, ends included.

    `thoughts`: whether the template writes a thought into each turn; empty where nobody has looked.
    """

    outer: tuple[str, ...]
    turns: tuple[str, ...]
    thoughts: tuple[bool, ...] = ()

    @property
    def text(self) -> str:
        """The whole render."""
        return "".join(chain.from_iterable(zip_longest(self.outer, self.turns, fillvalue="")))

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Half-open character spans of the turns."""
        spans, at = [], 0
        for outer, turn in zip(self.outer, self.turns, strict=False):
            spans.append((at := at + len(outer), at := at + len(turn)))
        return spans


@dataclass(frozen=True, slots=True)
class Shape:
    """What a template makes of a turn of one kind, the turn's number left out.

    `header` stands before the turn, `before` characters of `text` before its first marked word. `end` is the token that ends the turn,
    empty where nothing does. `unlike_prompt`: what the generation prompt has after the header and the turn has not, `empty_thought` the
    reverse: a block of thought without a thought.
    """

    header: str
    text: str
    before: int
    end: str
    unlike_prompt: str
    empty_thought: str

    @property
    def closing(self) -> str:
        """What follows the turn's last marked word, up to its end."""
        return self.text[_last(self.text) :]


def turn_by_turn(render: Callable[[Sequence[Message]], Pieces], messages: Sequence[Message]) -> Pieces:
    """The conversation as it grows: each turn as `render` gives it while it is the last."""
    outer, turns, thoughts, rest = list[str](), list[str](), list[bool](), ""
    for i, message in enumerate(messages):
        if message.role == "assistant":
            pieces = render(messages[: i + 1])
            outer += pieces.outer[-2:-1]
            turns += pieces.turns[-1:]
            thoughts += pieces.thoughts[-1:]
            rest = pieces.outer[-1]
    if messages[-1].role != "assistant":
        rest = render(messages).outer[-1]
    return Pieces((*outer, rest), tuple(turns), tuple(thoughts))


@dataclass(slots=True)
class SpanFinder:
    """Finds the turns in the renders of one template; `control` are the tokenizer's added tokens. Shapes once learned are kept."""

    template: ChatTemplate
    dialect: Dialect
    control: frozenset[str]
    _shapes: dict[tuple[object, ...], list[Shape]] = field(default_factory=dict)

    def whole(self, messages: Sequence[Message], tools: Tools = ()) -> Pieces:
        """The template's render of the conversation, in pieces; raises `TemplateRefusedError`, or `UnderivableError`."""
        answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
        text = self._render(messages, tools)
        if not answers:
            return Pieces((text,), ())
        pieces = self._marked_pieces(messages, tools)
        if (found := _cut(text, pieces.outer)) is None:
            found = self._cut_one_by_one(text, messages, tools, answers)
        return replace(found, thoughts=tuple(_THOUGHT_WORD.search(turn) is not None for turn in pieces.turns))

    def shape(self, messages: Sequence[Message], turn: int, tools: Tools = ()) -> Shape:
        """What the template makes of the assistant message at the place `turn`."""
        marked = _marked(messages)
        text = self._render(marked, tools)
        return self._shape_in(text, marked, tools, turn, _words(text))

    def after(self, messages: Sequence[Message], turn: int, shape: Shape) -> str:
        """What follows the assistant message at the place `turn`, whose shape is known, up to the end of the generation prompt."""
        prompt = self.template.render(self.dialect.chat(_marked(messages)), generate=True)
        at = _words(prompt)[turn][0] - shape.before
        if not _same(prompt[at : at + len(shape.text)], shape.text):
            raise UnderivableError("the chat template writes a turn another way before a generation prompt")
        return prompt[at + len(shape.text) :]

    def _render(self, messages: Sequence[Message], tools: Tools) -> str:
        return self.template.render(self.dialect.chat(messages), tools)

    def _marked_pieces(self, messages: Sequence[Message], tools: Tools, only: int | None = None) -> Pieces:
        """Pieces of the render in which the turns, or one of them, consist of marked words."""
        marked = _marked(messages, only)
        text = self._render(marked, tools)
        words = _words(text)
        outer, turns, at = list[str](), list[str](), 0
        for i, message in enumerate(messages):
            if message.role != "assistant" or (only is not None and i != only):
                continue
            shape = self._shape_in(text, marked, tools, i, words)
            start = words[i][0] - shape.before
            stop = start + len(shape.text)
            if start < at:
                raise UnderivableError(f"the chat template writes message {i + 1} before the end of the one that it follows")
            outer.append(text[at:start])
            turns.append(text[start:stop])
            at = stop
        return Pieces((*outer, text[at:]), tuple(turns))

    def _shape_in(self, text: str, marked: Sequence[Message], tools: Tools, i: int, words: dict[int, tuple[int, int]]) -> Shape:
        """The shape of message `i` in a marked render: one that is known and fits, else a new one."""
        if i not in words:
            raise UnderivableError(f"message {i + 1}: the chat template writes nothing of this assistant turn")
        first, last = words[i]
        if any(first < at < last for other, pair in words.items() if other != i for at in pair):
            raise UnderivableError(f"message {i + 1}: the chat template writes other turns inside this one")
        known = self._shapes.setdefault(_kind(marked, i), [])
        for shape in known:
            start = first - shape.before
            if text[:start].endswith(shape.header) and _same(text[start : start + len(shape.text)], shape.text):
                return shape
        known.append(shape := self._learn(text, marked, tools, i, words))
        return shape

    def _learn(self, text: str, marked: Sequence[Message], tools: Tools, i: int, words: dict[int, tuple[int, int]]) -> Shape:
        first, last = words[i]
        alone = self._render(marked[: i + 1], tools)
        own = _words(alone)
        if i not in own:
            raise UnderivableError(f"message {i + 1}: the chat template writes nothing of this assistant turn while it is the last")
        prompt = self._prompt(marked[:i], tools, alone[: own[i][0]])
        begin = self._shared(prompt, alone[: own[i][0]])
        before = max((stop for other, (_, stop) in own.items() if other < i), default=0)
        rest = self._before(marked[:i], tools)
        if begin < max(before, self._shared(rest, prompt)):
            raise UnderivableError(f"message {i + 1}: what stands before this turn is another text in the generation prompt")
        header = alone[max(before, self._shared(rest, alone)) : begin]
        lead = alone[begin : own[i][0]]
        if not text[:first].endswith(header + lead):
            # A template that writes a turn another way once more follows: what is between the header and the turn's first word.
            before = max((stop for _, stop in words.values() if stop <= first), default=0)
            header, lead = self._header_of_earlier(text[before:first], header, i)
        if not _plain(alone[: own[i][1]]).endswith(_plain(text[first:last])):
            raise UnderivableError(f"message {i + 1}: the chat template writes other messages inside this turn")
        if not header and marked[i - 1].role == "tool" and (usual := self._usual_header) and usual in lead:
            header, lead = header + usual, lead[lead.index(usual) + len(usual) :]
        empty = None if f"zqr{i:06d}qz" in text[first:last] else EMPTY_THOUGHT.match(lead)
        if empty:
            header, lead = header + empty[0], lead[empty.end() :]
        closing, end = self._closing(text[last:], alone[own[i][1] :], marked, tools, i)
        whole = lead + text[first:last] + closing
        return Shape(header, _plain(whole), len(lead), end, prompt[begin:], empty[0] if empty else "")

    def _prompt(self, before: Sequence[Message], tools: Tools, lead: str) -> str:
        """Up to where a turn is to be written that `lead` leads to.

        Before a conversation's first message, and after what is no user's, many templates refuse to say it, or say it without the
        header: there the usual header tells.
        """
        rest = self._before(before, tools)
        prompt = self.template.render(self.dialect.chat(before), tools, generate=True) if before else rest
        if (not before or before[-1].role != "user") and prompt == rest:
            header = EMPTY_THOUGHT.sub("", self._usual_header).lstrip()
            if header and (at := lead.rfind(header, self._shared(rest, lead))) >= 0:
                return lead[: at + len(header)]
        return prompt if before else self.template.render(self.dialect.chat(before), tools, generate=True)

    @property
    def _usual_header(self) -> str:
        try:
            return self.shape([Message("user", "zqmoreqz"), Message("assistant", "zqmoreqz")], 1).header
        except ModelError:
            return ""

    def _header_of_earlier(self, text: str, header: str, i: int) -> tuple[str, str]:
        """Header and lead at the end of `text`, which follows the turn before, for a turn that begins otherwise than the last does."""
        least = min((header.index(token) + len(token) for token in self.control if token in header), default=len(header))
        for length in range(len(header), max(least, 1) - 1, -1):
            if (at := text.rfind(header[:length])) >= 0:
                return header[:length], text[at + length :]
        raise UnderivableError(f"message {i + 1}: the generation prompt is not how the chat template begins a turn")

    def _before(self, before: Sequence[Message], tools: Tools) -> str:
        """The messages before a turn without a generation prompt; empty where the template refuses that."""
        try:
            return self._render(before, tools) if before else ""
        except ModelError:
            return ""

    def _closing(self, rest: str, alone: str, marked: Sequence[Message], tools: Tools, i: int) -> tuple[str, str]:
        """What of `rest`, which follows the turn's last word, is the turn's: text and end token. `alone` follows it as the last."""
        other = rest if i + 1 < len(marked) else self._rest_before_more(marked, tools, i)
        shared = len(alone) if other is None else self._shared(alone, other)
        closing = alone[:shared].rstrip()
        if closing:
            # A word of the next header may begin like the last turn's end: whole tokens only, and only what stands here.
            return closing, next((t for t in self._by_length if closing.endswith(t)), "")
        at = len(alone[:shared])
        ends = [next((t for t in self._by_length if side.startswith(t, at)), "") for side in (alone, rest)]
        return (rest[:at] + ends[1], ends[1]) if all(ends) else ("", "")

    def _rest_before_more(self, marked: Sequence[Message], tools: Tools, i: int) -> str | None:
        for role in ("tool", "user") if marked[i].tool_calls else ("user",):
            name = marked[i].tool_calls[-1].name if role == "tool" else ""
            more = Message(role, "zqmoreqz", name=name, tool_call_id=marked[i].tool_calls[-1].id if name else "")
            try:
                text = self._render([*marked, more], tools)
            except ModelError:
                continue
            return text[_words(text)[i][1] :] if i in _words(text) else None
        return None

    def _cut_one_by_one(self, text: str, messages: Sequence[Message], tools: Tools, answers: Sequence[int]) -> Pieces:
        """The pieces by renders in each of which one turn alone consists of marked words: their lengths tell where it is."""
        outer, turns, at = list[str](), list[str](), 0
        for i in answers:
            before, after = self._marked_pieces(messages, tools, only=i).outer
            start, stop = len(before), len(text) - len(after)
            if not (at <= start <= stop and text.startswith(before) and text.endswith(after)):
                raise UnderivableError(
                    f"message {i + 1}: what this turn says changes the text around it in the chat template's render"
                )
            outer.append(text[at:start])
            turns.append(text[start:stop])
            at = stop
        return Pieces((*outer, text[at:]), tuple(turns))

    def _shared(self, one: str, other: str) -> int:
        """Length of what both begin with, no control token cut in two."""
        shared = _common(one, other)
        for text in (one, other):
            for token in self._by_length:
                at = text.find(token, max(0, shared - len(token) + 1), shared + len(token) - 1)
                if 0 <= at < shared < at + len(token):
                    shared = at
        return shared

    @property
    def _by_length(self) -> list[str]:
        return sorted(self.control, key=lambda token: (-len(token), token))


def _marked(messages: Sequence[Message], only: int | None = None) -> list[Message]:
    """The messages with a word of its own for each text, thought and arguments of assistant turns, or of one of them."""

    def word(kind: str, i: int) -> str:
        return f"zq{kind}{i:06d}qz"

    def mark(i: int, message: Message) -> Message:
        calls = tuple(ToolCall(call.name, {word("c", i): word("c", i)}, call.id) for call in message.tool_calls)
        text = word("t", i) if message.content.strip() or not calls else message.content
        reasoning = word("r", i) if message.reasoning.strip() else ""
        return Message("assistant", text, message.weight, reasoning, calls, message.name)

    return [
        mark(i, message) if message.role == "assistant" and only in (None, i) else message for i, message in enumerate(messages)
    ]


def _words(text: str) -> dict[int, tuple[int, int]]:
    """For each message with marked words the start of its first and the end of its last."""
    found: dict[int, tuple[int, int]] = {}
    for word in _WORD.finditer(text):
        i = int(word[2])
        found[i] = (found[i][0] if i in found else word.start(), word.end())
    return found


def _last(text: str) -> int:
    return max((word.end() for word in _WORD.finditer(text)), default=0)


def _plain(text: str) -> str:
    """Marked text without the numbers of its messages."""
    return _WORD.sub(r"zq\g<1>000000qz", text)


def _same(text: str, plain: str) -> bool:
    return len(text) == len(plain) and _plain(text) == plain


def _kind(marked: Sequence[Message], i: int) -> tuple[object, ...]:
    """What a turn's shape depends on, as far as can be foreseen; the rest is compared."""
    message = marked[i]
    beside = tuple(marked[j].role if 0 <= j < len(marked) else "" for j in (i - 1, i + 1))
    return (*beside, bool(message.content), bool(message.reasoning), tuple(call.name for call in message.tool_calls))


def _common(one: str, other: str) -> int:
    """Length of the common beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _cut(text: str, outer: Sequence[str]) -> Pieces | None:
    """`text` as `outer` with something in between; None where that is impossible, or possible in more ways than one."""
    first, *inner, last = outer
    if not (text.startswith(first) and text.endswith(last) and len(first) + len(last) <= len(text)):
        return None
    body = text[len(first) : len(text) - len(last)] if last else text[len(first) :]
    left, right = _places(body, inner), _places_from_right(body, inner)
    if left is None or left != right:
        return None
    turns, at = list[str](), 0
    for start, piece in zip(left, inner, strict=True):
        turns.append(body[at:start])
        at = start + len(piece)
    return Pieces(tuple(outer), (*turns, body[at:]))


def _places(body: str, inner: Iterable[str]) -> list[int] | None:
    places, at = list[int](), 0
    for piece in inner:
        if (found := body.find(piece, at)) < 0:
            return None
        places.append(found)
        at = found + len(piece)
    return places


def _places_from_right(body: str, inner: Sequence[str]) -> list[int] | None:
    places, stop = list[int](), len(body)
    for piece in reversed(inner):
        if (found := body.rfind(piece, 0, stop)) < 0:
            return None
        places.append(found)
        stop = found
    return places[::-1]
