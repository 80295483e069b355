"""Small checkpoints in the forms that quantised models are published in, written by hand."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def write_gguf(model: Any, tokenizer: Any, file: Path) -> None:
    """A tiny Llama with a byte-level BPE tokenizer as a GGUF file: matrices in Q8_0 where their width is a multiple of 32."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = {token["content"] for token in definition["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([3 if token in special else 1 for token, _ in tokens])  # 3: control, 1: normal
    writer.add_token_merges([" ".join(pair) for pair in definition["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, value in model.state_dict().items():
        name: Any = names.get_name(key, try_suffixes=(".weight", ".bias"))
        array = value.float().numpy()
        if ".q_proj." in key or ".k_proj." in key:  # the two halves that rotate together stand side by side in a GGUF
            heads = config.num_attention_heads if ".q_proj." in key else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        if array.ndim == 2 and array.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_fp8(model: Any, folder: Path, block: int = 32) -> dict[str, Tensor]:
    """Saves `model` with its layers' matrices in FP8, a scale for each block, as DeepSeek publishes them; the weights' true values."""
    from safetensors.torch import save_file

    model.save_pretrained(folder)
    tensors, true = {}, {}
    for key, value in model.state_dict().items():
        if value.ndim == 2 and ".layers." in key:
            rows, columns = value.shape
            blocks = value.float().view(rows // block, block, columns // block, block)
            scale = blocks.abs().amax(dim=(1, 3)) / 448
            narrow = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            tensors[key] = narrow.reshape(rows, columns)
            tensors[f"{key}_scale_inv"] = scale
            true[key] = (narrow.float() * scale[:, None, :, None]).reshape(rows, columns)
        elif key != "lm_head.weight" or not model.config.tie_word_embeddings:
            tensors[key] = value.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    quantised = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block]}
    add_to_config(folder, quantization_config=quantised)
    return true


def add_to_config(folder: Path, **entries: Any) -> None:
    """Writes entries into a model folder's `config.json`."""
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **entries}))
