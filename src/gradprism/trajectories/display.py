"""Rendered trajectories for a person's eyes: the response mask as colour or brackets, and the corpus in a few numbers."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich.text import Text

from gradprism.trajectories.record import Trajectory
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


def heading(trajectory: Trajectory, rendered: RenderedTrajectory, unknown_id: int | None) -> str:
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
    if unknown_id is not None and (n_unknown := int((rendered.input_ids == unknown_id).sum())):
        parts.append(f"unknown tokens: {n_unknown}")
    return " · ".join(part for part in parts if part)


def summarise(corpus: Sequence[RenderedTrajectory], unknown_id: int | None = None) -> dict[str, Any]:
    """Counts, shares (fractions) and quantiles (by percent) of a rendered corpus of at least one trajectory; lengths in tokens."""
    tokens = np.array([len(rendered.input_ids) for rendered in corpus])
    response = np.array([rendered.response_mask.sum() for rendered in corpus])
    cut = np.array([rendered.n_truncated for rendered in corpus])
    unknown = 0 if unknown_id is None else sum(int((rendered.input_ids == unknown_id).sum()) for rendered in corpus)
    return {
        "trajectories": len(corpus),
        "tokens": int(tokens.sum()),
        "response_tokens": int(response.sum()),
        "response_share": float(response.sum() / tokens.sum()),
        "unknown_tokens": unknown,
        "assistant_turns": sum(len(rendered.turns) for rendered in corpus),
        "truncated_trajectories": int((cut > 0).sum()),
        "truncated_tokens": int(cut.sum()),
        "length_quantiles": _quantiles(tokens),
        "response_length_quantiles": _quantiles(response),
    }


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """`summarise`'s result in words."""
    lines = [
        f"{summary['trajectories']} trajectories, {summary['assistant_turns']} assistant turns, {summary['tokens']} tokens, "
        f"of which response {summary['response_tokens']} ({summary['response_share']:.1%})",
        f"cut off by the context length: {summary['truncated_tokens']} tokens of {summary['truncated_trajectories']} trajectories",
    ]
    for label, key in (("length", "length_quantiles"), ("response", "response_length_quantiles")):
        lines.append(f"{label} in tokens: " + ", ".join(f"{percent} % {value:g}" for percent, value in summary[key].items()))
    if summary["unknown_tokens"]:
        lines.append(f"unknown to the tokenizer: {summary['unknown_tokens']} tokens")
    return lines


def _quantiles(values: np.ndarray) -> dict[str, float]:
    return {str(percent): float(np.percentile(values, percent)) for percent in _QUANTILES}
