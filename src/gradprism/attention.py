"""Which tokens each token may see, in the form in which a model wants to be told."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gradprism.runtime.errors import ModelError

_SHARED_HEADS = "TRANSFORMERS_SDPA_FORCE_GQA"
_KINDS = {"full_attention", "sliding_attention"}


def masks_of(model: Any, capacity: int) -> "AttentionMasks | None":
    """The masks of a model, or None where it takes none."""
    try:
        return AttentionMasks(model, capacity)
    except ModelError:
        return None


@contextmanager
def grouped_attention(device: torch.device, queries: int) -> Iterator[None]:
    """A block in which masked attention of so many queries per row, on a CPU, reads keys and values that heads share where they lie.

    For several queries transformers copies them for each head otherwise, which a device's kernels need and the CPU's do not; for one it
    has a way that is faster still, which is left alone. What is computed is the same.
    """
    before = os.environ.get(_SHARED_HEADS)
    if device.type != "cpu" or queries == 1 or before is not None:
        yield
        return
    os.environ[_SHARED_HEADS] = "1"
    try:
        yield
    finally:
        os.environ.pop(_SHARED_HEADS, None)


class AttentionMasks:
    """Makes the masks of one `transformers` model for sequences of at most `capacity` tokens.

    Raises `ModelError` where the model takes none: its attention implementation is neither sdpa nor eager, or it has layers of another
    kind than full and sliding attention.
    """

    def __init__(self, model: Any, capacity: int) -> None:
        config, attention = model.config.get_text_config(), model.config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise ModelError(f"attention implementation {attention!r}: rollouts take sdpa or eager, or vLLM")
        self._dtype, self._eager = model.dtype, attention == "eager"
        # Layers that see a window of the past, and how the model wants to be told.
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        kinds = set(getattr(config, "layer_types", None) or [])
        self._window = window if window and window < capacity and (not kinds or "sliding_attention" in kinds) else None
        self._kinds = kinds if len(kinds) > 1 else set()
        if kinds - _KINDS:
            raise ModelError(f"layers of kind {sorted(kinds)}: rollouts keep keys and values of full and sliding attention only")

    def of(self, seen_BTK: Tensor, position_BT: Tensor, key_BK: Tensor) -> Any:
        """The model's `attention_mask` where token T may see key K, of positions `position_BT` and `key_BK` (or [1, K])."""
        full = seen_BTK[:, None]
        if self._window is None:
            return {kind: self._form(full) for kind in self._kinds} if self._kinds else self._form(full)
        near = full & (key_BK[:, None, None, :] > position_BT[:, None, :, None] - self._window)
        if not self._kinds:
            return self._form(near)
        return {"full_attention": self._form(full), "sliding_attention": self._form(near)}

    def _form(self, mask: Tensor) -> Tensor:
        if not self._eager:
            return mask
        return torch.zeros(mask.shape, dtype=self._dtype, device=mask.device).masked_fill(~mask, torch.finfo(self._dtype).min)
