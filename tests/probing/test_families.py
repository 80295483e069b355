"""The probe on every family of models: which units it finds, and their norms against autograd."""

import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradprism.concentration import gini
from gradprism.probing.norms import BY_PRODUCTS
from gradprism.probing.prober import Prober
from gradprism.probing.units import ExpertsTap, find_units
from gradprism.probing.weights import weight_norms
from gradprism.runtime.errors import ModelError
from helpers.families import (
    EXPERTS,
    FAMILIES,
    GPT2_KINDS,
    MOE_FAMILIES,
    family_model,
    random_trajectory,
    reference,
    reference_matrices,
    reference_names,
    reference_weight_norms,
)

VOCABULARY = 60
# Families whose attention transformers computes in no other way.
EAGER_ONLY = ("gemma2", "gpt_oss")
ATTENTION = [(name, way) for name in FAMILIES for way in ("sdpa", "eager") if way == "eager" or name not in EAGER_ONLY]


@pytest.fixture(scope="module")
def trajectories():
    rng = np.random.default_rng(0)
    return [random_trajectory(rng, VOCABULARY, length) for length in (40, 7, 23, 31, 3)]


def probe(model, trajectories, experts: Any = "joined", size=None, **options):
    """Norms and losses, in batches of `size`."""
    prober = Prober(model, find_units(model, experts=experts), costs=BY_PRODUCTS, **options)
    size = size or len(trajectories)
    results = [prober.probe(trajectories[i : i + size]) for i in range(0, len(trajectories), size)]
    return np.concatenate([result.norms for result in results]), np.concatenate([result.loss for result in results])


def references(name, model, trajectories, experts="joined", bare=None):
    pairs = [reference(name, model, trajectory, experts, bare) for trajectory in trajectories]
    return np.stack([norms for _, norms in pairs]), np.array([loss for loss, _ in pairs])


def assert_equal(found, expected, rtol=1e-9):
    for some, others in zip(found, expected, strict=True):
        np.testing.assert_allclose(some, others, rtol=rtol, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_units_are_the_projections_by_layer_and_kind(name):
    model = family_model(name, VOCABULARY, layers=3)
    matrices, parameters = reference_matrices(name, model), dict(model.named_parameters())
    found = find_units(model)
    assert [unit.name for unit in found.units] == reference_names(name, model)
    for unit in found.units:
        parameter, cut = matrices[unit.name]
        assert unit.n_parameters == cut(parameters[parameter]).numel()
        assert unit.name == f"layers.{unit.layer}.{unit.name.split('.', 2)[2]}"
        assert unit.name.endswith(f".{unit.kind}_proj")
    assert sorted(index for tap in found.taps for index in tap.unit_indices) == list(range(len(found.units)))
    assert [type(layer) for layer in found.layers] == [type(found.layers[0])] * 3
    assert all(tap.module in set(found.layers[tap.layer].modules()) for tap in found.taps)
    np.testing.assert_allclose(weight_norms(found), reference_weight_norms(name, model), rtol=1e-12)


def test_gpt2_has_six_units_a_layer():
    found = find_units(family_model("gpt2", VOCABULARY, layers=12))
    assert [(unit.layer, unit.kind) for unit in found.units] == [(layer, kind) for layer in range(12) for kind in GPT2_KINDS]


def test_a_vision_tower_has_no_units():
    found = find_units(family_model("gemma3_with_vision", VOCABULARY))
    assert {tap.path.split(".layers.")[0] for tap in found.taps} == {"model.language_model"}


@pytest.mark.usefixtures("softmax_in_its_own_precision")
@pytest.mark.parametrize(("name", "attention"), ATTENTION)
def test_norms_and_losses_equal_autograd(name, attention, trajectories):
    model = family_model(name, VOCABULARY)
    model.set_attn_implementation(attention)
    expected = references(name, model, trajectories)
    assert (expected[0] > 1e-6).all()
    assert_equal(probe(model, trajectories), expected)
    assert_equal(probe(model, trajectories, checkpoint_activations=True), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trajectory_of_two_tokens(name, trajectories):
    # The model reads one token, and attention has no choice: the gradients of queries and keys vanish.
    model = family_model(name, VOCABULARY)
    short = random_trajectory(np.random.default_rng(2), VOCABULARY, 2)
    expected, loss = references(name, model, [short])
    for others in ([], trajectories[:2]):
        norms, losses = probe(model, [short, *others])
        np.testing.assert_allclose(norms[:1], expected, rtol=1e-9, atol=1e-9 * expected.max())
        np.testing.assert_allclose(losses[0], loss[0], rtol=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_size_and_order_and_amount_of_padding_do_not_matter(name, trajectories):
    model = family_model(name, VOCABULARY)
    if name in EAGER_ONLY:
        model.to(torch.float32)
    rtol = 1e-5 if name in EAGER_ONLY else 1e-9
    norms, loss = probe(model, trajectories)
    for size in (1, 2):
        assert_equal(probe(model, trajectories, size=size), (norms, loss), rtol)
    order = [3, 0, 4, 2, 1]
    assert_equal(probe(model, [trajectories[i] for i in order]), (norms[order], loss[order]), rtol)
    long = random_trajectory(np.random.default_rng(1), VOCABULARY, 150)
    more_norms, more_loss = probe(model, [*trajectories, long])
    assert_equal((more_norms[:-1], more_loss[:-1]), (norms, loss), rtol)


@pytest.mark.parametrize(("name", "attention"), ATTENTION)
def test_float32_is_within_its_bounds_of_the_truth(name, attention, trajectories):
    model = family_model(name, VOCABULARY, hidden=64, dtype=torch.float32)
    truth = copy.deepcopy(model).double()  # the same weights
    truth.set_attn_implementation("eager" if name in EAGER_ONLY else "sdpa")
    model.set_attn_implementation(attention)
    expected, _ = references(name, truth, trajectories)
    norms, _ = probe(model, trajectories)
    np.testing.assert_allclose(norms, expected, rtol=1e-4)
    np.testing.assert_allclose(gini(norms), gini(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "qwen3_moe"])
def test_half_precision_keeps_the_ranks_of_the_gini(name, dtype):
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    trajectories = sorted(
        (random_trajectory(rng, 200, int(rng.integers(12, 48))) for _ in range(100)), key=lambda t: len(t.input_ids)
    )
    model = family_model(name, 200, hidden=64, layers=3, dtype=torch.float32)
    exact, _ = probe(model, trajectories, size=10)
    half, _ = probe(model.to(dtype), trajectories, size=10)
    rho: Any = spearmanr(gini(exact), gini(half))[0]
    assert rho >= 0.99


# Mixtures of experts


@pytest.mark.parametrize("name", MOE_FAMILIES)
@pytest.mark.usefixtures("softmax_in_its_own_precision")
def test_separate_experts_equal_autograd(name, trajectories):
    model = family_model(name, VOCABULARY)
    found = find_units(model, experts="separate")
    assert [unit.name for unit in found.units] == reference_names(name, model, "separate")
    for tap in found.taps:
        if isinstance(tap, ExpertsTap):
            assert [found.units[i].name for i in tap.up] == [f"layers.{tap.layer}.experts.{e}.up_proj" for e in range(EXPERTS)]
    expected = references(name, model, trajectories, "separate")
    for options in ({}, {"checkpoint_activations": True}, {"size": 2}):
        assert_equal(probe(model, trajectories, "separate", **options), expected)


@pytest.mark.parametrize("name", MOE_FAMILIES)
def test_separate_norms_add_up_to_joined_ones(name, trajectories):
    model = family_model(name, VOCABULARY)
    joined, separate = find_units(model), find_units(model, experts="separate")
    whole, parts = (probe(model, trajectories, experts)[0] ** 2 for experts in ("joined", "separate"))
    for tap, other in zip(joined.taps, separate.taps, strict=True):
        if isinstance(tap, ExpertsTap) and isinstance(other, ExpertsTap):
            for one, many in ((tap.gate, other.gate), (tap.up, other.up), (tap.down, other.down)):
                np.testing.assert_allclose(parts[:, many].sum(axis=1), whole[:, one[0]], rtol=1e-12)
    sizes = [sum(unit.n_parameters for unit in found.units) for found in (joined, separate)]
    assert sizes[0] == sizes[1]
    squares = [np.square(weight_norms(found)).sum() for found in (joined, separate)]
    np.testing.assert_allclose(squares[0], squares[1], rtol=1e-12)


def never_the_second(router, args, output):
    logits, scores, _ = output
    closed = logits.index_fill(1, torch.tensor([1]), -torch.inf)
    best, chosen = closed.topk(2, dim=-1)
    return logits, best.softmax(dim=-1).to(scores.dtype), chosen


@pytest.mark.parametrize("name", MOE_FAMILIES)
def test_an_expert_that_no_token_reaches_has_norm_zero(name, trajectories):
    model = family_model(name, VOCABULARY)
    for layer in model.model.layers:
        if hasattr(layer.mlp, "experts"):
            router = layer.mlp.router if name == "gpt_oss" else layer.mlp.gate
            router.register_forward_hook(never_the_second)
    found = find_units(model, experts="separate")
    norms, _ = probe(model, trajectories, "separate")
    expected, _ = references(name, model, trajectories, "separate")
    unreached = [i for i, unit in enumerate(found.units) if ".experts.1." in unit.name]
    reached = [i for i in range(len(found.units)) if i not in unreached]
    assert len(unreached) == 3 * sum(hasattr(layer.mlp, "experts") for layer in model.model.layers)
    np.testing.assert_array_equal(norms[:, unreached], 0)
    np.testing.assert_allclose(norms[:, reached], expected[:, reached], rtol=1e-9 if name not in EAGER_ONLY else 1e-6)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("name", MOE_FAMILIES)
def test_the_implementation_of_experts_does_not_matter(name, implementation, trajectories):
    model = family_model(name, VOCABULARY, dtype=torch.float32)
    exact = probe(model, trajectories)
    model.set_experts_implementation(implementation)
    assert_equal(probe(model, trajectories), exact, rtol=0)
    assert_equal(exact, references(name, model, trajectories), rtol=1e-4)


def test_experts_are_as_before_and_form_no_gradient(trajectories):
    model = family_model("mixtral", VOCABULARY)
    modules = [layer.mlp.experts for layer in model.model.layers]
    ids = torch.arange(20)[None]
    before = model(input_ids=ids).logits
    probe(model, trajectories)
    assert all("forward" not in vars(module) for module in modules)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=0)


def test_threads_may_probe_a_mixture_at_once(trajectories):
    model = family_model("qwen2_moe", VOCABULARY)
    prober = Prober(model, costs=BY_PRODUCTS)
    expected = [prober.probe([trajectory]).norms for trajectory in trajectories]
    results: list[Any] = [None] * len(trajectories)

    def work(index):
        for _ in range(5):
            results[index] = prober.probe([trajectories[index]]).norms

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(trajectories))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found, alone in zip(results, expected, strict=True):
        np.testing.assert_array_equal(found, alone)


# Wrapped, adapted, quantised, tied and offloaded models


class Wrapper(nn.Module):
    """What data parallelism does to names."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize("wrap", [torch.compile, Wrapper, lambda model: Wrapper(torch.compile(Wrapper(model)))])
def test_names_do_not_depend_on_what_wraps_the_model(wrap):
    model = family_model("mixtral", VOCABULARY)
    bare = find_units(model)
    wrapped = find_units(wrap(model))
    assert wrapped.units == bare.units
    assert wrapped.taps == bare.taps
    assert wrapped.layers == bare.layers


def test_a_layer_compiled_by_itself_keeps_its_names():
    model = family_model("llama", VOCABULARY)
    bare = find_units(model)
    model.model.layers[1] = torch.compile(model.model.layers[1])
    assert find_units(model).taps == bare.taps


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("qwen3", {"target_modules": "all-linear"}),
        ("phi3", {"target_modules": ["qkv_proj"]}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        ("mixtral", {"target_modules": ["v_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
    ],
)
@pytest.mark.usefixtures("softmax_in_its_own_precision")
def test_lora_leaves_names_and_measures_the_base_matrices(name, targets, trajectories):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = family_model(name, VOCABULARY)
    bare_units = find_units(model)
    unadapted, _ = probe(model, trajectories)
    config = peft.LoraConfig(r=4, init_lora_weights=False, lora_dropout=0.0 if name == "mixtral" else 0.3, **targets)
    adapted = peft.get_peft_model(model, config).double().eval()
    found = find_units(adapted)
    assert found.units == bare_units.units
    assert [tap.path for tap in found.taps] == [tap.path for tap in bare_units.taps]
    assert not any(isinstance(tap.module, peft.tuners.lora.LoraLayer) for tap in found.taps)
    expected = references(name, adapted, trajectories, bare=adapted.get_base_model())
    assert_equal(probe(adapted, trajectories), expected)
    assert_equal(probe(adapted, trajectories, checkpoint_activations=True), expected)
    assert np.abs(expected[0] / unadapted - 1).max() > 1e-3  # the adapters change the gradient
    np.testing.assert_allclose(weight_norms(found), weight_norms(bare_units), rtol=1e-12)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt2", "mixtral"])
def test_tied_embeddings(name, tied, trajectories):
    model = family_model(name, VOCABULARY)
    embeddings = model.get_input_embeddings().weight
    flipped = nn.Parameter(embeddings.detach().clone().flip(0))
    model.get_output_embeddings().weight = embeddings if tied else flipped
    assert (model.get_output_embeddings().weight is embeddings) == tied
    assert_equal(probe(model, trajectories), references(name, model, trajectories))


class StraightThrough(nn.Module):
    """Runs a quantised layer, with the gradients of a product with its dequantised weight."""

    def __init__(self, layer: Any, weight: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.weight = [layer], nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        smooth = nn.functional.linear(x, self.weight)
        return smooth + (self.layer[0](x) - smooth).detach()


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights(bits, tmp_path, trajectories):
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dense = family_model("qwen3", VOCABULARY, hidden=128, dtype=torch.float32)
    dense.save_pretrained(tmp_path)
    options: dict[str, Any] = {"load_in_8bit": True}
    if bits == 4:
        options = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32, "bnb_4bit_quant_type": "nf4"}
    config = BitsAndBytesConfig(**options)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32, device_map="cpu")
    found = find_units(model)
    assert found.units == find_units(dense).units
    # One at a time: 8-bit activations are rounded, and a last digit that depends on the batch's shape may tip them over.
    norms, loss = probe(model, trajectories, size=1)

    copied = copy.deepcopy(dense)
    for tap in found.taps:
        layer: Any = tap.module
        weight = layer.weight
        if bits == 8:
            scales = layer.state.SCB  # the first forward pass moves it there
            matrix = weight.data.float() * scales[:, None] / 127
        else:
            matrix = functional.dequantize_4bit(weight.data, weight.quant_state)
        copied.set_submodule(tap.path, StraightThrough(tap.module, matrix))
    assert_equal((norms, loss), references("qwen3", copied, trajectories), rtol=1e-3 if bits == 8 else 1e-4)
    assert_equal(probe(model, trajectories, size=1, checkpoint_activations=True), (norms, loss), rtol=1e-5)
    np.testing.assert_allclose(weight_norms(found), reference_weight_norms("qwen3", copied), rtol=1e-6)
    np.testing.assert_allclose(weight_norms(found), weight_norms(find_units(dense)), rtol=0.02)


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "mixtral"])
def test_weights_offloaded_to_memory_or_disk(name, tmp_path, trajectories):
    from accelerate import cpu_offload, disk_offload

    model = family_model(name, VOCABULARY)
    expected, weights = references(name, model, trajectories), weight_norms(find_units(model))
    disk_offload(copy_of_it := copy.deepcopy(model), str(tmp_path), execution_device=torch.device("cpu"))
    cpu_offload(model, execution_device=torch.device("cpu"))
    for offloaded in (copy_of_it, model):
        assert all(parameter.is_meta for parameter in offloaded.parameters())
        assert_equal(probe(offloaded, trajectories), expected)
        np.testing.assert_allclose(weight_norms(find_units(offloaded)), weights, rtol=1e-12)
        assert all(parameter.is_meta for parameter in offloaded.parameters())


def test_a_device_map_with_a_layer_on_disk(tmp_path, trajectories):
    from transformers import AutoModelForCausalLM

    model = family_model("qwen3_moe", VOCABULARY, dtype=torch.float32)
    model.save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu"}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model",
        dtype=torch.float32,
        device_map={**places, "model.rotary_emb": "cpu", "lm_head": "disk"},
        offload_folder=tmp_path / "offload",
    )
    assert loaded.model.layers[0].mlp.experts.down_proj.is_meta
    assert_equal(probe(loaded, trajectories), references("qwen3_moe", model, trajectories), rtol=1e-4)
    np.testing.assert_allclose(weight_norms(find_units(loaded)), weight_norms(find_units(model)), rtol=1e-12)


# Units named by patterns, and errors


def neox() -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        initializer_range=0.2,
    )
    return GPTNeoXForCausalLM(config).eval().double()


def test_patterns_name_units_of_any_model(trajectories):
    model = neox()
    found = find_units(model, ["gpt_neox.layers.*.attention.query_key_value", "*.mlp.dense_4h_to_h"])
    names = [f"gpt_neox.layers.{i}.{part}" for i in range(2) for part in ("attention.query_key_value", "mlp.dense_4h_to_h")]
    assert [unit.name for unit in found.units] == names
    assert [(unit.layer, unit.kind) for unit in found.units] == [
        (i, k) for i in (0, 1) for k in ("query_key_value", "dense_4h_to_h")
    ]
    assert [unit.n_parameters for unit in found.units] == [3 * 32 * 32, 48 * 32] * 2
    assert found.layers == tuple(model.gpt_neox.layers)
    weights = [model.get_submodule(name).weight for name in names]
    result = Prober(model, found, costs=BY_PRODUCTS).probe(trajectories)
    for row, trajectory in enumerate(trajectories):
        ids = torch.from_numpy(trajectory.input_ids.astype(np.int64))
        logits = model(input_ids=ids[None]).logits[0]
        mask = torch.from_numpy(trajectory.response_mask[1:].copy())
        loss = nn.functional.cross_entropy(logits[:-1][mask], ids[1:][mask])
        expected = [gradient.norm().item() for gradient in torch.autograd.grad(loss, weights)]
        np.testing.assert_allclose(result.norms[row], expected, rtol=1e-9)
    np.testing.assert_allclose(weight_norms(found), [weight.norm().item() for weight in weights], rtol=1e-12)


@pytest.mark.parametrize("experts", ["joined", "separate"])
def test_a_pattern_may_name_stacked_experts(experts, trajectories):
    model = family_model("mixtral", VOCABULARY)
    found = find_units(model, ["model.layers.*.mlp.experts"], experts=experts)
    middle = [""] if experts == "joined" else [f"{e}." for e in range(EXPERTS)]
    path = "model.layers.{}.mlp.experts."
    assert [unit.name for unit in found.units] == [
        f"{path.format(i)}{m}{kind}_proj" for i in range(2) for m in middle for kind in ("gate", "up", "down")
    ]
    result = Prober(model, found, costs=BY_PRODUCTS).probe(trajectories)
    expected = references("mixtral", model, trajectories, experts)[0]
    of_experts = [i for i, unit in enumerate(find_units(model, experts=experts).units) if unit.kind in ("gate", "up", "down")]
    np.testing.assert_allclose(result.norms, expected[:, of_experts], rtol=1e-9)


def test_an_unknown_model_is_refused_with_its_layers_and_how_to_name_them():
    with pytest.raises(ModelError) as caught:
        find_units(neox())
    message = str(caught.value)
    assert "--units 'gpt_neox.layers.*.attention.query_key_value' --units 'gpt_neox.layers.*.attention.dense'" in message
    assert message.endswith(
        "gpt_neox.layers.*.attention.query_key_value (×2), gpt_neox.layers.*.attention.dense (×2), "
        "gpt_neox.layers.*.mlp.dense_h_to_4h (×2), gpt_neox.layers.*.mlp.dense_4h_to_h (×2)"
    )
    assert "\n" not in message


def test_linear_layers_of_every_kind_are_listed():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = peft.get_peft_model(neox(), peft.LoraConfig(target_modules=["dense"]))
    with pytest.raises(ModelError, match=r"gpt_neox\.layers\.\*\.attention\.dense \(×2\), gpt_neox\.layers\.\*\.mlp") as caught:
        find_units(model)
    assert "lora" not in str(caught.value)
    assert "base_layer" not in str(caught.value)


def test_a_pattern_without_a_match_is_refused():
    with pytest.raises(ModelError, match=r"--units 'gpt_neox\.\*\.up_proj' matches none of its linear layers; they are: gpt_neox"):
        find_units(neox(), ["*.dense", "gpt_neox.*.up_proj"])
    with pytest.raises(ModelError, match=r"--units '\*head' matches none"):
        find_units(neox(), ["*head"])
    with pytest.raises(ModelError, match="no pattern of units was given"):
        find_units(neox(), [])


def test_fused_matrices_of_unknown_layout_are_not_split():
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

    # Its c_attn interleaves queries, keys and values by head.
    config = GPTBigCodeConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, multi_query=False)
    with pytest.raises(ModelError, match=r"--units 'transformer\.h\.\*\.attn\.c_attn'"):
        find_units(GPTBigCodeForCausalLM(config))


def test_stacked_experts_of_another_make_are_not_taken_for_known_ones():
    model = family_model("mixtral", VOCABULARY)
    experts = model.model.layers[1].mlp.experts
    for parameter in experts.parameters():  # as where they come with scales
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(torch.float8_e4m3fn)
    with pytest.raises(ModelError, match="no stack of layers has"):
        find_units(model)
