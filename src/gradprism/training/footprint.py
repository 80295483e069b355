"""A model's parameters, memory and arithmetic from its configuration alone: it is built on the meta device, which holds no numbers.

Letters: P parameters, T tokens, L layers, d width of all heads together. Bytes unless a name says otherwise.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from gradprism.checkpoints import auto_class, check_model_name, load_config
from gradprism.models import ModelSpec
from gradprism.runtime.errors import ModelError, one_line
from gradprism.training.adapters import add_adapters
from gradprism.training.settings import LoraSettings

_COUNTING = "gradprism_counting"
_TRACED = 256  # tokens


class Footprint:
    """Sizes of a model from its configuration alone; no weight is read. Raises `ModelError` or `MissingFileError`.

    Activations are not guessed: a forward pass on the meta device runs every operation without computing it, and what each would save
    for its gradient is counted. Under autocast (`bf16`, not sharded) a model with float32 weights passes float32 from layer to layer:
    counted as if it did within layers too, which is an upper bound.
    """

    def __init__(self, spec: ModelSpec, settings: LoraSettings, *, bf16: bool, sharded: bool = False) -> None:
        check_model_name(spec.path)
        found = load_config(spec.path)
        kind = (found.dtype or torch.float32) if spec.dtype == "auto" else getattr(torch, spec.dtype)
        compute = torch.bfloat16 if bf16 and (sharded or kind.itemsize == 2) else kind
        text = found.get_text_config()
        experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
        traced = torch.bfloat16 if experts else compute  # the only type for which stacked experts run on the meta device
        model, saved = _on_meta(spec.path, found, traced)
        layers = [module for module in model.get_decoder().modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise ModelError(f"{type(model).__name__}: has no layers whose memory could be estimated")
        in_layers = [sum(p.numel() for p in layer.parameters()) for layer in layers]
        spoken = [*model.get_decoder().modules(), model.get_output_embeddings()]
        matrices = {id(p): p for m in spoken if not isinstance(m, nn.Embedding) for p in m.parameters(recurse=False) if p.ndim >= 2}
        active = text.num_experts_per_tok / experts if experts else 1.0  # of stacked experts' weights, the part that a token meets
        heads = text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // heads

        self.parameters: int = model.num_parameters()
        # Parameters that every token is multiplied with, of the largest layer, of embeddings and output head.
        self.linear = sum(p.numel() * (active if p.ndim == 3 else 1) for p in matrices.values())
        self.largest_layer, self.outside_layers = max(in_layers), self.parameters - sum(in_layers)
        self.vocabulary: int = model.get_input_embeddings().weight.shape[0]
        self.width, self.layers, self.heads_width = text.hidden_size, len(layers), heads * size
        # Numbers that a token leaves in the cache; bytes of a number of the model, of what it computes, and per token of what it saves.
        self.key_value = 2 * len(layers) * (getattr(text, "num_key_value_heads", None) or heads) * size
        self.element, self.compute = kind.itemsize, compute.itemsize
        self.saved = saved * compute.itemsize / traced.itemsize
        with torch.device("meta"):
            trained = [p for p in add_adapters(model, settings).parameters() if p.requires_grad]
        self.trained, self.trained_tensors = sum(p.numel() for p in trained), len(trained)
        self.trained_element = self.element if settings.lora_rank is None else trained[0].element_size()  # peft's are float32

    def forward_flops(self, tokens: float, squares: float = 0.0) -> float:
        """2·P·T for the products with weights and 2·L·d·ΣT² for causal attention; `squares` is ΣT² over sequences."""
        return 2 * self.linear * tokens + 2 * self.layers * self.heads_width * squares

    def activations(self, tokens: int, recompute: bool) -> float:
        """Bytes that a forward pass keeps for the backward one; recomputed layers keep their inputs, and one layer all."""
        inputs = self.layers * self.width * self.compute
        return tokens * (self.saved / self.layers + inputs if recompute else self.saved)


def _on_meta(name: str, config: Any, dtype: torch.dtype) -> tuple[Any, float]:
    """The model on the meta device, and the bytes per token that a forward pass of its decoder saves for the backward pass."""
    storages: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not (isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)):
            storages.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    AttentionInterface.register(_COUNTING, _attention)
    AttentionMaskInterface.register(_COUNTING, lambda *args, **kwargs: None)
    try:
        with torch.device("meta"):
            model = auto_class(config).from_config(config, dtype=dtype, attn_implementation=_COUNTING)
        ids = torch.zeros(1, _TRACED, dtype=torch.long, device="meta")
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.train().base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"model {name!r}: cannot be built and traced without weights: {one_line(error, 200)}") from None
    return model, sum(tensor.untyped_storage().nbytes() for tensor in storages.values()) / _TRACED


class _Attention(torch.autograd.Function):
    """Saves what flash and memory-efficient attention save: inputs, output, and a number per head and token."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    return _Attention.apply(query, key, value).transpose(1, 2).contiguous(), None  # pyright: ignore[reportOptionalMemberAccess]
