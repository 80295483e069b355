"""One trajectory as its page shows it: turns with calls and results, what each is worth in the loss, norms, and tokens with losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tokenizers import Tokenizer

from gradprism.concentration import BUILTIN
from gradprism.package_data import MODELS, shipped
from gradprism.runtime.errors import GradprismError, MissingFileError
from gradprism.runtime.files import parse_json, sha256_json
from gradprism.studio.corpus import Corpus
from gradprism.trajectories.record import Message, Trajectory

_PROMPT_ONLY = "Of RL's side a route folder has the prompts alone: name the probe's folder as well to see whole trajectories."
_DIGITS = 4  # of a norm
_LONGEST_CHARACTER = 4  # tokens that a character may be spread over


def trajectory_view(corpus: Corpus, row: int) -> dict[str, Any]:
    """`Trajectory` of `web/src/api.ts`; raises `MissingFileError` for a row that the corpus has not."""
    check_row(corpus, row)
    found, prompt = corpus.texts.trajectory(row)
    trajectory = found or Trajectory(str(corpus.frame["id"][row]), ())
    return {
        "row": row,
        "id": trajectory.id,
        "task": trajectory.task,
        "tools": list(trajectory.tools),
        "messages": _messages(trajectory.messages),
        "turns": _turns(corpus, row),
        "norms": [] if corpus.probe is None else [float(f"{norm:.{_DIGITS}g}") for norm in corpus.profiles.norms[row].tolist()],
        "note": _PROMPT_ONLY if prompt or found is None else "",
    }


def check_row(corpus: Corpus, row: int) -> None:
    """Raises `MissingFileError` for a row that the corpus has not."""
    if not 0 <= row < len(corpus):
        raise MissingFileError(f"{corpus.folder.shown}: has no row {row}, only 0 to {len(corpus) - 1}; go back to the table")


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    made, turn = [], 0
    for message in messages:
        spoken = message.role == "assistant"
        made.append(
            {
                "role": message.role,
                "content": message.content,
                "reasoning": message.reasoning,
                "tool_calls": [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in message.tool_calls],
                "name": message.name,
                "tool_call_id": message.tool_call_id,
                "weight": message.weight if spoken else 0.0,
                "turn": turn if spoken else None,
            }
        )
        turn += spoken
    return made


def _turns(corpus: Corpus, row: int) -> list[dict[str, Any]]:
    if not corpus.has_turns:
        return []
    rows = corpus.turns
    low, high = (int(place) for place in np.searchsorted(rows["index"].to_numpy(), [row, row + 1]))
    told = rows[low:high].select("turn", "loss", "n_response_tokens", scores=pl.struct(BUILTIN))
    return told.to_dicts()


@dataclass(frozen=True)
class Tokenisers:
    """The tokenizers by which tokens can be shown: those of `models` (folders), of the shipped models, and what is below the roots.

    A probe's manifest names a model, but a file elsewhere than where the person pointed to is not opened for what a file says.
    """

    models: Sequence[str] = ()
    roots: Sequence[Path] = ()
    # Those of manifests by their files: when that was written, fingerprint and tokenizer. A large one takes a second to open.
    _opened: dict[Path, tuple[int, tuple[str, Tokenizer | None]]] = field(default_factory=dict, compare=False)

    def find(self, corpus: Corpus) -> Tokenizer | None:
        """That of the corpus's probe, known by its fingerprint; None where none of them is it."""
        return self.by_fingerprint.get(getattr(corpus.manifest, "tokenizer_sha256", "")) or self._named(corpus)

    @cached_property
    def by_fingerprint(self) -> Mapping[str, Tokenizer]:
        """The tokenizers of the models; raises `MissingFileError` for a folder without one."""
        found = {}
        for model in (*self.models, *map(shipped, MODELS)):
            path = Path(model).expanduser() / "tokenizer.json"
            if not path.is_file():
                raise MissingFileError(
                    f"{model}: holds no tokenizer.json; name a model's folder that has one, or leave --model out"
                )
            tokenizer = Tokenizer.from_file(str(path))
            found[_fingerprint(tokenizer)] = tokenizer
        return found

    def _named(self, corpus: Corpus) -> Tokenizer | None:
        """That of the model that the manifest names, where its folder lies below a root."""
        wanted = getattr(corpus.manifest, "tokenizer_sha256", "")
        if not wanted:
            return None
        try:
            path = (Path(corpus.manifest.model or ".") / "tokenizer.json").resolve()
            if not any(path.is_relative_to(root) for root in self.roots) or not path.is_file():
                return None
            written = path.stat().st_mtime_ns
        except (OSError, RuntimeError, ValueError):  # no name of a folder
            return None
        kept = self._opened.get(path)
        if kept is None or kept[0] != written:
            kept = self._opened[path] = (written, _opened(path))
        fingerprint, tokenizer = kept[1]
        return tokenizer if fingerprint == wanted else None


def _opened(path: Path) -> tuple[str, Tokenizer | None]:
    """Fingerprint and tokenizer of a file; of one that cannot be read neither."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
        return _fingerprint(tokenizer), tokenizer
    except Exception:  # its library raises nothing narrower
        return "", None


def _fingerprint(tokenizer: Tokenizer) -> str:
    """That of `trajectories.rendering.tokenizer_fingerprint`."""
    definition = parse_json(tokenizer.to_str())
    return sha256_json({key: value for key, value in definition.items() if key not in ("padding", "truncation")})


def tokens_problem(corpus: Corpus, tokenizer: Tokenizer | None) -> str:
    """Why tokens cannot be shown; empty where they can."""
    if corpus.probe is None:
        return "a route folder has no tokens; name the probe's folder as well"
    try:
        _ = corpus.prepared
    except GradprismError as error:
        return str(error)
    if tokenizer is None:
        name = corpus.manifest.model
        return f"the tokenizer of {name or 'the model'} is not at hand; give --model with the model's folder"
    return ""


def tokens_view(corpus: Corpus, row: int, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """`Tokens` of `web/src/api.ts`; raises `MissingFileError` where they cannot be had."""
    check_row(corpus, row)
    if problem := tokens_problem(corpus, tokenizer):
        raise MissingFileError(f"{corpus.folder.shown}: {problem}")
    assert tokenizer is not None and corpus.probe is not None
    rendered = corpus.prepared.rendered(row)
    pieces = token_texts(tokenizer, rendered.input_ids.tolist())
    mask = np.concatenate([[False], rendered.response_mask, [False]])
    edges = np.flatnonzero(mask[1:] != mask[:-1]).reshape(-1, 2)
    losses: list[float | None] = []
    kept = corpus.probe.token_losses(row)
    targets = np.flatnonzero(rendered.response_mask[1:]) + 1
    if kept is not None and len(kept) == len(targets):
        losses = [None] * len(pieces)
        for place, loss in zip(targets.tolist(), kept.tolist(), strict=True):
            losses[place] = round(loss, 3)
    return {
        "row": row,
        "text": "".join(pieces),
        "lengths": [_utf16(piece) for piece in pieces],
        "response": edges.tolist(),
        "losses": losses,
        "truncated": int(rendered.n_truncated),
    }


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token, `[T]`; of a character that is spread over several, the first has it and the others none.

    A token is decoded behind another one, since decoders take a blank off the beginning.
    """
    if not ids:
        return []
    before = tokenizer.decode([ids[0]], skip_special_tokens=False)
    pairs = tokenizer.decode_batch([[ids[0], one] for one in ids], skip_special_tokens=False)
    pieces = [pair.removeprefix(before) for pair in pairs]
    pieces[0] = before
    place = 0
    while place < len(pieces):
        taken = 1
        if "\N{REPLACEMENT CHARACTER}" in pieces[place]:
            for more in range(2, _LONGEST_CHARACTER + 1):
                whole = tokenizer.decode([ids[0], *ids[place : place + more]], skip_special_tokens=False).removeprefix(before)
                if "\N{REPLACEMENT CHARACTER}" not in whole and place + more <= len(pieces):
                    pieces[place : place + more] = [whole, *[""] * (more - 1)]
                    taken = more
                    break
        place += taken
    return pieces


def _utf16(text: str) -> int:
    return len(text) + sum(ord(character) > 0xFFFF for character in text)
