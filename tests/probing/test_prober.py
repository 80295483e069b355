from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradprism.probing.prober import Prober, read_length
from gradprism.probing.units import KINDS, find_units
from gradprism.runtime.errors import DataError, ModelError
from gradprism.trajectories.rendering import RenderedTrajectory, Renderer
from helpers.tiny import sample_trajectories, tiny_llama, tiny_qwen3, tiny_tokenizer

MODELS = {"qwen3": tiny_qwen3, "llama": tiny_llama}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def rendered(tokenizer):
    renderer = Renderer(tokenizer, 1024)
    return [renderer.render(trajectory) for trajectory in sample_trajectories(7)]


def build(name, tokenizer, dtype=torch.float64, **sizes):
    return MODELS[name](len(tokenizer), **sizes).to(dtype)


def by_autograd(model, trajectory):
    """Loss and norms of one whole, unpadded trajectory, with weight gradients, straight from the definition."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    ids = torch.from_numpy(trajectory.input_ids.astype(np.int64))
    logits = model(input_ids=ids[None]).logits[0]
    losses = [-logits[t - 1].log_softmax(-1)[ids[t]] for t in range(1, len(ids)) if trajectory.response_mask[t]]
    loss = torch.stack(losses).mean()
    modules = [
        getattr(layer.self_attn if kind in "qkvo" else layer.mlp, f"{kind}_proj") for layer in model.model.layers for kind in KINDS
    ]
    gradients = torch.autograd.grad(loss, [module.weight for module in modules])
    return np.array([loss.item() for loss in losses]), np.array([gradient.double().norm().item() for gradient in gradients])


def check(result, expected, rtol):
    np.testing.assert_allclose(result.loss, [losses.mean() for losses, _ in expected], rtol=rtol)
    np.testing.assert_allclose(result.norms, [norms for _, norms in expected], rtol=rtol)
    for found, (losses, _) in zip(result.token_losses, expected, strict=True):
        np.testing.assert_allclose(found, losses, rtol=max(rtol, 1e-3))  # float16's precision


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", MODELS)
def test_norms_and_losses_equal_autograd(name, dtype, tokenizer, rendered):
    model = build(name, tokenizer, dtype)
    expected = [by_autograd(model, trajectory) for trajectory in rendered]
    prober = Prober(model)
    for size in (1, 3, 7):
        for start in range(0, 7, size):
            part = slice(start, start + size)
            check(prober.probe(rendered[part]), expected[part], TOLERANCE[dtype])
    order = [4, 0, 6, 2, 1, 5, 3]
    check(prober.probe([rendered[i] for i in order]), [expected[i] for i in order], TOLERANCE[dtype])


def test_the_amount_of_padding_does_not_matter(tokenizer, rendered):
    model = build("qwen3", tokenizer)
    rng = np.random.default_rng(0)
    long = RenderedTrajectory(
        "long", rng.integers(0, len(tokenizer), 600, dtype=np.int32), rng.random(600) < 0.2, 0, np.zeros((0, 2))
    )
    short = min(rendered, key=read_length)
    result = Prober(model).probe([short, long])
    check(result, [by_autograd(model, short), by_autograd(model, long)], 1e-9)


# transformers' eager attention takes its softmax in float32 whatever the model's dtype, so padding changes its last digits.
@pytest.mark.parametrize(("attention", "rtol"), [("sdpa", 1e-9), ("eager", 1e-6)])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tied", [True, False])
def test_gram_and_outer_form_both_occur_and_agree(monkeypatch, name, tied, attention, rtol, tokenizer, rendered):
    model = build(name, tokenizer, hidden=64)
    model.config.tie_word_embeddings = tied
    model.set_attn_implementation(attention)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    else:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone().flip(0))
    expected = [by_autograd(model, trajectory) for trajectory in rendered]
    for cheaper in (True, False):
        monkeypatch.setattr("gradprism.probing.norms.gram_is_cheaper", lambda T, d_in, d_outs, costs, answer=cheaper: answer)
        check(Prober(model).probe(rendered), expected, rtol)


def test_bfloat16_is_near_float32(tokenizer, rendered):
    exact = Prober(build("qwen3", tokenizer, torch.float32)).probe(rendered)
    half = Prober(build("qwen3", tokenizer, torch.bfloat16)).probe(rendered)
    np.testing.assert_allclose(half.norms, exact.norms, rtol=0.15)
    np.testing.assert_allclose(half.loss, exact.loss, rtol=0.02)


def test_units_with_bias_and_a_sliding_window(tokenizer, rendered):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    model: Any = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            use_sliding_window=True,
            sliding_window=16,
            max_window_layers=1,
        )
    )
    model = model.eval().double()
    assert model.model.layers[0].self_attn.q_proj.bias is not None
    assert model.config.layer_types == ["full_attention", "sliding_attention"]
    expected = [by_autograd(model, trajectory) for trajectory in rendered]
    check(Prober(model).probe(rendered), expected, 1e-9)


def test_no_weight_gradient_is_formed_and_the_model_is_as_before(tokenizer, rendered):
    model = build("qwen3", tokenizer).train()
    model.model.norm.weight.requires_grad_(False)
    model.model.layers[1].eval()
    before = {name: (p.requires_grad, p.clone()) for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    Prober(model).probe(rendered)
    assert all(p.grad is None for p in model.parameters())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == {name: flag for name, (flag, _) in before.items()}
    assert all(torch.equal(p, before[name][1]) for name, p in model.named_parameters())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_model_is_as_before_after_a_failure(monkeypatch, tokenizer, rendered):
    model = build("qwen3", tokenizer)

    def fail(*args):
        raise RuntimeError("in the backward pass")

    monkeypatch.setattr("gradprism.probing.norms.SharedInput.squared_norms", fail)
    with pytest.raises(ModelError, match=r"module .* of Qwen3ForCausalLM: .*RuntimeError: in the backward pass"):
        Prober(model).probe(rendered)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_second_prober_of_a_model_waits_for_the_first_or_is_told(tokenizer, rendered):
    model = build("qwen3", tokenizer)
    first, second = Prober(model), Prober(model)
    with first._attached(), pytest.raises(ModelError, match="another probe of this model is running; wait for it"):
        second.probe(rendered)
    np.testing.assert_array_equal(second.probe(rendered).norms, first.probe(rendered).norms)


def test_the_head_runs_on_targets_only(tokenizer, rendered):
    model = build("llama", tokenizer)
    prober, shapes = Prober(model), []
    prober.probe(rendered[:1])  # tries the model out
    model.lm_head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    result = prober.probe(rendered)
    assert shapes == [(1, sum(r.n_targets for r in rendered), len(tokenizer))]
    np.testing.assert_array_equal(result.n_response_tokens, [r.n_targets for r in rendered])


def test_tokens_after_the_last_target_are_not_read(tokenizer, rendered):
    model, first = build("qwen3", tokenizer), rendered[0]
    more = RenderedTrajectory(
        first.id,
        np.concatenate([first.input_ids, np.full(50, 3, dtype=np.int32)]),
        np.concatenate([first.response_mask, np.zeros(50, dtype=bool)]),
        0,
        first.turns,
    )
    assert read_length(more) == read_length(first)
    a, b = Prober(model).probe([first]), Prober(model).probe([more])
    np.testing.assert_array_equal(a.norms, b.norms)


def test_tokens_of_another_model_are_named(rendered):
    model = tiny_llama(20)
    with pytest.raises(ModelError, match=r"trajectory 'sample-0000': token \d+ is past the model's 20 embeddings"):
        Prober(model).probe(rendered[:1])


def test_a_trajectory_without_targets_is_named(tokenizer, rendered):
    first = rendered[0]
    mask = np.zeros_like(first.response_mask)
    mask[0] = True  # a first token has nothing that predicts it
    empty = RenderedTrajectory("empty-one", first.input_ids, mask, 0, first.turns)
    with pytest.raises(DataError, match="'empty-one': empty response mask"):
        Prober(build("qwen3", tokenizer)).probe([first, empty])


def test_nan_weights_give_nan_not_an_exception(tokenizer, rendered):
    model = build("qwen3", tokenizer)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    assert np.isnan(Prober(model).probe(rendered[:2]).loss).all()


@pytest.mark.parametrize("name", MODELS)
def test_units_are_ordered_by_layer_and_kind(name, tokenizer):
    model = build(name, tokenizer, layers=12)
    found = find_units(model)
    units = found.units
    assert [(unit.layer, unit.kind) for unit in units] == [(layer, kind) for layer in range(12) for kind in KINDS]
    assert [unit.name for unit in units[:8]] == [f"layers.0.{kind}_proj" for kind in KINDS] + ["layers.1.q_proj"]
    assert found.taps[7 * 11 + 6].module is model.model.layers[11].mlp.down_proj
    assert units[7 * 11 + 6].n_parameters == model.model.layers[11].mlp.down_proj.weight.numel()


def test_a_model_of_another_kind_is_refused_with_its_layers():
    model = nn.Sequential(nn.Linear(2, 3), nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])}))
    with pytest.raises(ModelError, match=r"Sequential: no stack of layers has .* q_proj.*layers are: \*, \*\.layers\.\* \(×2\)"):
        find_units(model)


def test_a_layer_that_lacks_a_projection_is_refused(tokenizer):
    model = build("llama", tokenizer, layers=3)
    model.model.layers[1].mlp.gate_proj = nn.Identity()
    del model.model.layers[1].mlp.gate_proj
    with pytest.raises(ModelError, match=r"no stack of layers has .*model\.layers\.\*\.mlp\.gate_proj \(×2\)"):
        find_units(model)


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (
            lambda mlp, x: mlp.down_proj(mlp.gate_proj(x) * mlp.gate_proj(x) * mlp.up_proj(x)),
            "gate_proj: runs more than once",
        ),
        (lambda mlp, x: mlp.down_proj(mlp.gate_proj(x)), "took no part in the loss"),
        (lambda mlp, x: mlp.down_proj(mlp.gate_proj(x) * mlp.up_proj(x).detach()), "took no part in the loss"),
        (
            lambda mlp, x: mlp.down_proj(mlp.gate_proj(x) * mlp.up_proj(x.transpose(0, 1)).transpose(0, 1)),
            "up_proj: does not run",
        ),
    ],
)
def test_projections_used_in_another_way_are_refused(monkeypatch, forward, words, tokenizer, rendered):
    model = build("llama", tokenizer)
    mlp = model.model.layers[0].mlp
    monkeypatch.setattr(mlp, "forward", lambda x: forward(mlp, x))
    with pytest.raises(ModelError, match=words):
        Prober(model).probe(rendered[:2])


def test_a_projection_shared_by_layers_is_refused(tokenizer):
    model = build("llama", tokenizer)
    model.model.layers[1].self_attn.k_proj = model.model.layers[0].self_attn.k_proj
    with pytest.raises(ModelError, match="no stack of layers has"):
        find_units(model)
