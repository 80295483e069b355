"""The core of both trainings: learning rates, weight decay, divergence."""

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
)

from gradprism.runtime.errors import ModelError
from gradprism.training.loop import Loop, constant, cosine
from gradprism.training.settings import TrainingConfig
from helpers.tiny import tiny_qwen3


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_learning_rates_are_those_of_transformers(warmup):
    for schedule, make in (
        (cosine(30, warmup), lambda optimizer: get_cosine_schedule_with_warmup(optimizer, warmup, 30)),
        (cosine(20, warmup, 0.25), lambda o: get_cosine_with_min_lr_schedule_with_warmup(o, warmup, 20, min_lr_rate=0.25)),
        (constant(warmup), lambda optimizer: get_constant_schedule_with_warmup(optimizer, warmup)),
    ):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        theirs, expected = make(optimizer), []
        for _ in range(20):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            theirs.step()
        assert [schedule(step) for step in range(20)] == pytest.approx(expected)


def step(loop: Loop, factor: float) -> None:
    """An optimizer step on a loss whose gradient is `factor` for every weight."""
    loop.begin_step()
    with loop.forward_pass():
        loss = factor * torch.stack([p.sum() for p in loop.model.parameters()]).sum()
        loop.backward(loss)
    loop.update(loss.item(), 1, 1)


def test_matrices_decay_and_vectors_do_not(tmp_path):
    model = tiny_qwen3(20)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loop = Loop(model, TrainingConfig(weight_decay=0.1, learning_rate=0.01), tmp_path, constant(0), device="cpu")
    step(loop, 0.0)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (1 - 0.01 * 0.1 * (p.ndim > 1)))


def test_a_step_that_diverges_changes_no_weight(tmp_path):
    model = tiny_qwen3(20)
    loop = Loop(model, TrainingConfig(), tmp_path, constant(0), device="cpu")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(ModelError, match=r"^step 1: training diverged: the loss is (nan|inf)"):
        step(loop, float("inf"))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_checkpoint_gives_weights_moments_and_state_back(tmp_path):
    def build() -> Loop:
        return Loop(tiny_qwen3(20), TrainingConfig(learning_rate=0.01), tmp_path, cosine(9, 2), device="cpu")

    first = build()
    for factor in (1.0, -2.0, 0.5):
        step(first, factor)
    first.save({"drawn": 5})
    second = build()
    assert second.restore(3) == {"drawn": 5}
    for loop in (first, second):
        step(loop, 3.0)
    for mine, theirs in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_weights_that_never_had_a_gradient_go_on_without_moments(tmp_path):
    def build() -> Loop:
        model = tiny_qwen3(20)
        model.unused = torch.nn.Linear(2, 2)
        torch.nn.init.ones_(model.unused.weight)
        return Loop(model, TrainingConfig(learning_rate=0.01), tmp_path, cosine(9, 2), device="cpu")

    def used_step(loop: Loop) -> None:
        loop.begin_step()
        loop.backward(torch.stack([p.sum() for n, p in loop.model.named_parameters() if "unused" not in n]).sum())
        loop.update(1.0, 1, 1)

    first = build()
    used_step(first)
    first.save()
    second = build()
    second.restore(1)
    for loop in (first, second):
        used_step(loop)
        step(loop, 3.0)  # now all have one
    for mine, theirs in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
