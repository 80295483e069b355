"""A key/value cache for many conversations of different lengths that grow turn by turn."""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class _GrowingLayer(DynamicLayer):
    """`DynamicLayer` that doubles its buffer instead of copying everything for each token."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._length = 0
            self._buffers = [x.new_empty(*x.shape[:2], 0, x.shape[3]) for x in (key_states, value_states)]
        end = self._length + key_states.shape[2]
        for which, new in enumerate((key_states, value_states)):
            buffer = self._buffers[which]
            if buffer.shape[2] < end:
                # Zeros, not garbage: a masked column has weight 0, and 0 times NaN would still be NaN.
                grown = new.new_zeros(*new.shape[:2], max(end, 2 * buffer.shape[2], 128), new.shape[3])
                grown[:, :, : self._length] = buffer[:, :, : self._length]
                self._buffers[which] = buffer = grown
            buffer[:, :, self._length : end] = new
        self._length = end
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def select(self, rows: torch.Tensor, columns_BT: torch.Tensor) -> None:
        """Keeps `rows`, and of each kept row the columns that `columns_BT` lists."""
        self._length = columns_BT.shape[1]
        for which, buffer in enumerate(self._buffers):
            index = columns_BT[:, None, :, None].expand(-1, buffer.shape[1], -1, buffer.shape[3])
            self._buffers[which] = buffer[rows].gather(2, index)
        self.keys, self.values = self._buffers


class ConversationCache:
    """The cache with its bookkeeping: which columns of which row hold a token, and how many tokens each row has.

    Rows grow by different numbers of tokens; a block of columns is appended for all, and the surplus columns stay masked. `select`
    squeezes them out.
    """

    def __init__(self, model: Any, batch: int) -> None:
        layers = model.config.get_text_config().num_hidden_layers
        self.cache = Cache(layers=[_GrowingLayer() for _ in range(layers)])
        self.mask_BC = torch.zeros(batch, 0, dtype=torch.long, device=model.device)
        self._model = model

    @property
    def lengths_B(self) -> torch.Tensor:
        """Tokens that each row holds."""
        return self.mask_BC.sum(1)

    @torch.no_grad()
    def append(self, tokens: list[list[int]]) -> torch.Tensor:
        """Feeds each row its tokens (possibly none) and returns the logits [B, V] after each row's last one, in float32.

        A row without tokens gets logits of no meaning.
        """
        device = self.mask_BC.device
        counts = torch.tensor([len(row) for row in tokens], device=device)
        width = int(counts.max())
        ids_BT = torch.zeros(len(tokens), width, dtype=torch.long, device=device)
        for index, row in enumerate(tokens):
            ids_BT[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        column = torch.arange(width, device=device)
        new_BT = (column < counts[:, None]).long()
        # Padding goes to the right of a row's tokens, so that no query is without a key to attend to.
        position_BT = self.lengths_B[:, None] + torch.minimum(column, (counts - 1).clamp(min=0)[:, None])
        self.mask_BC = torch.cat([self.mask_BC, new_BT], 1)
        last_B = (counts - 1).clamp(min=0)
        wanted, which_B = last_B.unique(return_inverse=True)  # the head runs on these columns only
        logits_BKV = self._model(
            input_ids=ids_BT,
            attention_mask=self.mask_BC,
            position_ids=position_BT,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=wanted,
        ).logits
        return logits_BKV[torch.arange(len(tokens), device=device), which_B].float()

    def waste(self) -> float:
        """Share of columns that squeezing would free."""
        return 1 - int(self.lengths_B.max()) / self.mask_BC.shape[1] if self.mask_BC.numel() else 0.0

    def select(self, rows: list[int]) -> None:
        """Keeps these rows and squeezes masked columns out."""
        index = torch.tensor(rows, device=self.mask_BC.device)
        mask = self.mask_BC[index]
        lengths = mask.sum(1)
        # A stable sort by "holds no token" moves each row's tokens to the front, in order; keys keep the positions they were made with.
        columns = mask.argsort(dim=1, descending=True, stable=True)[:, : int(lengths.max())]
        for layer in self.cache.layers:
            assert isinstance(layer, _GrowingLayer)
            layer.select(index, columns)
        self.mask_BC = mask.gather(1, columns)
