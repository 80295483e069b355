"""What the probe makes of other architectures than those of `helpers.families`; norms against autograd in each."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gradprism.models import load_model
from gradprism.probing.norms import BY_PRODUCTS
from gradprism.probing.prober import Prober
from gradprism.probing.units import find_units
from gradprism.runtime.errors import DataError, ModelError
from helpers.every_model import TYPES, VOCABULARY, judge, table, tiny_model
from helpers.families import random_trajectory

DENSE = "q k v o gate up down"
SHARED = "shared_expert.gate shared_expert.up shared_expert.down"
UNITS = {
    "gemma3": DENSE,
    "mistral3": DENSE,
    "qwen2_vl": DENSE,
    "qwen2_5_vl": DENSE,
    "qwen3_vl": DENSE,
    "qwen3_vl_moe": DENSE,
    "internvl": DENSE,
    "gemma3n_text": DENSE,
    "llama4": f"{DENSE} {SHARED}",
    "llama4_text": f"{DENSE} {SHARED}",
    "deepseek_v2": f"q_a q_b kv_a kv_b o gate up down {SHARED}",
    "deepseek_v3": f"q_a q_b kv_a kv_b o gate up down {SHARED}",
    "minicpm3": "q_a q_b kv_a kv_b o gate up down",
    "opt": "q k v o up down",
    "phi": "q k v o up down",
    "gptj": "q k v o up down",
    "inkling_text": DENSE,  # convolutions behind its queries: no token may be skipped
}


@pytest.mark.parametrize("name", UNITS)
def test_units_and_norms(name):
    verdict = judge(name)  # which holds the norms to autograd's
    assert (verdict.way, verdict.words) == ("recognised", UNITS[name])


@pytest.mark.parametrize("name", ["roberta", "gpt_neox", "qwen3_5", "jamba"])
def test_norms_of_units_that_are_named(name):
    assert judge(name).way == "units"


@pytest.mark.parametrize("name", ["llama4", "deepseek_v3"])
def test_separate_experts_add_up_to_joined_ones(name):
    model = tiny_model(name)
    trajectory = random_trajectory(np.random.default_rng(0), VOCABULARY - 1, 30)
    joined, separate = (find_units(model, experts=experts) for experts in ("joined", "separate"))
    whole, parts = (Prober(model, found, costs=BY_PRODUCTS).probe([trajectory]).norms[0] for found in (joined, separate))
    assert len(parts) > len(whole)
    np.testing.assert_allclose((parts**2).sum(), (whole**2).sum(), rtol=1e-12)
    checkpointed = Prober(model, separate, costs=BY_PRODUCTS, checkpoint_activations=True).probe([trajectory]).norms[0]
    np.testing.assert_allclose(checkpointed, parts, rtol=1e-9)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "mistral3", "llama4"])
def test_a_wrapper_is_loaded_from_its_folder(name, tmp_path):
    model = tiny_model(name, torch.float32)
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert type(loaded) is type(model)
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


def test_tokens_of_images_are_refused():
    model = tiny_model("qwen2_5_vl")
    trajectory = random_trajectory(np.random.default_rng(0), VOCABULARY - 1, 30)
    trajectory.input_ids[3] = model.config.image_token_id
    with pytest.raises(DataError, match="token 59 stands for an image, a video or a sound; the probe reads text alone"):
        Prober(model, costs=BY_PRODUCTS).probe([trajectory])


def test_a_model_that_sees_later_tokens_is_refused():
    model = tiny_model("paligemma")
    trajectory = random_trajectory(np.random.default_rng(0), VOCABULARY - 1, 30)
    with pytest.raises(ModelError, match="PaliGemmaForConditionalGeneration: is not causal"):
        Prober(model, costs=BY_PRODUCTS).probe([trajectory])


@pytest.mark.slow
@pytest.mark.rare
def test_the_tables_of_the_documents_are_what_is_found():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    assert table({name: judge(name) for name in TYPES}) in page
