"""Models by their names: GGUF files, quantised checkpoints, wrappers of several modalities, and what is refused in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from gradprism.checkpoints import auto_class, check_model_name, check_trainable, load_config, tokenizer_source
from gradprism.models import load_model
from gradprism.rollouts.player import model_and_tokenizer
from gradprism.runtime.errors import MissingDependencyError, ModelError
from gradprism.trajectories.rendering import load_tokenizer
from helpers.checkpoints import add_to_config, write_fp8, write_gguf
from helpers.cli import assert_refused
from helpers.tiny import chatml_tokenizer, tiny_llama, tiny_qwen3, tiny_tokenizer

IDS = torch.arange(6, 26)[None]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> Path:
    """A tiny model's GGUF file, in a folder with its original."""
    pytest.importorskip("gguf")
    folder, tokenizer = tmp_path_factory.mktemp("gguf"), chatml_tokenizer()
    model = tiny_llama(len(tokenizer))
    model.save_pretrained(folder / "dense")
    tokenizer.save_pretrained(folder / "dense")
    (folder / "one").mkdir()
    write_gguf(model, tokenizer, folder / "one" / "tiny.gguf")
    return folder / "one" / "tiny.gguf"


def test_a_gguf_file_is_a_model_with_its_tokenizer_and_template(gguf):
    dense = gguf.parent.parent / "dense"
    original = load_model(str(dense))
    for name in (str(gguf), str(gguf.parent)):
        model = load_model(name)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert not hasattr(model.config, "quantization_config")
        expected = logits(original)
        assert 0 < (logits(model) - expected).abs().max() < 0.02 * expected.abs().max()  # 8 bits a number
        assert load_config(name).hidden_size == 32
        tokenizer, own = load_tokenizer(tokenizer_source(name)), load_tokenizer(dense)
        text = "<|im_start|>go to cabinet 1<|im_end|>"
        assert tokenizer(text).input_ids == own(text).input_ids
        assert tokenizer.chat_template == own.chat_template
        assert tokenizer.eos_token == own.eos_token
    assert load_model(str(gguf), "bfloat16").dtype == torch.bfloat16


def test_a_gguf_file_is_probed(gguf, cli, tmp_path):
    data = tmp_path / "data.jsonl"
    turns = [{"role": "user", "content": "You see a cabinet 1."}, {"role": "assistant", "content": "go to cabinet 1"}]
    data.write_text(json.dumps({"id": "a", "messages": turns}) + "\n")
    code, out, err = cli("probe", "--model", gguf, "--data", data, "--out", tmp_path / "probe", "--json")
    assert code == 0, err
    assert json.loads(out)["units"] == 14


def test_gguf_files_that_are_no_one_model(gguf, tmp_path, monkeypatch):
    import importlib.util

    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelError, match=r"has 2 GGUF files; name one of them, as in .*a\.gguf"):
        check_model_name(str(tmp_path))
    part = tmp_path / "model-00001-of-00002.gguf"
    part.write_bytes(b"")
    with pytest.raises(ModelError, match="is a part of a model; join the parts with llama-gguf-split"):
        load_model(str(part))
    with pytest.raises(ModelError, match="cannot be"):
        load_model(str(tmp_path / "a.gguf"))
    with pytest.raises(ModelError, match="quantised already; leave out --quantise"):
        load_model(str(gguf), quantise="8bit")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gradprism\[quantised\]'"):
        check_model_name(str(gguf))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_fp8_weights_are_dequantised(dtype, tmp_path):
    true = write_fp8(tiny_qwen3(len(tiny_tokenizer()), hidden=64), tmp_path)
    model = load_model(str(tmp_path), dtype)
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    weights = model.state_dict()
    assert len(true) == 14
    for key, value in true.items():
        torch.testing.assert_close(weights[key], value.to(kind), rtol=0 if kind == torch.bfloat16 else 1e-6, atol=0)
    assert np.isfinite(logits(model).numpy()).all()
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("gptq", r"quantised by gptq.*convert it: pip install gptqmodel && python -c .*dequantize_model"),
        ("awq", r"quantised by awq.*convert it: pip install gptqmodel"),
        ("hqq", r"quantised by hqq.*give a checkpoint in bfloat16"),
        ("nonsense", r"quantised by nonsense.*give a checkpoint in bfloat16"),
    ],
)
def test_weights_that_cannot_be_dequantised_are_refused(method, words, tmp_path):
    tiny_qwen3(len(tiny_tokenizer())).save_pretrained(tmp_path)
    add_to_config(tmp_path, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(ModelError, match=words):
        load_model(str(tmp_path))


def test_a_folder_of_a_model_and_an_adapter_is_refused(tmp_path):
    tiny_qwen3(len(tiny_tokenizer())).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    for refuse in (check_model_name, check_trainable, load_model, load_config):
        with pytest.raises(ModelError, match=r"holds a whole model \(config.json\) and an adapter"):
            refuse(str(tmp_path))


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_with_more_embeddings_than_its_base(tied, tmp_path):
    peft = pytest.importorskip("peft")
    base = tiny_qwen3(100)
    base.config.tie_word_embeddings = tied
    if not tied:
        base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone().flip(0))
    base.save_pretrained(tmp_path / "base")
    model = load_model(str(tmp_path / "base"))
    model.resize_token_embeddings(104, mean_resizing=False)
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    with torch.no_grad():
        expected = adapted(input_ids=IDS).logits
    assert expected.shape[-1] == 104
    torch.testing.assert_close(logits(load_model(str(tmp_path / "adapter"))), expected)


def test_an_adapter_without_rows_of_the_output_head(tmp_path):
    from safetensors.torch import load_file, save_file

    peft = pytest.importorskip("peft")
    base = tiny_qwen3(100)
    base.config.tie_word_embeddings = False
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    base.save_pretrained(tmp_path / "base")
    model = load_model(str(tmp_path / "base"))
    model.resize_token_embeddings(104, mean_resizing=False)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if "lm_head" not in key}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="has 104 embeddings where its base has 100, but not as many rows of the output head"):
        load_model(str(tmp_path / "adapter"))


def test_a_configuration_of_parts_is_loaded_as_the_wrapper():
    from transformers import LlamaConfig, Mistral3Config, Qwen2_5_VLConfig, Qwen2_5_VLTextConfig

    assert auto_class(LlamaConfig()).__name__ == "AutoModelForCausalLM"
    for config in (Mistral3Config(), Qwen2_5_VLConfig()):
        assert auto_class(config).__name__ == "AutoModelForImageTextToText"
    assert auto_class(Qwen2_5_VLTextConfig()).__name__ == "AutoModelForCausalLM"  # which says what it does not know


@pytest.mark.parametrize(
    ("kind", "settings", "what"),
    [
        ("T5", {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2}, r"an encoder-decoder \(t5\)"),
        ("Bert", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}, r"an encoder \(bert\)"),
        ("ViT", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}, r"no language model \(vit\)"),
    ],
)
def test_a_model_that_is_not_causal_is_refused_by_name(kind, settings, what, tmp_path, cli):
    config = getattr(transformers, f"{kind}Config")(**settings)
    config.save_pretrained(tmp_path)
    for refuse in (load_config, load_model, check_trainable, model_and_tokenizer):
        with pytest.raises(ModelError, match=f"is {what}; give a causal language model"):
            refuse(str(tmp_path))
    if kind == "Bert":  # a decoder of that type is causal
        transformers.BertConfig(**settings, is_decoder=True).save_pretrained(tmp_path)
        assert load_config(str(tmp_path)).is_decoder


def test_every_command_refuses_a_training_that_has_not_finished(tmp_path, cli):
    model, data = tmp_path / "sft", tmp_path / "data.jsonl"
    (model / "checkpoints").mkdir(parents=True)
    (model / "manifest.json").write_text('{"command": "sft"}')
    turns = [{"role": "user", "content": "You see a cabinet 1."}, {"role": "assistant", "content": "go to cabinet 1"}]
    data.write_text(json.dumps({"id": "a", "messages": turns}) + "\n")
    out = ["--out", tmp_path / "out"]
    for command in (
        ["inspect", "--data", data],
        ["probe", "--data", data, *out],
        ["sft", "--data", data, *out],
        ["sft", "--data", data, *out, "--dry-run"],
        ["rl", "--tasks", data, *out],
        ["evaluate", *out],
        ["run", "configs/quickstart.toml", "--set", f"out={json.dumps(str(tmp_path / 'out'))}", "--set", f"model.path={model}"],
    ):
        named = command if command[0] == "run" else [*command, "--model", model]
        assert_refused(cli(*named), "is a training that has not finished; give its `gradprism sft` command again")
