"""A chat template as a function of a conversation and of the choices that a person has made."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cached_property
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

from gradprism.runtime.errors import ModelError, one_line
from gradprism.trajectories.chat_options import ChatOptions
from gradprism.trajectories.record import ChatMessage

Tools = Sequence[Mapping[str, Any]]
_MARKER = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_DATE_CALL = re.compile(r"strftime_now\s*\(\s*(?:(['\"])(.*?)\1\s*\))?")
_RAISED = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class TemplateRefusedError(ModelError):
    """A chat template does not render a conversation."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template's text with the variables that it sees beside the conversation; `name` is the tokenizer's, for messages."""

    text: str
    name: str
    special_tokens: Mapping[str, Any]
    options: ChatOptions

    @property
    def has_markers(self) -> bool:
        """Whether the template marks what is generated."""
        return bool(_MARKER.search(self.text))

    @property
    def prints_date(self) -> bool:
        """Whether the template asks for today's date."""
        return "strftime_now" in self.text

    def render(self, messages: Sequence[ChatMessage], tools: Tools = (), generate: bool = False) -> str:
        """The conversation's text, with `generate` up to where the model is to answer.

        Raises `TemplateRefusedError` where the template refuses the conversation, and `ModelError` for a template that is no Jinja.
        """
        return self._render(messages, tools, generate, marked=False)[0]

    def render_marked(self, messages: Sequence[ChatMessage], tools: Tools = ()) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the character spans that the template marks as generated; raises as `render`."""
        return self._render(messages, tools, False, marked=True)

    def _render(
        self, messages: Sequence[ChatMessage], tools: Tools, generate: bool, marked: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        try:
            texts, spans = render_jinja_template(
                [list(messages)],
                tools=[dict(tool) for tool in tools] or None,
                chat_template=self._dated,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=generate,
                **{**self.special_tokens, **self._dates, **self.options.arguments},
            )
        except TemplateSyntaxError as error:
            raise ModelError(f"{self.name}: chat template, line {error.lineno}: {error.message}") from None
        except _RAISED as error:
            raise TemplateRefusedError(f"the chat template refuses the conversation: {one_line(error)}") from None
        return str(texts[0]), spans[0] if marked else []  # pyright: ignore[reportReturnType] (the stub says `str` for a pair of lists)

    @cached_property
    def _dated(self) -> str:
        """The template with a `strftime_now` that knows one day only."""
        if not self.prints_date:
            return self.text
        # What follows a block would lose its line break, what follows an expression does not.
        return "{% macro strftime_now(format) %}{{ gradprism_dates[format] }}{% endmacro %}{{ '' }}" + self.text

    @cached_property
    def _dates(self) -> Mapping[str, Mapping[str, str]]:
        """The day in each form that the template asks for."""
        if not self.prints_date:
            return {}
        calls = list(_DATE_CALL.finditer(self.text))
        if any(call[2] is None for call in calls):
            raise ModelError(f"{self.name}: the chat template computes the form of its date; write the form into it as a string")
        day = datetime.combine(date.fromisoformat(self.options.date), time())
        return {"gradprism_dates": {call[2]: day.strftime(call[2]) for call in calls}}

    def causes(self, way: str) -> list[Any]:
        """All that a render depends on beside conversation and tokenizer: JSON values. `way`: how the masks are found."""
        chosen = self.options.changed() | ({"masks": way} if way != "markers" else {})
        chosen.pop("date", None)
        if self.prints_date:
            chosen["date"] = self.options.date
        return [self.text, dict(self.special_tokens), *([chosen] if chosen else [])]
