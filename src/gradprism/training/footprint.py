"""A model's parameters, memory and arithmetic from its configuration alone: it is built on the meta device, which holds no numbers.

Activations are not guessed: a forward pass on the meta device runs every operation without computing it, and what each would save
for its gradient is counted. Attention is taken to save its inputs, its output and one number a row, as flash and memory-efficient
attention do; log-probabilities come from TRL's fused output head, which never holds all logits.

Letters: P parameters, T tokens of a pass, L layers, d width of all heads together, N devices. Bytes unless a name says otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradprism.models import check_model_name
from gradprism.models import load_config as load_model_config
from gradprism.runtime.errors import ModelError
from gradprism.training.adapters import peft_config
from gradprism.training.settings import LoraSettings

# Tokens and vocabulary of one tile of TRL's fused output head (trl/kernels/chunked_logprob.py).
_TILE = (4096, 32768)
_COUNTING = "gradprism_counting"


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model of a configuration is made of; `element` and `trained_element` are the sizes of its numbers, `compute` of those
    in arithmetic."""

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
    activations_inside: float  # of a token, in all layers
    activations_outside: float

    def forward_flops(self, tokens: float, squares: float) -> float:
        """2·P·T for the products with weights and 2·L·d·ΣT² for causal attention; `squares` is the sum over sequences."""
        return 2 * self.linear * tokens + 2 * self.layers * self.heads_width * squares

    def train_factor(self, lora: bool, recompute: bool) -> int:
        """Forward passes' worth of one training pass: 1 forward, 1 for gradients of inputs, 1 of weights, 1 to compute it again."""
        return 3 - lora + recompute

    def activations(self, tokens: int, recompute: bool) -> float:
        """Bytes that a forward pass keeps for the backward one; recomputed layers keep their inputs, and one layer all."""
        inside = self.activations_inside * tokens
        if recompute:
            inside = inside / self.layers + self.layers * tokens * self.width * self.compute
        return inside + self.activations_outside * tokens

    def head(self, tokens: int, trained: bool) -> float:
        """The fused output head: hidden states and their gradient in float32, the weight's gradient in float32, and one tile."""
        tile = min(tokens, _TILE[0]) * min(self.vocabulary, _TILE[1]) * self.compute
        return tokens * self.width * (self.compute + 4) + trained * self.vocabulary * self.width * 4 + tile


def footprint(name: str, dtype: str, settings: LoraSettings, *, bf16: bool, sharded: bool = False, tokens: int = 256) -> Footprint:
    """The footprint of a model folder or hub id; no weight is read. Raises `ModelError` or `MissingFileError`.

    Under autocast (`bf16`, not sharded) a model with float32 weights passes float32 from layer to layer: counted as if it did within
    layers too, which is an upper bound.
    """
    check_model_name(name)
    config = load_model_config(name)
    kind = (config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)
    compute = torch.bfloat16 if bf16 and (sharded or kind.itemsize == 2) else kind
    text = config.get_text_config()
    experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
    traced = torch.bfloat16 if experts else compute  # the only type for which stacked experts run on the meta device
    model = _on_meta(name, config, traced)
    layers, embedding = _layers(model), model.get_input_embeddings()
    spoken = [*model.get_decoder().modules(), model.get_output_embeddings()]
    matrices = {id(p): p for m in spoken if not isinstance(m, nn.Embedding) for p in m.parameters(recurse=False) if p.ndim >= 2}
    active = text.num_experts_per_tok / experts if experts else 1.0  # of stacked experts' weights, the part that a token meets
    linear = sum(p.numel() * (active if p.ndim == 3 else 1) for p in matrices.values())
    inside, outside = (n * compute.itemsize / traced.itemsize for n in _saved(model, layers, tokens))
    parameters = model.num_parameters()
    in_layers = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    adapters = peft_config(settings, model)
    if adapters is not None:
        from peft import get_peft_model

        with torch.device("meta"):
            model = get_peft_model(model, adapters)
    trained = [p for p in model.parameters() if p.requires_grad]
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Footprint(
        parameters=parameters,
        trained=sum(p.numel() for p in trained),
        trained_tensors=len(trained),
        trained_element=kind.itemsize if adapters is None else trained[0].element_size(),  # peft makes adapters float32
        linear=linear,
        largest_layer=max(in_layers),
        outside_layers=parameters - sum(in_layers),
        vocabulary=embedding.weight.shape[0],
        width=text.hidden_size,
        layers=len(layers),
        heads_width=heads * size,
        key_value=2 * len(layers) * (getattr(text, "num_key_value_heads", None) or heads) * size,
        element=kind.itemsize,
        compute=compute.itemsize,
        activations_inside=inside,
        activations_outside=outside,
    )


def training_memory(
    model: Footprint, *, devices: int, sharded: bool, bf16: bool, lora: bool, reference: bool
) -> dict[str, tuple[float, str]]:
    """Bytes a device that training holds all the time, each with its formula.

    Sharded and in bfloat16, accelerate keeps trained weights in float32. AdamW has two numbers a weight, and one a tensor.
    """
    shards = devices if sharded else 1
    trained = 4 if sharded and bf16 else model.trained_element
    frozen = model.parameters - (0 if lora else model.trained)
    over = f" / {shards}" if shards > 1 else ""
    figures = {
        "weights": (
            ((model.trained * trained) + frozen * model.element) / shards,
            f"{model.trained:,} x {trained} + {frozen:,} x {model.element} B{over}",
        ),
        "gradients": (model.trained * trained / shards, f"{model.trained:,} x {trained} B{over}"),
        "optimizer": (
            2 * model.trained * trained / shards + 4 * model.trained_tensors,
            f"2 x {model.trained:,} x {trained} B{over} + 4 B a tensor",
        ),
    }
    if sharded:
        gathered = 2 * model.largest_layer + model.outside_layers
        figures["gathered weights"] = (gathered * model.compute, f"two layers, embeddings and head, x {model.compute} B")
    elif bf16 and model.element > 2:
        figures["bfloat16 copies"] = (2 * model.linear, "autocast keeps one of every matrix, x 2 B")
    if reference:
        figures["reference model"] = (model.parameters * model.element / shards, f"{model.parameters:,} x {model.element} B{over}")
        if sharded:
            figures["gathered reference"] = (
                model.parameters * model.compute,
                f"TRL gathers it whole for its pass, x {model.compute} B",
            )
    return figures


def _on_meta(name: str, config: Any, dtype: torch.dtype) -> Any:
    from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

    AttentionInterface.register(_COUNTING, _attention)
    AttentionMaskInterface.register(_COUNTING, lambda *args, **kwargs: None)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=_COUNTING)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"model {name!r}: cannot be built from its configuration: {' '.join(str(error).split())[:300]}") from None


def _layers(model: Any) -> Sequence[nn.Module]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.get_decoder().modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(f"{type(model).__name__}: has no layers whose memory could be estimated")
    return layers


def _saved(model: Any, layers: Sequence[nn.Module], tokens: int) -> tuple[float, float]:
    """Bytes a token that a forward pass of the decoder saves for its backward pass, inside and outside of layers."""
    storages: dict[int, tuple[bool, Tensor]] = {}
    depth = 0

    def step(by: int) -> Any:
        def count(*_: Any) -> None:
            nonlocal depth
            depth += by

        return count

    def pack(tensor: Tensor) -> Tensor:
        weight = isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
        if not weight:
            storages.setdefault(tensor.untyped_storage()._cdata, (depth > 0, tensor))
        return tensor

    model.train()
    hooks = [layer.register_forward_pre_hook(step(1)) for layer in layers]
    hooks += [layer.register_forward_hook(step(-1)) for layer in layers]
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{type(model).__name__}: its forward pass cannot be traced without weights: {' '.join(str(error).split())[:200]}"
        ) from None
    finally:
        for hook in hooks:
            hook.remove()
    inside = sum(tensor.untyped_storage().nbytes() for within, tensor in storages.values() if within)
    outside = sum(tensor.untyped_storage().nbytes() for within, tensor in storages.values() if not within)
    return inside / tokens, outside / tokens


class _Attention(torch.autograd.Function):
    """Saves what flash attention saves."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise AssertionError("only the forward pass is traced")


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    return _Attention.apply(query, key, value).transpose(1, 2).contiguous(), None  # pyright: ignore[reportOptionalMemberAccess]
