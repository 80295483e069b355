"""A model's parameters, memory and arithmetic from its configuration alone: it is built on the meta device, which holds no numbers.

Activations are not guessed: a forward pass on the meta device runs every operation without computing it, and what each would save
for its gradient is counted.

Letters: P parameters, T tokens, L layers, d width of all heads together. Bytes unless a name says otherwise.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from gradprism.models import check_model_name, load_config
from gradprism.runtime.errors import ModelError, one_line
from gradprism.training.adapters import add_adapters
from gradprism.training.settings import LoraSettings

_COUNTING = "gradprism_counting"


@dataclass(frozen=True, slots=True)
class Footprint:
    """Sizes of a model; `element`, `trained_element` and `compute` are bytes of its numbers, of trained ones, of those computed."""

    parameters: int
    trained: int
    trained_tensors: int
    linear: float  # parameters that every token is multiplied with
    largest_layer: int  # parameters
    outside_layers: int  # parameters: embeddings and output head
    vocabulary: int
    width: int
    layers: int
    heads_width: int
    key_value: int  # numbers that a token leaves in the cache
    element: int
    trained_element: int
    compute: int
    saved: float  # bytes per token that a forward pass keeps for the backward one

    def forward_flops(self, tokens: float, squares: float = 0.0) -> float:
        """2·P·T for the products with weights and 2·L·d·ΣT² for causal attention; `squares` is ΣT² over sequences."""
        return 2 * self.linear * tokens + 2 * self.layers * self.heads_width * squares

    def activations(self, tokens: int, recompute: bool) -> float:
        """Bytes that a forward pass keeps for the backward one; recomputed layers keep their inputs, and one layer all."""
        inputs = self.layers * self.width * self.compute
        return tokens * (self.saved / self.layers + inputs if recompute else self.saved)


def footprint(name: str, dtype: str, settings: LoraSettings, *, bf16: bool, sharded: bool = False) -> Footprint:
    """The footprint of a model folder or hub id; no weight is read. Raises `ModelError` or `MissingFileError`.

    Under autocast (`bf16`, not sharded) a model with float32 weights passes float32 from layer to layer: counted as if it did within
    layers too, which is an upper bound.
    """
    check_model_name(name)
    found = load_config(name)
    kind = (found.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)
    compute = torch.bfloat16 if bf16 and (sharded or kind.itemsize == 2) else kind
    text = found.get_text_config()
    experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
    traced = torch.bfloat16 if experts else compute  # the only type for which stacked experts run on the meta device
    model = _on_meta(name, found, traced)
    spoken = [*model.get_decoder().modules(), model.get_output_embeddings()]
    matrices = {id(p): p for m in spoken if not isinstance(m, nn.Embedding) for p in m.parameters(recurse=False) if p.ndim >= 2}
    active = text.num_experts_per_tok / experts if experts else 1.0  # of stacked experts' weights, the part that a token meets
    parameters, heads = model.num_parameters(), text.num_attention_heads
    layers = [module for module in model.get_decoder().modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(f"{type(model).__name__}: has no layers whose memory could be estimated")
    in_layers = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    saved = _saved(model) * compute.itemsize / traced.itemsize
    with torch.device("meta"):
        trained = [p for p in add_adapters(model, settings).parameters() if p.requires_grad]
    return Footprint(
        parameters=parameters,
        trained=sum(p.numel() for p in trained),
        trained_tensors=len(trained),
        linear=sum(p.numel() * (active if p.ndim == 3 else 1) for p in matrices.values()),
        largest_layer=max(in_layers),
        outside_layers=parameters - sum(in_layers),
        vocabulary=model.get_input_embeddings().weight.shape[0],
        width=text.hidden_size,
        layers=len(layers),
        heads_width=heads * size,
        key_value=2 * len(layers) * (getattr(text, "num_key_value_heads", None) or heads) * size,
        element=kind.itemsize,
        trained_element=kind.itemsize if settings.lora_rank is None else trained[0].element_size(),  # peft makes adapters float32
        compute=compute.itemsize,
        saved=saved,
    )


def _on_meta(name: str, config: Any, dtype: torch.dtype) -> Any:
    AttentionInterface.register(_COUNTING, _attention)
    AttentionMaskInterface.register(_COUNTING, lambda *args, **kwargs: None)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=_COUNTING)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"model {name!r}: cannot be built from its configuration: {one_line(error)}") from None


def _saved(model: Any, tokens: int = 256) -> float:
    """Bytes per token that a forward pass of the decoder saves for its backward pass."""
    storages: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not (isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)):
            storages.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.train().base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{type(model).__name__}: its forward pass cannot be traced without weights: {one_line(error, 200)}"
        ) from None
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values()) / tokens


class _Attention(torch.autograd.Function):
    """Saves what flash and memory-efficient attention save: inputs, output, and a number per head and token."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    return _Attention.apply(query, key, value).transpose(1, 2).contiguous(), None  # pyright: ignore[reportOptionalMemberAccess]
