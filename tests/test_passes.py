"""A pass that fails is told in one line with the module that was running."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradprism.passes import failures_named
from gradprism.probing.norms import BY_PRODUCTS
from gradprism.probing.prober import Prober
from gradprism.runtime.errors import DataError, ModelError
from helpers.families import family_model, random_trajectory
from helpers.tiny import sample_trajectories, tiny_qwen3, tiny_tokenizer

VOCABULARY = 60


class FailsBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, X: Tensor) -> Tensor:  # type: ignore[override]
        return X.clone()

    @staticmethod
    def backward(ctx: Any, B: Tensor) -> Tensor:  # type: ignore[override]
        raise ArithmeticError("no way\nback")


def fails(module: nn.Module, args: Any, output: Any) -> Any:
    raise ZeroDivisionError("three\nlines\nof it")


def fails_backwards(module: nn.Module, args: Any, output: Any) -> Any:
    return FailsBackwards.apply(output)


@pytest.fixture
def trajectories():
    rng = np.random.default_rng(0)
    return [random_trajectory(rng, VOCABULARY, length) for length in (20, 9)]


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("path", ["model.layers.1.self_attn.q_norm", "model.layers.0.mlp.act_fn", "model.norm"])
def test_a_forward_pass_that_fails_names_its_module(path, checkpoint, trajectories):
    model = family_model("qwen3", VOCABULARY)
    model.get_submodule(path).register_forward_hook(fails)
    prober = Prober(model, costs=BY_PRODUCTS, checkpoint_activations=checkpoint)
    with pytest.raises(ModelError) as failure:
        prober.probe(trajectories)
    assert f"module {path} of Qwen3ForCausalLM: its forward or backward pass fails (ZeroDivisionError: three lines of it)" in str(
        failure.value
    )
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("path", ["model.layers.1.self_attn.q_norm", "model.layers.0.mlp.act_fn", "model.norm"])
def test_a_backward_pass_that_fails_names_its_module(path, trajectories):
    model = family_model("qwen3", VOCABULARY)
    handle = model.get_submodule(path).register_forward_hook(fails_backwards)
    prober = Prober(model, costs=BY_PRODUCTS)
    with pytest.raises(ModelError, match=rf"module {path} of Qwen3ForCausalLM: .*ArithmeticError: no way back"):
        prober.probe(trajectories)
    handle.remove()
    assert np.isfinite(prober.probe(trajectories).norms).all()  # nothing is left in the model


def test_deliberate_errors_and_a_lack_of_memory_are_raised_as_they_are():
    model = family_model("qwen3", VOCABULARY)
    cuda = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    for error in (DataError("a"), MemoryError(), torch.OutOfMemoryError("b"), RuntimeError("DefaultCPUAllocator: no"), cuda):
        with pytest.raises(type(error)) as found, failures_named(model):
            raise error
        assert found.value is error
    with pytest.raises(ModelError, match=r"Qwen3ForCausalLM: .*\(KeyError: 'x'\)"), failures_named(model):
        raise KeyError("x")


@pytest.fixture
def larger_tokenizer(tmp_path):
    """The folder of a model with fewer embeddings than its tokenizer has tokens, and a corpus."""
    tiny_qwen3(100).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"id": t.id, "messages": [{"role": m.role, "content": m.content} for m in t.messages]} for t in sample_trajectories(6)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize("command", ["probe", "sft"])
def test_a_tokenizer_that_is_larger_than_the_embeddings(command, larger_tokenizer, cli):
    folder = larger_tokenizer
    code, out, err = cli(command, "--model", folder / "model", "--data", folder / "data.jsonl", "--out", folder / "out")
    assert (code, out) == (2, "")
    assert "error: trajectory 'sample-0000': token 1" in err.splitlines()[-1]
    assert "is past the model's 100 embeddings; the tokenizer is not the model's" in err.splitlines()[-1]
    assert not (folder / "out").exists() or not list((folder / "out").glob("manifest.json"))


def test_training_names_the_module_that_fails(tmp_path, monkeypatch):
    from gradprism.training.sft import train_sft

    model = tiny_qwen3(len(tiny_tokenizer()))
    model.model.layers[1].mlp.register_forward_hook(fails)
    with pytest.raises(ModelError, match=r"module model\.layers\.1\.mlp of Qwen3ForCausalLM: .*ZeroDivisionError"):
        train_sft(model, tiny_tokenizer(), sample_trajectories(4), out=tmp_path / "out", device="cpu")
