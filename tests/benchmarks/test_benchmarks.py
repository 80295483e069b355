import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import probe_cost
import score_cost
from gradprism.concentration import METRICS
from gradprism.probing.pass_scores import PASS_SCORES
from gradprism.probing.prober import Prober
from gradprism.trajectories.rendering import RenderedTrajectory
from peers.case import RESPONSE_SHARE, Sizes, build_case, build_model, response_mask
from peers.loops import norms_by_autograd
from peers.measure import highest_sum, peak_bytes
from peers.products import Group, count
from peers.ways import WAYS

SIZES = Sizes(hidden=32, layers=2, ffn=48, heads=4, kv_heads=2, head_dim=16, vocabulary=97)
WITH_NORMS = [way for way in WAYS if way.gives_norms]


@pytest.fixture(scope="module")
def case():
    return build_case(build_model(SIZES, torch.float64, "cpu", seed=3), n=3, T=41, seed=5)


def by_definition(case, sample):
    """Loss and norms of one sample, token by token, every weight trainable, with nothing from the benchmark but the case."""
    trajectory: RenderedTrajectory = case.trajectories[sample]
    ids = torch.from_numpy(trajectory.input_ids.astype(np.int64))
    for parameter in case.model.parameters():
        parameter.requires_grad_(True)
    log_probabilities = case.model(input_ids=ids[None, :-1]).logits[0].log_softmax(-1)
    loss = torch.stack([-log_probabilities[t - 1, ids[t]] for t in range(1, len(ids)) if trajectory.response_mask[t]]).mean()
    gradients = torch.autograd.grad(loss, case.weights)
    return loss.item(), [gradient.square().sum().sqrt().item() for gradient in gradients]


@pytest.fixture(scope="module")
def expected(case):
    losses, norms = zip(*(by_definition(case, sample) for sample in range(3)), strict=True)
    return np.array(losses), np.array(norms)


def test_the_reference_and_the_losses_follow_the_definition(case, expected):
    losses, norms = expected
    np.testing.assert_allclose(norms_by_autograd(case).numpy(), norms, rtol=1e-10)
    np.testing.assert_allclose(case.losses().detach().numpy(), losses, rtol=1e-10)
    np.testing.assert_allclose(case.losses(slice(1, 2)).detach().numpy(), losses[1:2], rtol=1e-10)


@pytest.mark.parametrize("way", WITH_NORMS, ids=lambda way: way.name)
def test_every_way_gives_the_norms_of_autograd_and_leaves_the_model_as_it_was(way, case, expected):
    if not way.installed:
        pytest.skip(f"{way.package} is not installed")
    flags = {name: parameter.requires_grad for name, parameter in case.model.named_parameters()}
    for _ in range(2):  # what one use leaves behind would disturb the next
        with way.open(case) as run:
            first, second = run().clone(), run()
        # The model's own loss, which LESS uses, is taken in float32.
        rtol = 1e-6 if way.name == "less" else 1e-9
        np.testing.assert_allclose(first.numpy(), expected[1], rtol=rtol)
        np.testing.assert_allclose(second.numpy(), expected[1], rtol=rtol)
    assert {name: parameter.requires_grad for name, parameter in case.model.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in case.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in case.model.modules())
    assert not any(module.training for module in case.model.modules())


@pytest.mark.parametrize("name", ["ours", "ours-checkpointed"])
def test_gradprism_is_timed_without_its_trial_of_the_model(name, case):
    (way,) = [way for way in WAYS if way.name == name]
    calls = []
    handle = case.model.register_forward_hook(lambda module, args, output: calls.append(name))
    try:
        with way.open(case) as run:
            calls.clear()
            run()
    finally:
        handle.remove()
    assert calls == [name]


@pytest.mark.parametrize("name", ["inference", "floor"])
def test_the_floors_run_the_same_losses(name, case, expected):
    (way,) = [way for way in WAYS if way.name == name]
    with way.open(case) as run:
        losses = run()
    np.testing.assert_allclose(losses.numpy(), expected[0], rtol=1e-10)
    assert not losses.requires_grad


def test_the_floor_reaches_every_output_and_no_weight(case):
    (floor,) = [way for way in WAYS if way.name == "floor"]
    reached, handles = set(), []
    for path, module in zip(case.paths, case.modules, strict=True):

        def watch(module, args, output, path=path):
            output.register_hook(lambda gradient: reached.add(path))

        handles.append(module.register_forward_hook(watch))
    with floor.open(case) as run:
        run()
        assert all(parameter.grad is None for parameter in case.model.parameters())
    for handle in handles:
        handle.remove()
    assert reached == set(case.paths)


def test_matrices_are_in_the_order_of_the_probers_units(case):
    prober = Prober(case.model)
    assert [path.removeprefix("model.").replace("self_attn.", "").replace("mlp.", "") for path in case.paths] == prober.unit_names
    assert [weight.numel() for weight in case.weights] == [unit.n_parameters for unit in prober.units]


@pytest.mark.parametrize("T", [1, 2, 5, 40, 256, 1024])
def test_masks_have_the_share_of_responses_and_end_in_one(T):
    rng = np.random.default_rng(T)
    for _ in range(20):
        mask = response_mask(T, rng)
        assert mask.shape == (T + 1,)
        assert mask.sum() == max(1, round(RESPONSE_SHARE * T))
        assert mask[-1]
        assert not mask[0]


def test_the_same_seed_gives_the_same_case_and_another_seed_another(case):
    again, other = (build_case(case.model, 3, 41, seed) for seed in (5, 6))
    for name in ("input_ids", "columns", "targets"):
        assert torch.equal(getattr(case, name), getattr(again, name))
    assert not torch.equal(case.input_ids, other.input_ids)


def test_peak_memory_is_counted_to_the_byte():
    def run():
        first = torch.empty(1000)
        second = torch.empty(500, dtype=torch.float64)
        del first
        third = torch.empty(100)
        return second.numel() + third.numel()

    assert peak_bytes(run, "cpu") == (8000, 600)
    assert highest_sum([5, -5, 3, 4, -7]) == 7
    assert highest_sum([]) == 0


def test_products_follow_the_multiplications_of_a_real_pass():
    """Counts the products of linear layers in a forward pass, and compares the formulas with a sum over the model's own weights."""
    model = build_model(SIZES, torch.float32, "cpu", seed=0)
    T, R = 40, 7
    linear = [module for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    weights = sum(module.weight.numel() for module in linear)
    attention = 0
    for t in range(T):  # each position attends to itself and those before it: a score and a value, then two gradients of each
        attention += 3 * 2 * (t + 1) * SIZES.heads * SIZES.head_dim
    products = count(SIZES, T, R)
    assert products.floor == 2 * T * weights + SIZES.layers * attention + 2 * R * 32 * 97
    assert products.outer == T * weights
    shared = SIZES.layers * ((32 + 64 + 32 + 32) + (64 + 32) + (32 + 48 + 48) + (48 + 32))
    assert products.gram == T * (T + 1) // 2 * shared


def test_each_group_takes_the_cheaper_form():
    narrow, wide = Group(4, (2,)), Group(4000, (4000,))
    assert narrow.norms(100) == narrow.outer(100) == 800
    assert wide.norms(100) == wide.gram(100) == 5050 * 8000


def test_what_is_needed_leaves_out_the_first_input_gradients_and_the_top_rows():
    first = 32 * (64 + 32 + 32)
    by_rows = 2 * (32 * 64 + 64 * 32 + 3 * 32 * 48)  # forward and backward of queries, output and feed-forward
    attention = 3 * 2 * 64 * (40 * 41 // 2)
    every, few = count(SIZES, 40, 40), count(SIZES, 40, 10)
    assert every.floor - every.needed_floor == 40 * first
    assert few.floor - few.needed_floor == 40 * first + 30 * by_rows + attention * 3 // 4
    assert every.needed_norms >= few.needed_norms
    assert few.needed_ratio < few.plain_ratio


def test_the_bounds_in_the_document_are_those_printed(capsys):
    document = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
    assert probe_cost.main(["--bound", "--lengths", "256,1024,4096"]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed.count("\n") == 10
    assert printed in document


TINY = "--hidden 32 --layers 2 --ffn 48 --heads 4 --kv-heads 2 --head-dim 8 --vocabulary 50 --lengths 24,12 --tokens 48 --repeats 2"


def test_one_run_prints_and_writes_what_it_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("peers.ways.find_spec", lambda package: None)
    out = tmp_path / "cost.json"
    assert probe_cost.main([*TINY.split(), "--dtypes", "float32", "--peers", "loop,opacus", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert [(cell["dtype"], cell["T"], cell["n"], cell["R"]) for cell in result["cells"]] == [
        ("float32", 24, 2, 4),
        ("float32", 12, 4, 2),
    ]
    for cell in result["cells"]:
        ways = cell["ways"]
        assert set(ways) == {"inference", "floor", "ours", "ours-checkpointed", "loop", "opacus"}
        assert ways["opacus"] == {"status": "not installed", "difference": None, "peak_bytes": None, "seconds": []}
        assert ways["ours"]["difference"] < 1e-4
        assert ways["loop"]["difference"] < 1e-4
        assert ways["floor"]["difference"] is None
        assert all(len(way["seconds"]) == 2 for name, way in ways.items() if name != "opacus")
        assert 0 < ways["inference"]["peak_bytes"] < ways["floor"]["peak_bytes"]
    printed = capsys.readouterr().out
    assert "| Opacus ghost norms | not installed |" in printed
    times = result["cells"][0]["ways"]
    ratios = [a / b for a, b in zip(times["loop"]["seconds"], times["ours"]["seconds"], strict=True)]
    (row,) = [line for line in printed.splitlines() if line.startswith("| loop over samples")][:1]
    assert f"| {np.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] |" in row


def test_norms_that_are_not_autograds_are_not_timed(capsys, monkeypatch):
    monkeypatch.setattr("peers.loops.gradient_norms", lambda gradients: 1.5 * gradients.flatten(1).double().norm(dim=1))
    assert probe_cost.main([*TINY.split(), "--dtypes", "float32", "--peers", "loop"]) == 2
    assert "loop over samples, weight gradients: its norms differ from autograd's by 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--peers", "nobody"], "--peers nobody: choose among gram,"),
        (["--lengths", "12,x"], "--lengths x: must be whole numbers"),
        (["--dtypes", "int8"], "--dtypes int8: choose among"),
        (["--repeats", "0"], "must be at least 1"),
        (["--clock", "cpu", "--threads", "2"], "--clock cpu: counts the time of all threads"),
    ],
)
def test_mistakes_are_answered_with_one_line(arguments, words, capsys):
    assert probe_cost.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_every_metric_is_priced():
    taken = score_cost.seconds_of(np.random.default_rng(0).random((10, 14)), layers=2, repeats=3)
    assert taken.keys() == set(METRICS) and all(len(seconds) == 3 for seconds in taken.values())


def test_every_score_of_the_pass_is_priced():
    taken = score_cost.seconds_of_passes(SIZES, T=20, tokens=40, repeats=2)
    assert taken.keys() == {"none", "all", *PASS_SCORES} and all(len(seconds) == 2 for seconds in taken.values())
