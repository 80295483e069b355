"""Scores of single matrices' gradients, and of tokens, against dense gradients by autograd and slow formulas."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradprism.concentration import gini as gini_of_norms
from gradprism.probing import matrices
from gradprism.probing.norms import BY_PRODUCTS
from gradprism.probing.pass_scores import PASS_SCORES, SKETCH_SIDE, check_pass_scores, ranked_by
from gradprism.probing.prober import Prober, target_positions
from gradprism.probing.units import find_units
from gradprism.runtime.errors import ConfigError
from helpers.families import MOE_FAMILIES, family_model, random_trajectory, reference_gradients

VOCABULARY = 60
ALL = tuple(PASS_SCORES)


@pytest.fixture(scope="module")
def trajectories():
    rng = np.random.default_rng(0)
    return [random_trajectory(rng, VOCABULARY, length) for length in (40, 7, 23, 31, 3)]


def probe(model, trajectories, size=None, experts: Any = "joined", scores=ALL, **options):
    prober = Prober(model, find_units(model, experts=experts), costs=BY_PRODUCTS, scores=scores, **options)
    size = size or len(trajectories)
    found = [prober.probe(trajectories[i : i + size]).scores for i in range(0, len(trajectories), size)]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def slow_scores(G):
    """Of a dense gradient `[O, I]`, or of experts' `[E, O, I]` as the blocks of one matrix."""
    blocks = G.numpy().reshape(-1, *G.shape[-2:])
    sigma = np.concatenate([np.linalg.svd(block, compute_uv=False) for block in blocks])
    if not sigma.sum():
        return {"nuclear_norm": 0.0, "effective_rank": math.nan, "gini_rows": math.nan, "gini_columns": math.nan}
    p = sigma[sigma > 0] / sigma.sum()
    return {
        "nuclear_norm": sigma.sum(),
        "effective_rank": math.exp(-sum(x * math.log(x) for x in p)),
        "gini_rows": gini_of_norms(np.linalg.norm(blocks, axis=2).reshape(1, -1))[0],
        "gini_columns": gini_of_norms(np.linalg.norm(blocks, axis=1).reshape(1, -1))[0],
    }


def slow_sketch(gradients, experts="joined"):
    """The sketch of a trajectory's dense gradients by unit, with the whole of P and Q."""
    total = torch.zeros(SKETCH_SIDE**2, dtype=torch.float64)
    for name, G in gradients.items():
        G = G.reshape(-1, *G.shape[-2:])
        P, Q = (
            matrices.signs(f"{name} {end}", size, SKETCH_SIDE).double() for end, size in (("out", G.shape[1]), ("in", G.shape[2]))
        )
        own = matrices.signs(f"{name} experts", len(G), SKETCH_SIDE**2).double()
        total += ((P.mT @ G @ Q).flatten(1) / SKETCH_SIDE * own).sum(dim=0)
    return total.numpy()


def assert_scores(found, gradients, rtol=1e-5):
    for row, of_units in enumerate(gradients):
        for unit, G in enumerate(of_units.values()):
            for name, expected in slow_scores(G).items():
                np.testing.assert_allclose(found[name][row, unit], expected, rtol=rtol, err_msg=name)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", *MOE_FAMILIES])
@pytest.mark.usefixtures("softmax_in_its_own_precision")
def test_scores_are_those_of_dense_gradients(family, trajectories):
    model = family_model(family, VOCABULARY)
    gradients = [reference_gradients(family, model, trajectory)[1] for trajectory in trajectories]
    for options in ({}, {"size": 1}, {"checkpoint_activations": True}):
        found = probe(model, trajectories, **options)
        assert_scores(found, gradients)
        sketches = np.stack([slow_sketch(of_units) for of_units in gradients])
        np.testing.assert_allclose(found["sketch"], sketches, rtol=1e-5, atol=1e-6 * np.abs(sketches).max())


@pytest.mark.parametrize("family", MOE_FAMILIES)
@pytest.mark.usefixtures("softmax_in_its_own_precision")
def test_separate_experts_have_scores_of_their_own(family, trajectories):
    model = family_model(family, VOCABULARY)
    gradients = [reference_gradients(family, model, trajectory, "separate")[1] for trajectory in trajectories]
    found = probe(model, trajectories, experts="separate")
    assert_scores(found, gradients)
    assert np.isnan(found["gini_rows"]).any()  # experts that no token of three reaches


def test_token_variance_is_that_of_the_tokens(trajectories):
    model = family_model("llama", VOCABULARY)
    found = probe(model, trajectories, scores=["token_variance"])
    assert list(found) == ["token_variance"]
    for value, trajectory in zip(found["token_variance"], trajectories, strict=True):
        ids = torch.from_numpy(trajectory.input_ids.astype(np.int64))
        with torch.no_grad():
            p = model(input_ids=ids[None]).logits[0].softmax(dim=-1)
        of_tokens = [float(p[t - 1, ids[t]]) for t in target_positions(trajectory)]
        assert value == pytest.approx(sum(q * (1 - q) for q in of_tokens) / len(of_tokens), rel=1e-9)


def test_what_is_not_asked_for_is_not_measured_and_changes_no_norm(trajectories):
    model = family_model("mixtral", VOCABULARY)
    plain, scored = (Prober(model, costs=BY_PRODUCTS, scores=names).probe(trajectories) for names in ((), ALL))
    assert plain.scores == {}
    np.testing.assert_array_equal(plain.norms, scored.norms)
    np.testing.assert_array_equal(plain.loss, scored.loss)
    for name in ALL:
        alone = probe(model, trajectories, scores=[name])
        assert list(alone) == [name]
        np.testing.assert_array_equal(alone[name], scored.scores[name])


def test_bfloat16_is_near_float32(trajectories):
    exact = family_model("llama", VOCABULARY, dtype=torch.float32)
    half = probe(copy.deepcopy(exact).to(torch.bfloat16), trajectories)
    for name, expected in probe(exact, trajectories).items():
        if name == "sketch":
            for a, b in zip(half[name], expected, strict=True):
                assert a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) > 0.98
        else:
            np.testing.assert_allclose(half[name], expected, rtol=0.15, err_msg=name)


def test_lora_measures_the_base_matrices(trajectories):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = family_model("llama", VOCABULARY)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "down_proj"]))
    adapted = adapted.double().eval()
    gradients = [reference_gradients("llama", adapted, t, bare=adapted.get_base_model())[1] for t in trajectories]
    assert_scores(probe(adapted, trajectories), gradients)


def test_weights_of_nan_give_nan(trajectories):
    model = family_model("llama", VOCABULARY)
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    assert np.isnan(probe(model, trajectories)["nuclear_norm"]).all()


@given(st.integers(1, 3), st.integers(1, 14), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.booleans())
@settings(deadline=None)
def test_both_routes_to_singular_values_are_an_svd(m, T, d_in, d_out, seed, repeated):
    generator = torch.Generator().manual_seed(seed)
    A, B = (torch.randn(m, T, size, generator=generator, dtype=torch.float64) for size in (d_in, d_out))
    if repeated:  # tokens that are alike, and padding
        A, B[:, T // 2 :] = A[:, :1].expand(m, T, d_in), 0.0
    expected = torch.linalg.svdvals(B.mT @ A)
    found = matrices.squared_singular_values(A, B).sort(dim=1, descending=True).values.sqrt()
    few = min(found.shape[1], expected.shape[1])
    largest = expected.amax(dim=1, keepdim=True)
    assert (found[:, :few] - expected[:, :few]).abs().le(1e-7 * largest + 1e-12).all()
    assert found[:, few:].le(1e-7 * largest + 1e-12).all() and expected[:, few:].le(1e-7 * largest + 1e-12).all()


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_rows_and_columns_come_in_blocks(m, T, d_in, d_out, seed):
    generator = torch.Generator().manual_seed(seed)
    A, B = (torch.randn(m, T, size, generator=generator, dtype=torch.float64) for size in (d_in, d_out))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(matrices.OUTER_ENTRIES, "cpu", 2 * m * d_in)
        rows, columns = matrices.row_and_column_norms(A, B)
    torch.testing.assert_close(rows, (B.mT @ A).norm(dim=2))
    torch.testing.assert_close(columns, (B.mT @ A).norm(dim=1))


@given(st.lists(st.floats(0, 1e3), min_size=2, max_size=20).filter(any), st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_gini_is_that_of_norms_at_any_scale(row, scale):
    x = torch.tensor([row], dtype=torch.float64)
    assert matrices.gini(x * scale).item() == pytest.approx(gini_of_norms(np.array([row]))[0], abs=1e-12)


def test_sketches_keep_inner_products_within_their_bound():
    # Of gradients of equal size in N matrices: standard deviation at most √((4/s + 4/s²)/N + 2/s²), s = 32.
    N, size, T, n = 12, 48, 9, 40
    generator = torch.Generator().manual_seed(0)
    exact, sketches = torch.zeros(n, n), torch.zeros(n, SKETCH_SIDE**2)
    common = torch.randn(N, 2, 1, T, size, generator=generator)
    for unit in range(N):
        A, B = (common[unit, end] + torch.randn(n, T, size, generator=generator) for end in range(2))
        scores = matrices.MatrixScores(["sketch"], [f"layers.{unit}.q_proj"], n, matrices.Projections(), torch.device("cpu"))
        gathered = scores.matrices((0,))
        gathered.add(A, B)
        gathered.finish()
        sketches += scores.values["sketch"].float()
        G = (B.mT @ A).flatten(1)
        exact += G @ G.mT
    norms = exact.diagonal().sqrt()
    cosine = exact / norms / norms[:, None]
    found = torch.nn.functional.normalize(sketches, dim=1)
    error = (found @ found.mT - cosine)[~torch.eye(n, dtype=torch.bool)]
    bound = math.sqrt((4 / SKETCH_SIDE + 4 / SKETCH_SIDE**2) / N + 2 / SKETCH_SIDE**2)
    assert cosine.min() > 0.2 and error.square().mean().sqrt() < bound and error.abs().max() < 4 * bound


def test_signs_are_those_of_their_name():
    one = matrices.signs("layers.0.q_proj in", 64, 8)
    assert torch.equal(one, matrices.signs("layers.0.q_proj in", 64, 8))
    assert not torch.equal(one, matrices.signs("layers.0.k_proj in", 64, 8))
    assert set(one.unique().tolist()) == {-1, 1} and abs(one.float().mean()) < 0.15


def test_a_matrix_without_a_gradient_is_left_out_of_the_mean():
    stored = np.array([[1.0, np.nan, 3.0], [np.nan] * 3], np.float32)
    np.testing.assert_array_equal(ranked_by("effective_rank", stored), [2.0, np.nan])
    np.testing.assert_array_equal(ranked_by("token_variance", np.array([0.1, 0.2])), [0.1, 0.2])


def test_names_are_checked_and_ordered():
    assert check_pass_scores(["sketch", "effective_rank", "sketch"]) == ("effective_rank", "sketch")
    assert check_pass_scores(["all"]) == ALL
    with pytest.raises(ConfigError, match="score 'rank': choose from effective_rank, nuclear_norm"):
        check_pass_scores(["rank"])
