"""LoRA adapters: merging them by hand gives what peft gives."""

import pytest
import torch

from gradprism.training.adapters import add_adapters, merged_state
from gradprism.training.sft_config import SftConfig
from helpers.tiny import tiny_llama


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merging_equals_pefts(family):
    from transformers import GPT2Config, GPT2LMHeadModel

    def build():
        torch.manual_seed(0)
        if family == "llama":
            return tiny_llama(64)
        return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0))

    model = build()
    model = add_adapters(model, SftConfig(lora_rank=3, lora_alpha=5.0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    merged = merged_state(model, model.state_dict())
    expected = model.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    assert any(not torch.equal(value, build().state_dict()[name]) for name, value in expected.items())
    for name, value in expected.items():
        torch.testing.assert_close(merged[name], value)
