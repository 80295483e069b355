"""Which items are probed together: batches by length under a budget of padded tokens. Nothing here needs torch or a table.

A plan is made over all items, whether probed already or not, so that an item keeps its batch, and thereby its rounding, when a run
is resumed, and whichever process takes the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Positions in `Items`, intp [k].
Batch = NDArray[np.intp]
# A batch's shortest sequence is at least this share of its longest: a small corpus is not padded to half of what is read.
SHORTEST = 0.8
_TURN_BITS = (1 << 20) - 1


@dataclass(frozen=True, slots=True)
class Items:
    """Work items: `index` int64 `[m]` of the trajectory, `turn` int32 `[m]` (−1: the whole), `length` int64 `[m]`, tokens read."""

    index: NDArray[np.int64]
    turn: NDArray[np.int32]
    length: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)


def item_code(index: ArrayLike, turn: ArrayLike) -> NDArray[np.int64]:
    """One number for each item, int64; numbers order items by trajectory and then by turn, the whole first."""
    return (np.asarray(index, dtype=np.int64) << 20) | (np.asarray(turn, dtype=np.int64) + 1)  # 20 bits: see `_TURN_BITS`


def item_of(codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The trajectories' places and the turns of `item_code`s `[k]`, int64 `[k]` each."""
    return codes >> 20, (codes & _TURN_BITS) - 1


def plan_items(items: Items, batch_tokens: int, boundaries: Sequence[int] = ()) -> list[Batch]:
    """`plan_batches` of the whole trajectories, then of the turns: those of the whole do not depend on whether turns are asked for."""
    batches = []
    for group in (np.flatnonzero(items.turn < 0), np.flatnonzero(items.turn >= 0)):
        batches += [group[batch] for batch in plan_batches(items.length[group], batch_tokens, boundaries)]
    return batches


def plan_batches(
    lengths: NDArray[Any] | Sequence[int], batch_tokens: int, boundaries: Sequence[int] = (), shortest: float = SHORTEST
) -> list[Batch]:
    """Positions in `lengths`, in batches of at most `batch_tokens` padded tokens, longest first; a longer sequence is a batch alone.

    A batch's shortest sequence is at least `shortest` of its longest. No batch has lengths on both sides of a boundary b, that is, some ≤ b
    and some > b.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    ascending = -lengths[order]
    ends = sorted({int((lengths > boundary).sum()) for boundary in boundaries} | {len(lengths)})
    batches, start = [], 0
    for end in ends:
        while start < end:
            # The first of a batch is its longest, to which the others are padded.
            longest = int(lengths[order[start]])
            similar = int(np.searchsorted(ascending, -shortest * longest, side="right"))
            stop = min(end, similar, start + max(1, batch_tokens // max(1, longest)))
            batches.append(order[start:stop])
            start = stop
    return batches


def pending_batches(items: Items, batches: Sequence[Batch], finished: NDArray[np.int64]) -> list[Batch]:
    """The batches without the items whose `item_code`s are in `finished`, and without those that are empty then."""
    is_pending = ~np.isin(item_code(items.index, items.turn), finished)
    return [pending for batch in batches if len(pending := batch[is_pending[batch]])]


def padded_tokens(items: Items, batches: Sequence[Batch]) -> int:
    """Tokens that the model reads of the batches, padding included."""
    return sum(len(batch) * int(items.length[batch].max()) for batch in batches)


def padding_share(items: Items, batches: Sequence[Batch]) -> float:
    """The share of padding in what the model reads; 0 for no batches."""
    padded = padded_tokens(items, batches)
    return 1 - sum(int(items.length[batch].sum()) for batch in batches) / padded if padded else 0.0


def rope_boundaries(config: Any) -> tuple[int, ...]:
    """Lengths at which a model's rotary frequencies switch; `config` is a `transformers` model configuration.

    "longrope" scales one way up to the original length and another way beyond, for all sequences of a batch alike.
    """
    originals = [original for kind, original in _rope(config) if kind == "longrope" and original]
    return tuple(sorted(set(originals)))


def _rope(config: Any) -> list[tuple[str, int]]:
    """Type and original length (0: not said) of a model's rotary scaling, of each type of layer where they differ."""
    text = config.get_text_config()
    given = getattr(text, "rope_parameters", None) or {}
    sets = [value for value in given.values() if isinstance(value, dict)] or [given]
    outer = getattr(text, "original_max_position_embeddings", None)
    return [(one.get("rope_type", "default"), int(one.get("original_max_position_embeddings") or outer or 0)) for one in sets]
