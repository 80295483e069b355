import pytest
import torch

from gradprism.probing import norms
from gradprism.probing.norms import (
    BY_PRODUCTS,
    Costs,
    SharedInput,
    gram,
    gram_entries,
    gram_is_cheaper,
    inner_product,
    squared_norms,
    squared_norms_outer,
)


def slow(A, B):
    """Σ over every entry of BᵀA of one sample after the other, in float64."""
    return torch.stack([(b.double().T @ a.double()).square().sum() for a, b in zip(A, B, strict=True)])


def shared_input(A, costs=BY_PRODUCTS):
    return SharedInput(lambda: A, costs)


def random(n, T, I, O, dtype=torch.float64, seed=0):  # noqa: E741
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, T, size, generator=generator, dtype=torch.float64).to(dtype) for size in (I, O))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("T", [1, 3, 7, 8, 9, 30])
def test_both_forms_equal_the_slow_sum(monkeypatch, T, dtype, tolerance):
    monkeypatch.setattr(norms, "_height", lambda T: 8)  # so that small T covers one, several and ragged block rows
    A, B = random(3, T, 5, 4, dtype)
    torch.testing.assert_close(squared_norms_outer(A, B), slow(A, B), rtol=tolerance, atol=0)
    by_gram, diagonal = inner_product(gram(A), gram(B))
    torch.testing.assert_close(by_gram, slow(A, B), rtol=tolerance, atol=0)
    assert sum(block[0].numel() for block in gram(A)) == gram_entries(T)
    expected = (A.double().square().sum(2) * B.double().square().sum(2)).sum(1)
    torch.testing.assert_close(diagonal, expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("limit", [1, 7, 25, 10_000])
def test_the_outer_form_in_parts_is_the_outer_form(monkeypatch, limit):
    monkeypatch.setitem(norms.OUTER_ENTRIES, "cpu", limit)
    A, B = random(5, 6, 5, 130)
    torch.testing.assert_close(squared_norms_outer(A, B), slow(A, B), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("T", "d_in", "d_outs"), [(4, 64, [64]), (64, 8, [4, 4]), (500, 192, [384, 192]), (500, 4096, [6144])])
def test_the_cheaper_form_is_the_one_that_costs_less(T, d_in, d_outs):
    d_out = sum(d_outs)
    assert gram_is_cheaper(T, d_in, d_outs, BY_PRODUCTS) == (gram_entries(T) * (d_in + d_out) < T * d_in * d_out)
    assert T * T / 2 <= gram_entries(T) <= min(T * T, T * (T + 128) / 2)
    # Slow products or entries of one form make the other one cheaper, whatever the sizes.
    assert gram_is_cheaper(T, d_in, d_outs, Costs(1e9, 0.0, 1.0, 0.0, True))
    assert gram_is_cheaper(T, d_in, d_outs, Costs(1.0, 1e9, 1.0, 0.0, True))
    assert not gram_is_cheaper(T, d_in, d_outs, Costs(1.0, 0.0, 1e9, 0.0, True))
    assert not gram_is_cheaper(T, d_in, d_outs, Costs(1.0, 0.0, 1.0, 1e9, True))


@pytest.mark.parametrize("T", [4, 40])
def test_a_shared_input_serves_all_its_readers(T):
    A, B = random(2, T, 16, 12)
    parts = B.split([6, 3, 3], dim=2)
    shared = shared_input(A)
    for part in parts:
        shared.add_reader(part.shape[2])
    assert gram_is_cheaper(T, 16, [6, 3, 3], BY_PRODUCTS) == (T == 4)
    for part in parts:
        torch.testing.assert_close(shared.squared_norms(part), slow(A, part), rtol=1e-12, atol=0)
    for part, squared in zip(parts, squared_norms(A, parts, BY_PRODUCTS), strict=True):
        torch.testing.assert_close(squared, slow(A, part), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_accumulated_in_float32(dtype):
    A, B = random(2, 40, 64, 64, dtype)
    for T in (8, 40):
        shared = shared_input(A[:, :T])
        shared.add_reader(64)
        result = shared.squared_norms(B[:, :T])
        assert result.dtype == torch.float64
        torch.testing.assert_close(result, slow(A[:, :T], B[:, :T]), rtol=1e-5, atol=0)


def test_cancelling_terms_keep_their_precision():
    # Inputs that are nearly one vector, and output gradients that sum to nearly zero over the positions: the terms of the gram form
    # are 1e8 times larger than their sum, more than float32 resolves.
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(1, 1, 512, generator=generator) + 1e-3 * torch.randn(2, 32, 512, generator=generator)
    B = torch.randn(2, 32, 512, generator=generator)
    B -= B.mean(dim=1, keepdim=True)
    expected = slow(A, B).sqrt()
    by_gram, diagonal = inner_product(gram(A), gram(B))
    assert (by_gram < norms.CANCELLATION * diagonal).all()
    shared = shared_input(A)
    shared.add_reader(512)
    assert gram_is_cheaper(32, 512, [512], BY_PRODUCTS)
    torch.testing.assert_close(shared.squared_norms(B).sqrt(), expected, rtol=1e-5, atol=0)


def test_every_result_above_the_cancellation_limit_is_precise():
    # Sweeps the degree of cancellation across the limit.
    generator = torch.Generator().manual_seed(1)
    base, noise = torch.randn(1, 1, 512, generator=generator), torch.randn(1, 64, 512, generator=generator)
    B = torch.randn(1, 64, 512, generator=generator)
    centred = B - B.mean(dim=1, keepdim=True)
    sides = set()
    for spread in (1.0, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01):
        A = base + spread * noise
        by_gram, diagonal = inner_product(gram(A), gram(centred))
        sides.add(bool(by_gram < norms.CANCELLATION * diagonal))
        shared = shared_input(A)
        shared.add_reader(512)
        torch.testing.assert_close(shared.squared_norms(centred).sqrt(), slow(A, centred).sqrt(), rtol=2e-5, atol=0)
    assert sides == {True, False}


def test_zero_gradients_give_zero():
    A, B = random(2, 4, 64, 64, torch.float32)
    B[1] = 0
    shared = shared_input(A)
    shared.add_reader(64)
    result = shared.squared_norms(B)
    assert result[0] > 0
    assert result[1] == 0
