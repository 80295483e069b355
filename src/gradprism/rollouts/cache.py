"""A key/value cache of slots: each holds one sequence, grows and is taken over by another independently of its neighbours.

Suffixes: B rows of a forward pass, S slots, C positions, T new tokens, K keys, H key/value heads, D head size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from gradprism.attention import AttentionMasks, grouped_attention
from gradprism.passes import failures_named
from gradprism.runtime.errors import ModelError

# Rows of one forward pass are padded to the longest; a pass is split where its padding would exceed this share of its tokens.
PADDING = 0.5
# … and unless a part holds fewer tokens than this, for which a pass of its own costs more than the padding.
SMALL_PASS = 256


class _SlotLayer(DynamicLayer):
    """Writes each row's new keys and values at that row's own positions, and gives back the rows from their beginning."""

    # Set by the cache before each forward pass.
    rows: torch.Tensor | None  # None: all slots
    write: tuple[torch.Tensor, torch.Tensor]
    width: int
    positions: int
    slots: int

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = [x.new_zeros(self.slots, self.positions, *x.shape[1::2]) for x in (key_states, value_states)]
        results = []
        for which, new_BHTD in enumerate((key_states, value_states)):
            buffer_SCHD = self.buffers[which]
            if buffer_SCHD.shape[1] < self.positions:
                # Zeros, not garbage: a masked key has weight 0, and 0 times NaN would still be NaN.
                grown = buffer_SCHD.new_zeros(self.slots, self.positions, *buffer_SCHD.shape[2:])
                grown[:, : buffer_SCHD.shape[1]] = buffer_SCHD
                self.buffers[which] = buffer_SCHD = grown
            buffer_SCHD[self.write] = new_BHTD.transpose(1, 2)
            held_SKHD = buffer_SCHD[:, : self.width]
            # On a CPU `index_select` copies whole rows, indexing number by number.
            held_BKHD = held_SKHD if self.rows is None else held_SKHD.index_select(0, self.rows)
            results.append(held_BKHD.transpose(1, 2))
        return results[0], results[1]


class SlotCache:
    """Keys and values of `slots` sequences of at most `capacity` tokens, for one model.

    `read` gives a slot's sequence as it should be: what the slot holds already is not computed again. A sequence that goes on costs
    its new tokens, one that begins alike costs what comes after the common beginning, and a new one takes the slot over. Slots that
    are to hold the same sequence cost one of them.
    """

    def __init__(self, model: Any, slots: int, capacity: int) -> None:
        layers = model.config.get_text_config().num_hidden_layers
        self._model, self._slots, self._capacity = model, slots, capacity
        self._masks = AttentionMasks(model, capacity)
        self._layers = [_SlotLayer() for _ in range(layers)]
        self._cache = Cache(layers=list(self._layers))
        self._held: list[list[int]] = [[] for _ in range(slots)]
        self._reserved = 0

    def held(self, slot: int) -> list[int]:
        """The tokens that a slot holds."""
        return self._held[slot]

    @torch.no_grad()
    def read(self, slots: Sequence[int], sequences: Sequence[list[int]]) -> tuple[torch.Tensor, int]:
        """Makes each slot hold its sequence; the logits [B, V] after each one's last token, in float32, and how many tokens were read."""
        starts = []
        for slot, sequence in zip(slots, sequences, strict=True):
            held = self._held[slot]
            start = len(held) if sequence[: len(held)] == held else _common(held, sequence)
            starts.append(min(start, len(sequence) - 1))  # the last token is read again where it is known: its logits are wanted
        return self._advance(slots, starts, [s[start:] for s, start in zip(sequences, starts, strict=True)])

    @torch.no_grad()
    def extend(self, slots: Sequence[int], tokens: Sequence[list[int]]) -> tuple[torch.Tensor, int]:
        """As `read`, each sequence being what the slot holds and these tokens, at least one."""
        return self._advance(slots, [len(self._held[slot]) for slot in slots], tokens)

    def _advance(self, slots: Sequence[int], starts: list[int], tokens: Sequence[list[int]]) -> tuple[torch.Tensor, int]:
        leaders = self._leaders(slots, starts, tokens)
        computed = sorted(set(leaders), key=lambda i: len(tokens[i]))
        logits: list[torch.Tensor] = [torch.empty(0)] * len(slots)
        for part in _parts([len(tokens[i]) for i in computed]):
            rows = sorted(computed[i] for i in part)
            result_BV = self._forward([slots[i] for i in rows], [starts[i] for i in rows], [tokens[i] for i in rows])
            for place, i in enumerate(rows):
                logits[i] = result_BV[place]
        followers = [i for i, leader in enumerate(leaders) if leader != i]
        self._copy([(slots[leaders[i]], slots[i], starts[i], starts[i] + len(tokens[i])) for i in followers])
        for slot, start, new in zip(slots, starts, tokens, strict=True):
            self._held[slot] = [*self._held[slot][:start], *new] if start < len(self._held[slot]) else self._held[slot] + new
        return torch.stack([logits[leader] for leader in leaders]), sum(len(tokens[i]) for i in computed)

    def _leaders(self, slots: Sequence[int], starts: list[int], tokens: Sequence[list[int]]) -> list[int]:
        """For each row the first one of the same sequence: episodes of a task begin alike, and many go on so."""
        firsts: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        leaders = []
        for i, (slot, start, new) in enumerate(zip(slots, starts, tokens, strict=True)):
            same_end = firsts.setdefault((start, tuple(new)), [])
            held = self._held[slot][:start]
            leader = next((j for j in same_end if self._held[slots[j]][:start] == held), i)
            if leader == i:
                same_end.append(i)
            leaders.append(leader)
        return leaders

    def _copy(self, runs: Sequence[tuple[int, int, int, int]]) -> None:
        """Copies keys and values: of each run (from slot, to slot, begin, end) the positions from `begin` to `end`."""
        if not runs:
            return
        index = [(a, b, position) for a, b, begin, end in runs for position in range(begin, end)]
        source, target, position = torch.tensor(index, device=self._model.device).unbind(1)
        for layer in self._layers:
            for buffer_SCHD in layer.buffers:
                buffer_SCHD[target, position] = buffer_SCHD[source, position]

    def _forward(self, slots: list[int], starts: list[int], tokens: list[list[int]]) -> torch.Tensor:
        device, width = self._model.device, max(map(len, tokens))
        # Tokens stand at the right of their rows, so that the last column is each row's last token.
        ids_BT = torch.tensor([[0] * (width - len(row)) + row for row in tokens], device=device)
        start_B = torch.tensor(starts, device=device)
        length_B = torch.tensor([len(row) for row in tokens], device=device)
        position_BT = torch.arange(width, device=device) - (width - length_B)[:, None] + start_B[:, None]
        pad_BT = position_BT < start_B[:, None]
        ends = [start + len(row) for start, row in zip(starts, tokens, strict=True)]
        keys = max(ends)
        if keys > self._capacity:
            raise ModelError(f"a sequence of {keys} tokens: the cache was made for {self._capacity}")
        if keys >= self._reserved:
            self._reserved = min(self._capacity, max(keys, 2 * self._reserved, 128)) + 1
        row_B = torch.tensor(slots, device=device)
        # Padding is written to a position that no sequence reaches, and looks at the first key, so that its softmax is over something.
        write_BT = torch.where(pad_BT, self._reserved - 1, position_BT)
        position_BT = torch.where(pad_BT, 0, position_BT)
        for layer in self._layers:
            layer.slots, layer.positions, layer.width = self._slots, self._reserved, keys
            layer.write = (row_B[:, None], write_BT)
            layer.rows = None if slots == list(range(self._slots)) else row_B
        key_K = torch.arange(keys, device=device)
        with failures_named(self._model), grouped_attention(device, width):
            found = self._model(
                input_ids=ids_BT,
                attention_mask=self._masks.of(key_K <= position_BT[:, :, None], position_BT, key_K[None]),
                position_ids=position_BT,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return found.logits[:, -1].float()


def _common(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _parts(lengths: list[int]) -> list[range]:
    """Ascending lengths cut into runs of little padding."""
    parts, begin, total = [], 0, 0
    for end, length in enumerate(lengths):
        padded = (end - begin + 1) * length
        if total >= SMALL_PASS and padded - total - length > PADDING * padded:
            parts.append(range(begin, end))
            begin, total = end, 0
        total += length
    return [*parts, range(begin, len(lengths))]
