"""Tiny random models of seven families, and their norms by autograd, straight from the definition and without `find_units`."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from gradprism.trajectories.rendering import RenderedTrajectory

VOCABULARY = 96
_WIDTH, _LAYERS = 64, 2
# transformers' name of each family, and what its configuration says beyond the sizes.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "gemma3": ("Gemma3", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}),
    "mistral": ("Mistral", {"sliding_window": 16}),
    "phi3": ("Phi3", {}),
    "qwen3-moe": ("Qwen3Moe", {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
}
# A parameter, and how its gradient is cut into the parts that are measured.
Cut = tuple[str, Callable[[Tensor], Sequence[Tensor]]]


def build(family: str, device: str, dtype: torch.dtype, seed: int = 0) -> Any:
    """A model in evaluation mode, every weight drawn from a normal distribution in float32 on the CPU: alike on every device."""
    name, more = FAMILIES[family]
    config = getattr(transformers, f"{name}TextConfig" if family == "gemma3" else f"{name}Config")(
        vocab_size=VOCABULARY,
        hidden_size=_WIDTH,
        intermediate_size=160,
        num_hidden_layers=_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        **more,
    )
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * (0.5 if parameter.shape[0] == VOCABULARY else parameter.shape[-1] ** -0.5))
            else:
                parameter.add_(0.1 * noise)
    if "num_experts" in more and dtype == torch.float32:
        model.set_experts_implementation("eager")
    return model.to(device, dtype)


def matrices(family: str) -> list[Cut]:
    """The measured parameters in the order of the probe's units: q, k, v, o, gate, up and down of each layer."""
    whole: Callable[[Tensor], Sequence[Tensor]] = lambda gradient: [gradient]  # noqa: E731
    cuts: list[Cut] = []
    for layer in range(_LAYERS):
        path = f"model.layers.{layer}."
        if family == "phi3":
            cuts.append((f"{path}self_attn.qkv_proj.weight", lambda g: g.split([_WIDTH, _WIDTH // 2, _WIDTH // 2])))
        else:
            cuts += [(f"{path}self_attn.{kind}_proj.weight", whole) for kind in "qkv"]
        cuts.append((f"{path}self_attn.o_proj.weight", whole))
        if family == "qwen3-moe":  # [experts, gate and up, hidden]
            cuts += [(f"{path}mlp.experts.gate_up_proj", lambda g: g.chunk(2, dim=1)), (f"{path}mlp.experts.down_proj", whole)]
        elif family == "phi3":
            cuts += [(f"{path}mlp.gate_up_proj.weight", lambda g: g.chunk(2)), (f"{path}mlp.down_proj.weight", whole)]
        else:
            cuts += [(f"{path}mlp.{kind}_proj.weight", whole) for kind in ("gate", "up", "down")]
    return cuts


def by_autograd(
    family: str, model: Any, trajectories: Sequence[RenderedTrajectory]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Loss `[n]` and norms `[n, N]`, one whole trajectory at a time, with the head on every token."""
    cuts, named = matrices(family), dict(model.named_parameters())
    weights = [named[name] for name, _ in cuts]
    losses, rows = [], []
    for parameter in weights:
        parameter.requires_grad_(True)
    for trajectory in trajectories:
        loss = loss_by_definition(model, trajectory)
        parts = [
            part for (_, cut), gradient in zip(cuts, torch.autograd.grad(loss, weights), strict=True) for part in cut(gradient)
        ]
        losses.append(loss.item())
        rows.append([part.double().norm().item() for part in parts])
    return np.array(losses), np.array(rows)


def loss_by_definition(model: Any, trajectory: RenderedTrajectory) -> Tensor:
    """Mean cross-entropy over the response tokens, from the logits of the whole trajectory."""
    ids = torch.from_numpy(trajectory.input_ids.astype(np.int64)).to(model.device)
    targets = torch.from_numpy(np.flatnonzero(trajectory.response_mask[1:]) + 1).to(model.device)
    logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
    return -logits[targets - 1].log_softmax(-1).gather(1, ids[targets, None]).mean()
