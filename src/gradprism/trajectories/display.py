"""Rendered trajectories for a person's eyes: the response mask as colour or brackets, and the corpus in a few numbers."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.text import Text

from gradprism.trajectories.record import Trajectory

if TYPE_CHECKING:
    from gradprism.trajectories.rendering import RenderedTrajectory

OPEN, CLOSE = "⟦", "⟧"
_RESPONSE_STYLE = "black on green"
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_QUANTILES = (0, 5, 25, 50, 75, 95, 100)


def visible(text: str) -> str:
    """`text` with control and format characters written out, as `␛` or by code point; a line break shows as `⏎` and breaks."""
    return "".join(_visible(c) if unicodedata.category(c) in _INVISIBLE else c for c in text)


def _visible(character: str) -> str:
    code = ord(character)
    if character == "\n":
        return "⏎\n"
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def mask_text(runs: Iterable[tuple[str, bool]], coloured: bool) -> Text:
    """The runs of `Renderer.marked_text` as one text: response in colour, or between `⟦` and `⟧`. Nothing in it is markup."""
    result = Text()
    for text, is_response in runs:
        shown = visible(text)
        if not is_response:
            result.append(shown)
        elif coloured:
            result.append(shown, _RESPONSE_STYLE)
        else:
            result.append(f"{OPEN}{shown}{CLOSE}")
    return result


def heading(trajectory: Trajectory, rendered: "RenderedTrajectory", unknown_id: int | None) -> str:
    """One line about a trajectory: id, source, tokens, response share, turns, what was cut and what the tokenizer does not know."""
    n_tokens, n_response = len(rendered.input_ids), int(rendered.response_mask.sum())
    parts = [
        visible(trajectory.id),
        visible(trajectory.source),
        f"{n_tokens} tokens",
        f"{n_response} response ({n_response / n_tokens:.1%})",
        f"assistant turns: {len(rendered.turns)}",
        f"{rendered.n_truncated} tokens cut off" if rendered.n_truncated else "nothing cut off",
    ]
    if n_unknown := rendered.n_unknown(unknown_id):
        parts.append(f"unknown tokens: {n_unknown}")
    return " · ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class CorpusSummary:
    """Counts, shares (fractions) and quantiles (by percent) of a rendered corpus; lengths in tokens. `str` gives it in words."""

    trajectories: int
    tokens: int
    response_tokens: int
    response_share: float
    unknown_tokens: int
    assistant_turns: int
    truncated_trajectories: int
    truncated_tokens: int
    length_quantiles: Mapping[str, float]
    response_length_quantiles: Mapping[str, float]

    def __str__(self) -> str:
        lines = [
            f"{self.trajectories} trajectories, {self.assistant_turns} assistant turns, {self.tokens} tokens, "
            f"of which response {self.response_tokens} ({self.response_share:.1%})",
            f"cut off by the context length: {self.truncated_tokens} tokens of {self.truncated_trajectories} trajectories",
        ]
        for label, quantiles in (("length", self.length_quantiles), ("response", self.response_length_quantiles)):
            lines.append(f"{label} in tokens: " + ", ".join(f"{percent} % {value:g}" for percent, value in quantiles.items()))
        if self.unknown_tokens:
            lines.append(f"unknown to the tokenizer: {self.unknown_tokens} tokens")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Counts:
    """What a summary needs of a rendered trajectory."""

    tokens: int
    response: int
    cut: int
    unknown: int
    turns: int

    @classmethod
    def of(cls, rendered: "RenderedTrajectory", unknown_id: int | None) -> "Counts":
        """Its numbers; `unknown_id` is the tokenizer's unknown token."""
        tokens, response = len(rendered.input_ids), int(rendered.response_mask.sum())
        return cls(tokens, response, rendered.n_truncated, rendered.n_unknown(unknown_id), len(rendered.turns))


class Summary:
    """Counts rendered trajectories one by one."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int]] = []
        self._unknown = self._turns = 0

    def add(self, counts: Counts) -> None:
        """Counts one."""
        self._rows.append((counts.tokens, counts.response, counts.cut))
        self._unknown += counts.unknown
        self._turns += counts.turns

    def result(self) -> CorpusSummary:
        """The summary of what was added, with zeros where that is nothing."""
        tokens, response, cut = np.array(self._rows or [(0, 0, 0)], dtype=np.int64).T
        return CorpusSummary(
            trajectories=len(self._rows),
            tokens=int(tokens.sum()),
            response_tokens=int(response.sum()),
            response_share=float(response.sum() / max(1, tokens.sum())),
            unknown_tokens=self._unknown,
            assistant_turns=self._turns,
            truncated_trajectories=int((cut > 0).sum()),
            truncated_tokens=int(cut.sum()),
            length_quantiles=_quantiles(tokens),
            response_length_quantiles=_quantiles(response),
        )


@dataclass(frozen=True, slots=True)
class TextSummary:
    """Counts of a corpus that no model has tokenised; the lengths of trajectories in characters. `str` gives it in words."""

    trajectories: int
    turns: int
    assistant_turns: int
    characters: int
    character_quantiles: Mapping[str, float]

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int, int]]) -> "TextSummary":
        """Of the sizes (`text_size`) of all trajectories."""
        turns, answers, characters = np.array(sizes or [(0, 0, 0)], dtype=np.int64).T
        return cls(len(sizes), int(turns.sum()), int(answers.sum()), int(characters.sum()), _quantiles(characters))

    def __str__(self) -> str:
        quantiles = ", ".join(f"{percent} % {value:g}" for percent, value in self.character_quantiles.items())
        return (
            f"{self.trajectories} trajectories, {self.turns} turns, of which {self.assistant_turns} of the assistant, "
            f"{self.characters} characters\nlength in characters: {quantiles}"
        )


def text_size(trajectory: Trajectory) -> tuple[int, int, int]:
    """Turns, assistant turns and characters (of texts and reasoning) of a trajectory."""
    messages = trajectory.messages
    answers = sum(message.role == "assistant" for message in messages)
    return len(messages), answers, sum(len(message.content) + len(message.reasoning) for message in messages)


def summarise(corpus: "Iterable[RenderedTrajectory]", unknown_id: int | None = None) -> CorpusSummary:
    """The summary of a rendered corpus; `unknown_id` is the tokenizer's unknown token."""
    summary = Summary()
    for rendered in corpus:
        summary.add(Counts.of(rendered, unknown_id))
    return summary.result()


def _quantiles(values: np.ndarray) -> dict[str, float]:
    return {str(percent): float(np.percentile(values, percent)) for percent in _QUANTILES}
