"""A small random model of every family that the probe knows by name, and an autograd reference for its norms."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from gradprism.probing.units import KINDS
from gradprism.trajectories.rendering import RenderedTrajectory

GPT2_KINDS = tuple(kind for kind in KINDS if kind != "gate")
EXPERTS = 4


# Configuration, model, and what the configuration says beyond the sizes.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": 16}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 16}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}),
    "gemma3_with_vision": ("Gemma3Config", "Gemma3ForConditionalGeneration", {"head_dim": 8, "sliding_window": 16}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {}),
    "glm": ("GlmConfig", "GlmForCausalLM", {"head_dim": 8, "attention_bias": True}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", {}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {"head_dim": 8, "num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [1]},
    ),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": EXPERTS, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    ),
    "gpt_oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {"num_local_experts": EXPERTS, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 16},
    ),
}
MOE_FAMILIES = ("qwen3_moe", "mixtral", "qwen2_moe", "gpt_oss")


def _config(name: str, vocab_size: int, hidden: int, layers: int) -> dict[str, Any]:
    special = {"bos_token_id": None, "eos_token_id": 1}
    if name == "gpt2":
        return {"vocab_size": vocab_size, "n_embd": hidden, "n_layer": layers, "n_head": 4, "n_positions": 1024, **special}
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": hidden * 2 + hidden // 2,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        **special,
        **FAMILIES[name][2],
    }
    if name != "gemma3_with_vision":
        return sizes
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    return {"text_config": sizes, "vision_config": {**vision, "patch_size": 14}, "mm_tokens_per_image": 4}


def family_model(
    name: str, vocab_size: int, *, hidden: int = 32, layers: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Any:
    """A random model with every parameter drawn from a normal distribution: nothing is zero or the same in every row.

    Weights are float32 numbers whatever the dtype. Experts run as transformers' plain loop, the only way that takes float64.
    """
    config, causal_model, _ = FAMILIES[name]
    model = getattr(transformers, causal_model)(getattr(transformers, config)(**_config(name, vocab_size, hidden, layers))).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # Matrices keep the size of their inputs; vectors (norms, biases) stay near what they were.
            if parameter.ndim > 1:
                parameter.copy_(noise * (0.5 if parameter.shape[0] == vocab_size else parameter.shape[-1] ** -0.5))
            else:
                parameter.add_(0.1 * noise)
    if name in MOE_FAMILIES:
        model.set_experts_implementation("eager")
    return model.to(dtype)


def unit_gradients(model: Any, trajectory: RenderedTrajectory, parameters: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    """Loss of one whole, unpadded trajectory and its gradients by the parameters, straight from the definition."""
    flags = {p: p.requires_grad for p in model.parameters()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    ids = torch.from_numpy(trajectory.input_ids.astype(np.int64))
    logits = model(input_ids=ids[None], use_cache=False).logits[0]
    losses = [-logits[t - 1].log_softmax(-1)[ids[t]] for t in range(1, len(ids)) if trajectory.response_mask[t]]
    loss = torch.stack(losses).mean()
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    for parameter, flag in flags.items():
        parameter.requires_grad_(flag)
    return loss.item(), dict(zip(parameters, gradients, strict=True))


def reference_matrices(family: str, model: Any) -> dict[str, tuple[str, Callable[[Tensor], Tensor]]]:
    """For each unit's name: its parameter's name in the bare model, and how to cut its part out of that parameter or its gradient.

    Written family by family from the modelling code, on purpose without `find_units`.
    """
    if family == "gpt2":
        return _gpt2_matrices(model)
    prefix = "model.language_model.layers" if family == "gemma3_with_vision" else "model.layers"
    matrices: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {}
    stack: Any = model.get_submodule(prefix)
    for i, layer in enumerate(stack):
        unit, path = f"layers.{i}.", f"{prefix}.{i}."
        if family == "phi3":
            q = model.config.hidden_size
            for k, kind in enumerate("qkv"):
                matrices[f"{unit}{kind}_proj"] = (
                    f"{path}self_attn.qkv_proj.weight",
                    lambda x, k=k, q=q: x.split([q, q // 2, q // 2])[k],
                )
        else:
            for kind in "qkv":
                matrices[f"{unit}{kind}_proj"] = (f"{path}self_attn.{kind}_proj.weight", lambda x: x)
        matrices[f"{unit}o_proj"] = (f"{path}self_attn.o_proj.weight", lambda x: x)
        if family in MOE_FAMILIES and hasattr(layer.mlp, "experts"):
            matrices |= _expert_matrices(family, unit, f"{path}mlp.experts")
            if family == "qwen2_moe":
                for kind in ("gate", "up", "down"):
                    name = f"shared_expert.{kind}_proj"
                    matrices[unit + name] = (f"{path}mlp.{name}.weight", lambda x: x)
        elif family in ("phi3", "glm"):
            for k, kind in enumerate(("gate", "up")):
                matrices[f"{unit}{kind}_proj"] = (f"{path}mlp.gate_up_proj.weight", lambda x, k=k: x.chunk(2)[k])
            matrices[f"{unit}down_proj"] = (f"{path}mlp.down_proj.weight", lambda x: x)
        else:
            for kind in ("gate", "up", "down"):
                matrices[f"{unit}{kind}_proj"] = (f"{path}mlp.{kind}_proj.weight", lambda x: x)
    return matrices


def _gpt2_matrices(model: Any) -> dict[str, tuple[str, Callable[[Tensor], Tensor]]]:
    matrices: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {}
    for i in range(len(model.transformer.h)):
        unit, path = f"layers.{i}.", f"transformer.h.{i}."
        for k, kind in enumerate("qkv"):
            matrices[f"{unit}{kind}_proj"] = (f"{path}attn.c_attn.weight", lambda x, k=k: x.chunk(3, dim=1)[k])
        matrices[f"{unit}o_proj"] = (f"{path}attn.c_proj.weight", lambda x: x)
        matrices[f"{unit}up_proj"] = (f"{path}mlp.c_fc.weight", lambda x: x)
        matrices[f"{unit}down_proj"] = (f"{path}mlp.c_proj.weight", lambda x: x)
    return matrices


def _expert_matrices(family: str, unit: str, path: str) -> dict[str, tuple[str, Callable[[Tensor], Tensor]]]:
    if family == "gpt_oss":  # stored [E, H, 2I], with gate and up in turn
        gate, up = (lambda x: x[:, :, 0::2]), (lambda x: x[:, :, 1::2])
    else:  # [E, 2I, H]
        gate, up = (lambda x: x.chunk(2, dim=1)[0]), (lambda x: x.chunk(2, dim=1)[1])
    return {
        f"{unit}gate_proj": (f"{path}.gate_up_proj", gate),
        f"{unit}up_proj": (f"{path}.gate_up_proj", up),
        f"{unit}down_proj": (f"{path}.down_proj", lambda x: x),
    }


def reference_names(family: str, model: Any, experts: str = "joined") -> list[str]:
    """Names of the units in the order that the probe promises."""
    matrices = reference_matrices(family, model)
    names: list[str] = []
    for i in range(model.config.get_text_config().num_hidden_layers):
        own = [f"layers.{i}.{kind}_proj" for kind in KINDS]
        shared = [f"layers.{i}.shared_expert.{kind}_proj" for kind in ("gate", "up", "down")]
        separate = []
        if experts == "separate" and matrices[own[-1]][0].endswith("experts.down_proj"):
            own = own[:4]
            separate = [f"layers.{i}.experts.{e}.{kind}_proj" for e in range(EXPERTS) for kind in ("gate", "up", "down")]
        names += [name for name in (*own, *shared) if name in matrices] + separate
    return names


def reference(
    family: str, model: Any, trajectory: RenderedTrajectory, experts: str = "joined", bare: Any = None
) -> tuple[float, NDArray[np.float64]]:
    """Loss and norms `[N]` of one trajectory by autograd on the weights themselves; `bare` is the model inside PEFT's wrapper."""
    loss, gradients = reference_gradients(family, model, trajectory, experts, bare)
    return loss, np.array([gradient.norm().item() for gradient in gradients.values()])


def reference_gradients(
    family: str, model: Any, trajectory: RenderedTrajectory, experts: str = "joined", bare: Any = None
) -> tuple[float, dict[str, Tensor]]:
    """Loss of one trajectory, and each unit's gradient in float64: output × input features, of joined experts a stack of them."""
    bare = model if bare is None else bare
    matrices = reference_matrices(family, bare)
    parameters = {name.replace(".base_layer", ""): parameter for name, parameter in bare.named_parameters()}
    loss, gradients = unit_gradients(model, trajectory, {name: parameters[name] for name, _ in matrices.values()})

    def gradient(name: str) -> Tensor:
        layer, _, rest = name.partition(".experts.")
        expert, _, kind = rest.partition(".")
        parameter, cut = matrices[f"{layer}.{kind}" if expert else name]
        found = cut(gradients[parameter])[int(expert)] if expert else cut(gradients[parameter])
        is_transposed = family == "gpt2" or (family == "gpt_oss" and ".experts." in parameter)
        return (found.mT if is_transposed else found).double()

    return loss, {name: gradient(name) for name in reference_names(family, bare, experts)}


def reference_weight_norms(family: str, model: Any) -> list[float]:
    """Frobenius norm of each (joined) unit's weight."""
    matrices, parameters = reference_matrices(family, model), dict(model.named_parameters())
    return [
        float(np.sqrt((cut(parameters[parameter].detach()).double().numpy() ** 2).sum()))
        for parameter, cut in (matrices[name] for name in reference_names(family, model))
    ]


def random_trajectory(rng: np.random.Generator, vocab_size: int, length: int) -> RenderedTrajectory:
    """Tokens of a random part of the vocabulary, with learnt turns of random lengths, of which the last ends the trajectory."""
    topic = rng.choice(vocab_size, int(rng.integers(2, vocab_size)), replace=False)
    mask = np.zeros(length, dtype=bool)
    start = int(rng.integers(1, 6))
    while start < length:
        stop = start + int(rng.integers(1, 12))
        mask[start:stop] = True
        start = stop + int(rng.integers(2, 20))
    mask[-1] = True
    return RenderedTrajectory(f"random-{length}", rng.choice(topic, length).astype(np.int32), mask, 0, np.zeros((0, 2), np.int32))
