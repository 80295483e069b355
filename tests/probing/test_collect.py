"""How the probe saves work: which rows a layer sees, what is made again instead of kept, and how the forms of a norm are chosen."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from gradprism.probing import costs as costs_module
from gradprism.probing.costs import measured_costs
from gradprism.probing.norms import BY_PRODUCTS, Costs
from gradprism.probing.prober import Prober
from gradprism.probing.recompute import remake
from gradprism.probing.units import find_units
from gradprism.runtime.errors import ModelError
from gradprism.trajectories.rendering import Renderer
from helpers.tiny import sample_trajectories, tiny_llama, tiny_qwen3, tiny_tokenizer

MODELS = {"qwen3": tiny_qwen3, "llama": tiny_llama}


@pytest.fixture(scope="module")
def rendered():
    renderer = Renderer(tiny_tokenizer(), 1024)
    return [renderer.render(trajectory) for trajectory in sample_trajectories(6)]


def build(name, dtype=torch.float64, **sizes):
    return MODELS[name](len(tiny_tokenizer()), **sizes).to(dtype)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_checkpointed_layers_and_left_out_rows_change_nothing(monkeypatch, name, layers, rendered):
    model = build(name, layers=layers)
    fewer = Prober(model).probe(rendered)
    again = Prober(model, checkpoint_activations=True).probe(rendered)
    monkeypatch.setattr("gradprism.probing.prober._modules_of_target_rows", lambda model, found: [])
    whole = Prober(model).probe(rendered)
    # What every row goes through equals autograd in test_prober.py and test_families.py.
    for result in (fewer, again):
        np.testing.assert_allclose(result.norms, whole.norms, rtol=1e-9)
        np.testing.assert_allclose(result.loss, whole.loss, rtol=1e-12)
    assert "forward" not in model.model.layers[0].__dict__


def test_the_last_layer_sees_target_rows_only(rendered):
    model = build("qwen3", layers=3)
    seen = {}

    def note(name):
        return lambda module, args: seen.__setitem__(name, tuple(args[0].shape[:2]))

    for index in (1, 2):
        layer = model.model.layers[index]
        for kind in "qkvo":
            module = getattr(layer.self_attn, f"{kind}_proj")
            module.register_forward_hook(lambda m, args, output, name=f"{kind}{index}": note(name)(m, args))
        layer.mlp.down_proj.register_forward_pre_hook(note(f"down{index}"))
    Prober(model).probe(rendered)
    every = (len(rendered), max(int(np.flatnonzero(r.response_mask)[-1]) for r in rendered))
    targets = (1, sum(r.n_targets for r in rendered))
    assert {seen[name] for name in ("q1", "k1", "v1", "o1", "down1", "k2", "v2")} == {every}
    assert {seen[name] for name in ("q2", "o2", "down2")} == {targets}


def test_units_given_by_patterns_go_through_all_rows(rendered):
    model = build("llama")
    found = find_units(model, ["model.layers.*.self_attn.o_proj", "model.layers.1.mlp.*"])
    given, whole = Prober(model, found).probe(rendered), Prober(model).probe(rendered)
    names = [unit.name for unit in find_units(model).units]
    columns = [
        names.index(name.replace("model.", "").replace("self_attn.", "").replace("mlp.", ""))
        for name in Prober(model, found).unit_names
    ]
    np.testing.assert_allclose(given.norms, whole.norms[:, columns], rtol=1e-9)


def test_activations_of_unknown_layers_cannot_be_checkpointed():
    model = build("llama")
    found = dataclasses.replace(find_units(model), layers=(), recognised=False)
    with pytest.raises(ModelError, match="its layers are not known"):
        Prober(model, found, checkpoint_activations=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_inputs_made_again_are_the_same_bits(name, dtype, rendered):
    model = build(name, dtype)
    compared = {}

    def compare(path):
        def hook(module, args):
            again = remake(args[0])
            compared[path] = again is not None and torch.equal(again(), args[0]) and again().dtype == args[0].dtype

        return hook

    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_(True))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for path, module in model.named_modules():
        if path.endswith("_proj"):
            module.register_forward_pre_hook(compare(path.rsplit(".", 1)[1]))
    model(input_ids=torch.from_numpy(rendered[0].input_ids.astype(np.int64))[None])
    # Attention's own output is kept by attention.
    assert compared == {f"{kind}_proj": kind != "o" for kind in ("q", "k", "v", "o", "gate", "up", "down")}


def test_only_products_and_conversions_are_made_again():
    x = torch.randn(3, requires_grad=True)
    y, w = x.exp(), torch.randn(3)
    assert remake(x) is None
    assert remake(y + w) is None
    assert remake(w * y) is None  # of y the graph of this product keeps nothing
    for made in (y * x, (y * x).double(), w * (y * x), (w * (y * x).double()).float(), 3 * (x * y)):
        again = remake(made)
        assert again is not None
        assert torch.equal(again(), made)


@pytest.fixture
def cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured_costs.cache_clear()
    yield tmp_path / "gradprism"
    measured_costs.cache_clear()


def test_costs_are_measured_once(monkeypatch, cache_folder):
    first = measured_costs("cpu", torch.float32)
    assert all(value > 0 for value in (first.outer_product, first.outer_entry, first.gram_product, first.gram_entry))
    assert not first.upcast
    (path,) = cache_folder.glob("costs-*.json")
    assert Costs(**json.loads(path.read_text())["costs"]) == first
    measured_costs.cache_clear()
    monkeypatch.setattr(costs_module, "_measure", lambda device, dtype: BY_PRODUCTS)
    assert measured_costs("cpu", torch.float32) == first
    for damage in ("", "{}", '{"costs": {"outer_product": 1}}', '{"costs": 3}'):
        path.write_text(damage)
        measured_costs.cache_clear()
        assert measured_costs("cpu", torch.float32) == BY_PRODUCTS
        assert Costs(**json.loads(path.read_text())["costs"]) == BY_PRODUCTS


def test_costs_without_a_place_to_keep_them(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(costs_module, "_measure", lambda device, dtype: BY_PRODUCTS)
    measured_costs.cache_clear()
    assert measured_costs("cpu", torch.float64) == BY_PRODUCTS
    measured_costs.cache_clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_both_ways(cache_folder, dtype):
    costs = measured_costs("cpu", dtype)
    assert costs.upcast or dtype == torch.bfloat16
    model = build("qwen3", dtype, hidden=64)
    renderer = Renderer(tiny_tokenizer(), 1024)
    trajectories = [renderer.render(t) for t in sample_trajectories(4)]
    results = []
    for upcast in (True, False) if dtype == torch.bfloat16 else (True,):
        for gram in (0.0, 1.0):
            chosen = Costs(1.0 - gram, 0.0, gram, 0.0, upcast)
            results.append(Prober(model, costs=chosen).probe(trajectories).norms)
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=2e-2)
