"""A pretrained model: SmolLM2-135M-Instruct on the shipped corpus, with no option beyond what every user gives."""

import json

import numpy as np
import pytest

from gradprism.models import load_model
from gradprism.probing.norms import BY_PRODUCTS
from gradprism.probing.prober import Prober
from gradprism.trajectories.corpus import load_corpus
from gradprism.trajectories.rendering import Renderer, load_tokenizer
from helpers.families import unit_gradients
from helpers.smollm2 import smollm2_folder

CORPUS = "shipped:alfworld-quickstart.jsonl"
N = 4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    return smollm2_folder()


def test_commands_from_inspect_to_audit(model, tmp_path, cli):
    code, out, err = cli("inspect", "--model", model, "--data", CORPUS, "--json")
    assert code == 0, err
    assert "4991" in out  # assistant turns
    probe, route = tmp_path / "probe", tmp_path / "route"
    arguments = ("--data", CORPUS, "--limit", N, "--out", probe, "--json")
    code, out, err = cli("probe", "--model", model, *arguments)
    assert code == 0, err
    found = json.loads(out)
    assert (found["units"], found["parameters"], found["corpus"]["trajectories"]) == (210, 134_515_008, N)
    code, out, err = cli("route", probe, "--out", route)
    assert code == 0, err
    code, out, err = cli("audit", probe, "--json")
    assert code == 0, err
    assert json.loads(out)


def test_norms_equal_autograd(model):
    loaded = load_model(str(model))
    renderer = Renderer(load_tokenizer(model), 8192)
    trajectories = sorted((renderer.render(each) for each in load_corpus(_shipped())), key=lambda each: len(each.input_ids))[:2]
    result = Prober(loaded, costs=BY_PRODUCTS).probe(trajectories)
    parameters = dict(loaded.named_parameters())
    names = {
        f"layers.{layer}.{kind}_proj": f"model.layers.{layer}.{place}.{kind}_proj.weight"
        for layer in range(30)
        for place, kinds in (("self_attn", "qkvo"), ("mlp", ("gate", "up", "down")))
        for kind in kinds
    }
    for trajectory, norms, loss in zip(trajectories, result.norms, result.loss, strict=True):
        expected_loss, gradients = unit_gradients(loaded, trajectory, {name: parameters[path] for name, path in names.items()})
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
        np.testing.assert_allclose(norms, [gradient.double().norm().item() for gradient in gradients.values()], rtol=1e-4)


def _shipped():
    from gradprism import shipped

    return shipped("alfworld-quickstart.jsonl")
