import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gradprism.checkpoints import check_trainable, load_config, tokenizer_source
from gradprism.models import check_context_length, keep_unpacked, load_model, resolve_device
from gradprism.runtime.errors import ConfigError, MissingDependencyError, ModelError
from helpers.tiny import tiny_qwen3, tiny_tokenizer

IDS = torch.arange(6, 26)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_qwen3(len(tiny_tokenizer()), hidden=128).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(base, tmp_path):
    """A LoRA adapter's folder and the logits of the adapted model."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, lora_dropout=0.5)
    model = peft.get_peft_model(load_model(str(base)), config).eval()
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        return tmp_path / "adapter", model(input_ids=IDS).logits


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


def test_an_adapter_is_loaded_into_its_base_model(base, adapter):
    folder, expected = adapter
    loaded = load_model(str(folder))
    assert type(loaded).__name__ == "Qwen3ForCausalLM"
    torch.testing.assert_close(logits(loaded), expected)
    assert (logits(load_model(str(base))) - expected).abs().max() > 0.1
    double = load_model(str(folder), "float64")
    assert {parameter.dtype for parameter in double.parameters()} == {torch.float64}
    torch.testing.assert_close(logits(double), expected, rtol=1e-4, atol=1e-5)
    assert load_config(str(folder)).hidden_size == 128


def test_an_adapter_is_not_trained(base, adapter):
    check_trainable(str(base))
    with pytest.raises(ModelError, match="merge it into its base model"):
        check_trainable(str(adapter[0]))


def test_where_a_tokenizer_lies(base, adapter):
    folder, _ = adapter
    assert tokenizer_source(str(base)) == str(base)
    assert tokenizer_source(str(folder)) == str(base)
    (folder / "tokenizer_config.json").write_text("{}")
    assert tokenizer_source(str(folder)) == str(folder)
    assert tokenizer_source("no-such/model") == "no-such/model"


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("partial", "the file lacks 1 of its weights, among them .*lora_A"),
        ("torn", "cannot be loaded"),
        ("absent", "has no adapter_model.safetensors"),
        ("homeless", "its base model '/no/such/folder': no such folder"),
        ("nameless", "names no base_model_name_or_path"),
    ],
)
def test_a_broken_adapter_is_refused(adapter, harm, words):
    from safetensors.torch import load_file, save_file

    folder, _ = adapter
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if harm == "partial":
        tensors = load_file(weights)
        save_file({name: tensors[name] for name in sorted(tensors)[1:]}, weights, metadata={"format": "pt"})
    elif harm == "torn":
        weights.write_bytes(weights.read_bytes()[:100])
    elif harm == "absent":
        weights.unlink()
    else:
        path = "/no/such/folder" if harm == "homeless" else None
        config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": path}))
    with pytest.raises(ModelError, match=words):
        load_model(str(folder))


@pytest.mark.parametrize(("quantise", "bound"), [("8bit", 0.02), ("4bit", 0.2)])
@pytest.mark.parametrize("with_adapter", [False, True])
def test_quantised_weights_compute_nearly_the_same(base, adapter, quantise, bound, with_adapter):
    pytest.importorskip("bitsandbytes")
    folder, adapted = adapter
    expected = adapted if with_adapter else logits(load_model(str(base)))
    loaded = load_model(str(folder if with_adapter else base), quantise=quantise)
    assert torch.is_tensor(loaded.lm_head.weight) and loaded.lm_head.weight.dtype == torch.float32
    error = (logits(loaded) - expected).abs().max().item()
    assert 0 < error < bound * expected.abs().max().item()


def test_four_bits_where_they_would_be_garbled(tmp_path):
    pytest.importorskip("bitsandbytes")
    tiny_qwen3(len(tiny_tokenizer()), hidden=64).save_pretrained(tmp_path)  # its feed-forward layers are 160 wide
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.down_proj.*width 160"):
        load_model(str(tmp_path), quantise="4bit")
    assert load_model(str(tmp_path), quantise="8bit").config.intermediate_size == 160


def test_four_bit_weights_stay_unpacked(base):
    """Packed, they would take no part in a backward pass that follows an inference pass."""
    pytest.importorskip("bitsandbytes")
    model = load_model(str(base), quantise="4bit")
    logits(model)
    layer = model.model.layers[0].mlp.down_proj
    assert layer(torch.ones(1, 320, requires_grad=True)).requires_grad
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ModelError, match="load the model again"):
        keep_unpacked(model)


def test_quantising_without_its_package(base, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gradprism\[quantised\]'"):
        load_model(str(base), quantise="8bit")
    with pytest.raises(ModelError, match="choose 8bit or 4bit"):
        load_model(str(base), quantise="2bit")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ModelError, match="float64"):
        load_model(str(base), "float64", quantise="8bit")


def test_devices(base, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [resolve_device(name) for name in ("auto", "cpu", "auto-map")] == ["cpu"] * 3
    torch.testing.assert_close(logits(load_model(str(base), device="auto-map")), logits(load_model(str(base))))
    for name, words in {"cuda": "finds no CUDA", "cuda:1": "finds no CUDA", "cpu:1": "choose", "cuda:x": "choose"}.items():
        with pytest.raises(ModelError, match=words):
            resolve_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [resolve_device(name) for name in ("auto", "auto-map", "cuda:1")] == ["cuda", "cuda", "cuda:1"]
    with pytest.raises(ModelError, match="only 2 CUDA devices"):
        resolve_device("cuda:2")


def test_a_model_is_spread_by_transformers(base, monkeypatch):
    from transformers import AutoModelForCausalLM

    seen = {}

    def from_pretrained(name, **options):
        seen.update(options)
        raise OSError("stop here")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    for device, expected in {"auto-map": "auto", "auto": {"": "cuda"}, "cpu": {"": "cpu"}}.items():
        with pytest.raises(ModelError, match="stop here"):
            load_model(str(base), device=device)
        assert seen["device_map"] == expected


def test_a_model_that_does_not_fit_its_devices_is_refused(base, monkeypatch):
    from gradprism import models

    def offloaded(source, auto, options):
        model = tiny_qwen3(len(tiny_tokenizer()))
        model.model.layers[1].to("meta")
        return model

    monkeypatch.setattr(models, "_from_pretrained", offloaded)
    with pytest.raises(ModelError, match=r"does not fit the devices \(11 of its weights, among them model.layers.1"):
        load_model(str(base), device="auto-map")


def test_context_lengths(base):
    config = load_config(str(base))
    assert check_context_length(config, None) == 1024
    assert check_context_length(load_model(str(base)), 100) == 100
    with pytest.raises(ConfigError, match="takes 2 to 1024"):
        check_context_length(config, 1025)
    unlimited = SimpleNamespace(name_or_path="m", get_text_config=lambda: SimpleNamespace())
    assert check_context_length(unlimited, 5000) == 5000
    with pytest.raises(ConfigError, match="takes 2 or more"):
        check_context_length(unlimited, 1)
    with pytest.raises(ModelError, match="give --context-length"):
        check_context_length(unlimited, None)
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_config(str(base.parent))


def test_a_checkpoint_that_lacks_weights_or_is_torn_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_qwen3(len(tiny_tokenizer())).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {name: value for name, value in load_file(file).items() if "layers.1.mlp" not in name}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 3 of the model's weights, among them model\.layers\.1\.mlp"):
        load_model(str(tmp_path))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(tmp_path))
    with pytest.raises(ModelError, match="device 'abacus'"):
        load_model("models/alfworld-tiny", device="abacus")
