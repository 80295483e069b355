"""Architectures of published models, made with random weights on the device itself: no weights are carried anywhere."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers

from device.machine import GIB
from device.runner import free
from peers.case import Sizes


@dataclass(frozen=True, slots=True)
class Shape:
    """A published architecture: transformers' `family`, its widths, and for a mixture of experts how many there are and are used.

    `ffn` is that of one expert there.
    """

    name: str
    family: str
    sizes: Sizes
    tied: bool = False
    experts: int = 0
    used: int = 0

    @property
    def active(self) -> Sizes:
        """The widths that a token meets: of a mixture of experts those that are used, as one feed-forward network."""
        return replace(self.sizes, ffn=self.sizes.ffn * self.used) if self.experts else self.sizes

    @property
    def layer_parameters(self) -> int:
        """Weights of the matrices of one layer."""
        s = self.sizes
        attention = 2 * s.hidden * s.head_dim * (s.heads + s.kv_heads)
        return attention + 3 * s.hidden * s.ffn * max(1, self.experts)

    @property
    def parameters(self) -> int:
        """Weights of all matrices, embeddings and head among them."""
        s = self.sizes
        return s.layers * self.layer_parameters + (2 - self.tied) * s.vocabulary * s.hidden

    def with_layers(self, layers: int) -> "Shape":
        """The same with fewer layers."""
        return replace(self, sizes=replace(self.sizes, layers=layers))


QWEN3_8B = Shape("qwen3-8b", "Qwen3", Sizes(4096, 36, 12288, 32, 8, 128, 151936))
LLAMA_8B = Shape("llama-3.1-8b", "Llama", Sizes(4096, 32, 14336, 32, 8, 128, 128256))
QWEN3_30B = Shape("qwen3-30b-a3b", "Qwen3Moe", Sizes(2048, 48, 768, 32, 4, 128, 151936), experts=128, used=8)
QWEN2_05B = Shape("qwen2.5-0.5b", "Qwen2", Sizes(896, 24, 4864, 14, 2, 64, 151936), tied=True)
_TINY = Sizes(hidden=64, layers=2, ffn=96, heads=4, kv_heads=2, head_dim=16, vocabulary=128)


def tiny(shape: Shape, vocabulary: int = 128) -> Shape:
    """The same architecture so small that a CPU runs it in milliseconds."""
    few = {"experts": 4, "used": 2} if shape.experts else {}
    return replace(shape, name=f"{shape.name}, tiny", sizes=replace(_TINY, vocabulary=vocabulary), **few)


def layers_that_fit(shape: Shape, memory_gib: float, share: float = 0.6) -> int:
    """How many layers' weights in bfloat16, with embeddings and head, take `share` of the memory; at least 1, at most all."""
    s = shape.sizes
    left = share * memory_gib * GIB / 2 - (2 - shape.tied) * s.vocabulary * s.hidden
    return max(1, min(s.layers, int(left // shape.layer_parameters)))


def make_config(shape: Shape, context: int = 40960) -> Any:
    """transformers' configuration of a shape."""
    s = shape.sizes
    mixture = {"num_experts": shape.experts, "num_experts_per_tok": shape.used, "moe_intermediate_size": s.ffn}
    return getattr(transformers, f"{shape.family}Config")(
        vocab_size=s.vocabulary,
        hidden_size=s.hidden,
        intermediate_size=s.ffn,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads,
        head_dim=s.head_dim,
        max_position_embeddings=context,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=None,
        **(mixture if shape.experts else {}),
    )


def build(shape: Shape, device: str, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Any:
    """A model of the shape with random weights, in evaluation mode, made on the device in `dtype`."""
    config = make_config(shape)
    torch.manual_seed(seed)
    with _default_dtype(dtype), torch.device(device):
        model = getattr(transformers, f"{shape.family}ForCausalLM")(config)
    model.config.dtype = dtype
    return model.eval()


@contextmanager
def _default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Models:
    """One model at a time: asked for another shape, it gives the first one's memory back before it makes the next."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._shape: Shape | None = None
        self._model: Any = None

    def __call__(self, shape: Shape) -> Any:
        """The model of a shape."""
        if shape != self._shape:
            self.drop()
            self._model, self._shape = build(shape, self.device, self.dtype), shape
        return self._model

    def drop(self) -> None:
        """Gives the memory back."""
        self._shape = self._model = None
        free()
