"""A tiny random model of every type that transformers builds from a configuration, and what the probe makes of it."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from gradprism.checkpoints import auto_class
from gradprism.probing.norms import BY_PRODUCTS
from gradprism.probing.prober import Prober
from gradprism.probing.units import ExpertsTap, LinearTap, Units, find_units, is_transposed, unit_patterns
from gradprism.probing.weights import gate_and_up
from gradprism.runtime.errors import GradprismError
from gradprism.trajectories.rendering import RenderedTrajectory
from helpers.families import random_trajectory

VOCABULARY = 60
# Not read: hundreds of megabytes even when small, since parts of them have sizes that no setting names.
TOO_LARGE = frozenset({"blt", "kosmos-2", "kosmos-2.5", "florence2", "janus"})
TYPES = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES} - TOO_LARGE)

# What sizes are called, over all configurations.
_NAMES: dict[int, str] = {
    60: "vocab_size vocab_size_per_layer_input",
    32: "hidden_size d_model n_embd embedding_size emb_dim word_embed_proj_dim dim out_hidden_size projection_dim vision_output_dim",
    48: "intermediate_size ffn_dim n_inner d_inner encoder_ffn_dim decoder_ffn_dim ffn_hidden_size d_ff dense_intermediate_size",
    128: "index_topk max_position_embeddings n_positions n_ctx max_seq_len",
    40: "shared_expert_intermediate_size",
    28: "image_size",
    24: "moe_intermediate_size q_lora_rank",
    16: "sliding_window attention_window attention_chunk_size index_head_dim qk_head_dim kv_lora_rank mamba_d_head mamba_head_dim "
    "num_position_embeddings",
    14: "patch_size",
    8: "head_dim global_head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim rotary_dim hidden_size_per_layer_input "
    "query_pre_attn_scalar mamba_d_state state_size linear_key_head_dim linear_value_head_dim ",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_experts num_local_experts "
    "n_routed_experts moe_num_experts laurel_rank mamba_d_conv mamba_dt_rank mamba_n_heads mamba_num_heads time_step_rank "
    "linear_num_value_heads mm_tokens_per_image",
    3: "num_channels",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers num_experts_per_tok moe_topk moe_top_k top_k_experts "
    "num_key_value_heads num_kv_heads mamba_expand linear_num_key_heads index_n_heads",
    1: "n_group topk_group n_groups n_shared_experts encoder_layers depth first_k_dense_replace spatial_merge_size "
    "bos_token_id eos_token_id",
    0: "pad_token_id num_kv_shared_layers",
}
_SIZES: dict[str, Any] = {name: size for size, names in _NAMES.items() for name in names.split()}
_SIZES |= {f"{kind}_token_{end}": 59 for kind in ("image", "video", "audio") for end in ("id", "index")}
_SIZES |= {"fullatt_block_indexes": [0], "deepstack_visual_indexes": [0]}
# What language models of single types need beyond that.
_ALL_HEADS = (
    "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 dots3_note_text glm4_moe_lite glm_moe_dsa kimi_k25 longcat_flash minicpm3 youtu"
)
_MROPE = "cosmos3_edge glm46v glm4v glm_ocr glmga paddleocr_vl qwen2_5_omni_thinker qwen2_5_vl qwen2_vl"
_BIDIRECTIONAL = (
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta roberta-prelayernorm "
    "roc_bert roformer xlm-roberta xlm-roberta-xl xmod"
)
_OWN: dict[str, dict[str, Any]] = {
    **{name: {"num_key_value_heads": 4} for name in _ALL_HEADS.split()},
    **{
        name: {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
        for name in _MROPE.split()
    },
    **{name: {"is_decoder": True} for name in _BIDIRECTIONAL.split()},
    "deepseek_v2": {"num_key_value_heads": 4, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "ernie4_5_moe": {"moe_k": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "kimi_linear": {"num_experts_per_token": 2, "head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"num_key_value_heads": 4, "zero_expert_num": 2, "expert_ffn_hidden_size": 24},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "step3p7": {"sliding_window": 16},
    "zamba2": {"layer_types": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(model_type: str) -> Any:
    """A configuration of the type with small sizes in all of its parts; raises whatever the library does where they do not fit."""
    return _small(CONFIG_MAPPING[model_type], _OWN.get(model_type, {}))


def _small(kind: Any, own: dict[str, Any]) -> Any:
    default = vars(kind())
    known = {*default, *(getattr(kind, "attribute_map", None) or {})}
    values = {}
    for key, value in _SIZES.items():
        old = default.get(key)
        optional = key in ("pad_token_id", "head_dim", "num_key_value_heads")
        if key in known and (old is not None or optional) and isinstance(value, list) == isinstance(old, list | tuple):
            values[key] = value
    for key in getattr(kind, "sub_configs", None) or {}:
        if isinstance(part := default.get(key), transformers.PretrainedConfig):
            values[key] = _small(type(part), own).to_dict()
    if "vocab_size" in known:  # a language model, not a tower beside one
        values |= {key: value for key, value in own.items() if key in known}
    return kind(**values)


def tiny_model(model_type: str, dtype: torch.dtype = torch.float64) -> Any:
    """A random model of the type in evaluation mode; every number drawn anew, so that no matrix is zero."""
    config = tiny_config(model_type)
    torch.manual_seed(0)
    model = auto_class(config).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(noise * parameter.shape[-1] ** -0.5) if parameter.ndim > 1 else parameter.add_(0.1 * noise)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model.to(dtype)


@dataclass(frozen=True)
class Verdict:
    """`way`: recognised, units (where `--units` has to name them), refused, or not built; `words` say why, or which units."""

    way: str
    words: str


def judge(model_type: str) -> Verdict:
    """Builds a tiny model and probes it, by its own units or else by patterns; norms are held to autograd's.

    Raises `AssertionError` where a norm is wrong: then the probe says something false, which is worse than any refusal.
    """
    verdict = _judge(model_type, torch.float64)
    # Some compute parts in float32 whatever they are told.
    return verdict if verdict.way != "refused" else _judge(model_type, torch.float32)


def _judge(model_type: str, dtype: torch.dtype) -> Verdict:
    try:
        model = tiny_model(model_type, dtype)
    except Exception as error:  # the library's own demands, which differ from type to type
        return Verdict("not built", " ".join(str(error).split())[:100])
    trajectories = [random_trajectory(np.random.default_rng(seed), VOCABULARY - 1, length) for seed, length in enumerate((21, 12))]
    patterns: list[str] | None = None
    while True:
        try:
            found = find_units(model, patterns)
            norms = Prober(model, found, costs=BY_PRODUCTS).probe(trajectories).norms
            break
        except GradprismError as error:
            words = str(error)
        if patterns is None and "patterns" in words:
            patterns = unit_patterns(model)
            continue
        # What takes no part, or runs on something else than tokens, is left out, as the message says.
        name = words.split(": ")[-1 if "took no part" in words else 0].split(" took no part")[0]
        wrong = re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
        if not patterns or wrong not in patterns:
            return Verdict("refused", words)
        patterns.remove(wrong)
    expected = np.stack([reference_norms(model, found, trajectory) for trajectory in trajectories])
    np.testing.assert_allclose(norms, expected, rtol=5e-4, atol=1e-6 * expected.max(), err_msg=model_type)
    if patterns is not None:
        return Verdict("units", " ".join(pattern.rpartition("*.")[2] for pattern in patterns))
    return Verdict("recognised", " ".join(dict.fromkeys(unit.name.split(".", 2)[-1].removesuffix("_proj") for unit in found.units)))


def table(verdicts: dict[str, Verdict]) -> str:
    """Markdown of what the probe makes of each type, as the documents have it."""
    lines = ["| units found by themselves | types of models |", "|---|---|"]
    groups: dict[str, list[str]] = {}
    for name, verdict in verdicts.items():
        if verdict.way == "recognised":
            groups.setdefault(verdict.words, []).append(name)
    lines += [f"| {words} | {', '.join(names)} |" for words, names in sorted(groups.items(), key=lambda item: -len(item[1]))]
    lines += ["", "| named by `--units` | modules of a layer |", "|---|---|"]
    lines += [f"| {name} | {verdict.words} |" for name, verdict in verdicts.items() if verdict.way == "units"]
    lines += ["", "| refused in one line | why |", "|---|---|"]
    lines += [f"| {name} | {_reason(verdict.words)} |" for name, verdict in verdicts.items() if verdict.way == "refused"]
    unbuilt = sorted([*TOO_LARGE, *(name for name, verdict in verdicts.items() if verdict.way == "not built")])
    return "\n".join([*lines, "", f"Not tried, since no small one could be built: {', '.join(unbuilt)}."])


def _reason(words: str) -> str:
    for part, reason in {
        "not causal": "not causal as it is loaded",
        "pixel": "needs images",
        "image_embeds": "needs images",
        "flattened_patches": "needs images",
        "Bbox": "needs boxes",
        "'state'": "needs a robot's state",
        "input_ids or inputs_embeds": "encoder and decoder",
        "runs more than once": "runs its layers more than once",
        "no pattern": "none of its layers gives a norm",
        "no embeddings": "no embeddings of tokens",
        "language unknown": "needs a language",
    }.items():
        if part in words:
            return reason
    return "its own code fails on the small configuration"


def reference_norms(model: Any, found: Units, trajectory: RenderedTrajectory) -> np.ndarray:
    """Norms `[N]` of one unpadded trajectory by autograd on the weights of the units' modules."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    weights = [weight for tap in found.taps for weight in _weights(tap)]
    for weight in weights:
        weight.requires_grad_(True)
    ids = torch.from_numpy(trajectory.input_ids.astype(np.int64))
    logits = model(input_ids=ids[None], use_cache=False).logits[0]
    targets = np.flatnonzero(trajectory.response_mask[1:]) + 1
    loss = torch.nn.functional.cross_entropy(logits[targets - 1], ids[targets])
    gradients = dict(zip(map(id, weights), torch.autograd.grad(loss, weights, allow_unused=True), strict=True))
    norms = np.full(len(found.units), np.nan)
    for tap in found.taps:
        if isinstance(tap, LinearTap):
            [weight] = _weights(tap)
            gradient: Any = gradients[id(weight)]
            transposed = isinstance(tap.module, transformers.pytorch_utils.Conv1D)
            for index, start, stop in tap.slices:
                norms[index] = (gradient.mT if transposed else gradient)[start:stop].double().norm().item()
        else:
            gate_up, down = (gradients[id(weight)] for weight in _weights(tap))
            gate, up = gate_and_up(tap.module, gate_up.mT if is_transposed(tap.module) else gate_up)
            for indices, gradient in zip((tap.gate, tap.up, tap.down), (gate, up, down), strict=True):
                norms[indices[0]] = gradient.double().norm().item()
    return norms


def _weights(tap: LinearTap | ExpertsTap) -> list[Tensor]:
    module: Any = tap.module
    return [module.weight] if isinstance(tap, LinearTap) else [module.gate_up_proj, module.down_proj]
