"""What an agent generated, and what it was given, for any chat template: a trajectory's text in pieces.

Templates with `{% generation %}` markers say it themselves, and are believed but for what a model is given before it writes or never
writes: the generation prompt, an empty block of thought, white space after the end token. For all others the spans are derived
(`spans`).
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

from gradprism.runtime.errors import DataError, ModelError
from gradprism.trajectories.chat import ChatTemplate, TemplateRefusedError, Tools
from gradprism.trajectories.chat_options import ChatOptions, Merge
from gradprism.trajectories.conversation import Conversation, Lost, converse, forms, lost_of
from gradprism.trajectories.dialect import Dialect, find_dialect
from gradprism.trajectories.record import Message, ToolCall, Trajectory
from gradprism.trajectories.spans import EMPTY_THOUGHT, Pieces, Shape, SpanFinder, UnderivableError, turn_by_turn

Way = Literal["markers", "markers, corrected", "one render", "turn by turn"]
QUESTION, ANSWER = Message("user", "Where is the lamp?"), Message("assistant", "It is on the desk.")
_DIALOGUE = (QUESTION, ANSWER, replace(QUESTION, content="And the desk?"), replace(ANSWER, content="By the wall."))
_CALL = ToolCall("look", {"at": "desk"}, "look00001")
_CALLED = (QUESTION, Message("assistant", "", tool_calls=(_CALL,)), Message("tool", "a lamp", name="look", tool_call_id=_CALL.id))


class LostThoughtsError(ModelError):
    """Thoughts that the chat template's render would not have."""


@dataclass(frozen=True, slots=True)
class Notes:
    """What a person should know of renders: `thoughts_dropped`, `thoughts_written` and `with_control` count turns, `tools_ignored`
    trajectories. `control`: the control tokens in texts, sorted."""

    thoughts_dropped: int = 0
    thoughts_written: int = 0
    tools_ignored: int = 0
    with_control: int = 0
    control: tuple[str, ...] = ()

    def __add__(self, other: "Notes") -> "Notes":
        return Notes(
            self.thoughts_dropped + other.thoughts_dropped,
            self.thoughts_written + other.thoughts_written,
            self.tools_ignored + other.tools_ignored,
            self.with_control + other.with_control,
            self.control if self.control == other.control else tuple(sorted({*self.control, *other.control})),
        )

    def lines(self) -> Iterator[str]:
        """A line for each count that is not 0."""
        if self.thoughts_dropped:
            yield f"the thoughts of {self.thoughts_dropped} turns are not in the render, as was chosen"
        if self.thoughts_written:
            yield (
                f"the thoughts of {self.thoughts_written} turns, for which the chat template has no place, are written into it as "
                "<think>…</think>"
            )
        if self.tools_ignored:
            yield (
                f"the chat template has no place for the tools of {self.tools_ignored} trajectories: the model is not told of them; "
                "give a template that has"
            )
        if self.with_control:
            yield (
                f"{self.with_control} turns hold the text of control tokens ({', '.join(map(repr, self.control[:5]))}), which the "
                "tokenizer reads as if the chat template had written them; rewrite or delete those texts"
            )


NO_NOTES = Notes()


@dataclass
class TurnMasker:
    """Renders trajectories with one template, in pieces.

    `control` are the tokenizer's added tokens, `special` those of them that no text should hold.
    """

    template: ChatTemplate
    control: frozenset[str]
    special: frozenset[str] = frozenset()
    dialect: Dialect = field(init=False)
    way: Way = field(init=False, default="markers")

    def __post_init__(self) -> None:
        try:
            self.dialect = find_dialect(self.template)
        except TemplateRefusedError:  # of the conversations that it is asked about; those of the corpus may be others
            self.dialect = Dialect()
        self.finder = SpanFinder(self.template, self.dialect, self.control)
        self.way = self._find_way()

    @property
    def options(self) -> ChatOptions:
        """The person's choices."""
        return self.template.options

    @cached_property
    def plain(self) -> Shape:
        """What the template makes of an answer in words, while it is the last turn. Raises `ModelError` where that cannot be told."""
        return self.finder.shape([QUESTION, ANSWER], 1)

    def pieces(self, trajectory: Trajectory, place: str) -> tuple[Pieces, Conversation, Notes]:
        """The render of a trajectory, the conversation that was rendered, and what is to be said of it.

        Raises, naming `place`: `DataError` as `converse` does, `LostThoughtsError` where thoughts would be lost and that was not chosen,
        `ModelError` where the template refuses the conversation, loses anything else of it, or does not show where turns are.
        """
        conversation = converse(trajectory, self.options, self.dialect, place)
        messages, tools = conversation.messages, trajectory.tools if self.dialect.tools else ()
        if not self.dialect.calls and any(message.tool_calls for message in messages):
            raise ModelError(
                f"{place}: the chat template has no place for tool calls; {self.options.called('calls', 'text')} writes them into the "
                f"turn's text as <tool_call>…</tool_call>, or give a template that has by {self.options.called('chat-template', 'FILE')}"
            )
        try:
            pieces = self._render(messages, tools)
        except TemplateRefusedError as error:
            raise ModelError(f"{place}: {error}{self._what_helps(trajectory, place)}") from None
        except UnderivableError as error:
            called = any(message.tool_calls for message in messages)
            helps = f"write calls as text by {self.options.called('calls', 'text')}, or " if called else ""
            raise ModelError(f"{place}: {error}; {helps}{self.options.give_template}") from None
        pieces, notes = self._without_loss(pieces, messages, tools, place)
        self._check_given(pieces, messages, place)
        turns = [found for message in trajectory.messages if (found := self.control_in(message_text(message)))]
        return (
            pieces,
            conversation,
            replace(
                notes,
                tools_ignored=int(bool(trajectory.tools) and not self.dialect.tools),
                with_control=len(turns),
                control=tuple(sorted(set().union(*turns))),
            ),
        )

    def control_in(self, text: str) -> set[str]:
        """The control tokens that a text holds, which the tokenizer takes for its own."""
        return set(self._special.findall(text)) if self.special else set()

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.special, key=lambda token: (-len(token), token)))))

    def _render(self, messages: Sequence[Message], tools: Tools) -> Pieces:
        if self.way == "turn by turn":
            return turn_by_turn(lambda part: self._render_once(part, tools), messages)
        return self._render_once(messages, tools)

    def _render_once(self, messages: Sequence[Message], tools: Tools) -> Pieces:
        return self._by_markers(messages, tools) if self.template.has_markers else self.finder.whole(messages, tools)

    def _find_way(self) -> Way:
        if self._any_rewrites() and self.options.thoughts != "drop":
            return "turn by turn"
        if not self.template.has_markers:
            return "one render"
        return "markers" if all(self._marks_rightly(messages) for messages in self._dialogues()) else "markers, corrected"

    def _marks_rightly(self, messages: Sequence[Message]) -> bool:
        try:
            return self._marked(messages, ())[1] == self._by_markers(messages, ()).spans
        except (TemplateRefusedError, UnderivableError):
            return True  # of a conversation that the template does not take there is nothing to correct

    def _dialogues(self) -> Iterator[Sequence[Message]]:
        """Conversations that show what a template does with turns."""
        yield _DIALOGUE
        yield [replace(m, reasoning="I saw it.") if m.role == "assistant" else m for m in _DIALOGUE]
        if self.dialect.calls:
            yield (*_CALLED, ANSWER, *_DIALOGUE[2:])
            yield (_CALLED[0], replace(_CALLED[1], reasoning="I ask."), _CALLED[2], ANSWER, *_DIALOGUE[2:])

    @cached_property
    def rewrites(self) -> bool:
        """Whether a growing conversation is another than the one that is trained on, since earlier turns change."""
        return self.way != "turn by turn" and self._any_rewrites()

    def _any_rewrites(self) -> bool:
        return any(self._rewrites(messages) for messages in self._dialogues())

    def _rewrites(self, messages: Sequence[Message]) -> bool:
        """Whether a turn is written another way once more follows."""
        try:
            first, both = self._render_once(messages[:2], ()), self._render_once(messages, ())
        except UnderivableError:
            return not self.template.has_markers
        except TemplateRefusedError:
            return False
        return (first.outer[0], first.turns[0]) != (both.outer[0], both.turns[0])

    def _marked(self, messages: Sequence[Message], tools: Tools) -> tuple[str, list[tuple[int, int]]]:
        return self.template.render_marked(self.dialect.chat(messages), tools)

    def _by_markers(self, messages: Sequence[Message], tools: Tools) -> Pieces:
        """The pieces that the template's markers make, less what is no generated text."""
        text, spans = self._marked(messages, tools)
        answers = [message for message in messages if message.role == "assistant"]
        if len(spans) != len(answers):
            spans = self._hulls(spans, messages, tools)
        begins = [0] * len(answers) if self.way == "markers" else self._derived_begins(messages, tools)
        outer, turns, at = list[str](), list[str](), 0
        for (start, stop), message, begin in zip(spans, answers, begins, strict=True):
            start, stop = self._corrected(text, max(start, min(begin, stop)), stop, message)
            outer.append(text[at:start])
            turns.append(text[start:stop])
            at = stop
        return Pieces((*outer, text[at:]), tuple(turns))

    def _derived_begins(self, messages: Sequence[Message], tools: Tools) -> list[int]:
        try:
            return [start for start, _ in self.finder.whole(messages, tools).spans]
        except UnderivableError:
            return [0] * sum(message.role == "assistant" for message in messages)

    def _hulls(self, spans: Sequence[tuple[int, int]], messages: Sequence[Message], tools: Tools) -> list[tuple[int, int]]:
        """One span for each turn from several marked ones; raises `UnderivableError` where they cannot be told apart."""
        n = sum(message.role == "assistant" for message in messages)
        wrong = UnderivableError(f"the chat template marks {len(spans)} spans for {n} assistant turns")
        try:
            turns = self.finder.whole(messages, tools).spans
        except UnderivableError:
            raise wrong from None
        inside = [[span for span in spans if span[0] < stop and span[1] > start] for start, stop in turns]
        if not all(inside):
            raise wrong
        return [
            (max(start, min(s for s, _ in own)), max(e for _, e in own if e > start))
            for (start, _), own in zip(turns, inside, strict=True)
        ]

    def _corrected(self, text: str, start: int, stop: int, message: Message) -> tuple[int, int]:
        for header in self._headers:
            if (at := text.rfind(header, max(0, start - len(header)), min(stop, start + len(header)))) >= 0:
                start = max(start, at + len(header))
        if not message.reasoning and not EMPTY_THOUGHT.match(message.content):
            empty = EMPTY_THOUGHT.match(text, start, stop)
            start = empty.end() if empty else start
        inside = text[start:stop].rstrip()
        return start, start + len(inside) if inside.endswith(tuple(self.control)) else stop

    @cached_property
    def _headers(self) -> tuple[str, ...]:
        """What stands before an answer, to a user and to a tool, as far as it can be told and is no block of thought."""
        found = []
        for before in (_DIALOGUE[:1], _CALLED):
            try:
                header = self.finder.shape([*before, ANSWER], len(before)).header
            except ModelError:
                continue
            empty = EMPTY_THOUGHT.search(header)
            found.append(header[: empty.start()] if empty else header)
        return tuple(filter(None, found))

    def _without_loss(self, pieces: Pieces, messages: Sequence[Message], tools: Tools, place: str) -> tuple[Pieces, Notes]:
        """The pieces with lost thoughts written in, where that was chosen, and how many."""
        outer, turns, dropped, written = list(pieces.outer), list(pieces.turns), 0, 0
        answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
        for number, i in enumerate(answers):
            message, lost = messages[i], _lost(messages[i], pieces, number)
            if lost.calls:
                raise ModelError(
                    f"{place}: message {i + 1}: its tool calls are not in the chat template's render; {self.options.give_template}"
                )
            if lost.thought and self.options.thoughts == "fail":
                raise LostThoughtsError(self._lost_thoughts(messages, pieces, place))
            if lost.text and self.options.thoughts != "keep":
                raise ModelError(
                    f"{place}: message {i + 1}: some of its text is not in the chat template's render; "
                    f"{self.options.called('thoughts', 'keep')} writes it as it is, or {self.options.give_template}"
                )
            if self.options.thoughts == "keep" and (lost.thought or lost.text):
                context = messages[: i + 1] if self.way == "turn by turn" else messages
                shape = self.finder.shape(context, i, tools)
                given, thought = _written_thought(message, shape) if lost.thought else ("", "")
                outer[number] += given
                turns[number] = thought + (_written_text(message, turns[number], shape) if lost.text else turns[number])
                written += 1
            dropped += lost.thought and self.options.thoughts == "drop"
        return Pieces(tuple(outer), tuple(turns)), Notes(dropped, written)

    def _lost_thoughts(self, messages: Sequence[Message], pieces: Pieces, place: str) -> str:
        answers = [message for message in messages if message.role == "assistant"]
        lost = sum(_lost(message, pieces, number).thought for number, message in enumerate(answers))
        return (
            f"{place}: the thoughts of {lost} of its {len(answers)} turns are not in the chat template's render: choose "
            f"{self.options.called('thoughts', 'keep')}, which writes them in as <think>…</think>, or "
            f"{self.options.called('thoughts', 'drop')}"
        )

    def _check_given(self, pieces: Pieces, messages: Sequence[Message], place: str) -> None:
        text = pieces.text
        for number, message in enumerate(messages, 1):
            content = message.content.strip()
            if message.role != "assistant" and content not in text and not any(form in text for form in forms(content)):
                by = f", or merge it into the first user turn by {self.options.called('merge', 'system')}"
                helps = by if message.role == "system" else ""
                raise ModelError(
                    f"{place}: message {number}: the chat template leaves out this {message.role} message; "
                    f"give one that has a place for it by {self.options.called('chat-template', 'FILE')}{helps}"
                )

    def _what_helps(self, trajectory: Trajectory, place: str) -> str:
        """The options with which the template would take the trajectory, as the end of a message."""
        choices = [("merge", ",".join(merge), {"merge": merge}) for merge in (("system",), ("alternate",), get_args(Merge))]
        choices = [choice for choice in choices if not set(choice[2]["merge"]) <= set(self.options.merge)]
        if any(message.tool_calls or message.role == "tool" for message in trajectory.messages):
            choices.append(("calls", "text", {"calls": "text"}))
        for option, value, choice in choices:
            options = replace(self.options, **choice)
            try:
                messages = converse(trajectory, options, self.dialect, place).messages
                self.template.render(self.dialect.chat(messages), trajectory.tools if self.dialect.tools else ())
            except (TemplateRefusedError, DataError):
                continue
            return f" ({self.options.called(option, value)} makes a conversation of it that the template takes)"
        return ""


def _lost(message: Message, pieces: Pieces, number: int) -> Lost:
    """What of an assistant message is not in its turn; a short thought may be there by chance, so that its place counts too."""
    lost = lost_of(message, pieces.turns[number])
    if message.reasoning.strip() and pieces.thoughts and not pieces.thoughts[number]:
        lost = replace(lost, thought=True)
    return lost


def _written_thought(message: Message, shape: Shape) -> tuple[str, str]:
    """A thought as it stands before a turn's text: what the generation prompt gives of it, and what is generated."""
    thought = f"<think>\n{message.reasoning.strip()}\n</think>\n\n"
    given = shape.unlike_prompt if shape.unlike_prompt and thought.startswith(shape.unlike_prompt) else ""
    return given, thought[len(given) :]


def _written_text(message: Message, written: str, shape: Shape) -> str:
    """A turn's text as it is, before its calls or before the end of the turn."""
    return f"{message.content.strip()}\n{written}" if message.tool_calls else message.content.strip() + shape.closing


def message_text(message: Message) -> str:
    """All that a template may write of a message, as it would stand there."""
    calls = (part for call in message.tool_calls for part in (call.name, json.dumps(dict(call.arguments), ensure_ascii=False)))
    return "\n".join((message.content, message.reasoning, message.name, *calls))
