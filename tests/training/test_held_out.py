"""The held-out loss against a loop over single tokens."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import gradprism as gp
from gradprism.runtime.errors import ConfigError
from gradprism.training.held_out import held_out_loss


@pytest.fixture(scope="module")
def dialogue():
    """The shipped model, and demonstrations of its environment that are more than one batch."""
    environment = gp.make_environment("dialogue")
    return gp.shipped("dialogue-tiny"), gp.collect(environment, environment.tasks("seen", 20), max_steps=12, workers=1)


def losses_by_hand(model, renderer, corpus) -> list[float]:
    """The loss of every response token, a trajectory at a time without padding."""
    losses: list[float] = []
    for trajectory in corpus:
        rendered = renderer.render(trajectory)
        with torch.no_grad():
            logits = model(torch.as_tensor(rendered.input_ids).long()[None]).logits[0].float()
        places = np.flatnonzero(rendered.response_mask)
        losses += [-logits[place - 1].log_softmax(-1)[int(rendered.input_ids[place])].item() for place in places]
    return losses


@pytest.mark.parametrize("context_length", [None, 120])
def test_it_is_the_mean_over_single_tokens_whatever_their_trajectories_weigh(dialogue, context_length):
    path, corpus = dialogue
    renderer, model = gp.Renderer(gp.load_tokenizer(path), context_length), gp.ModelSpec(path).load()
    losses, rendered = losses_by_hand(model, renderer, corpus), [renderer.render(one) for one in corpus]
    of_each = [np.mean(losses_by_hand(model, renderer, [one])) for one in corpus]
    assert len(corpus) > 16 and abs(np.mean(losses) - np.mean(of_each)) > 1e-4, "the mean of means would be seen"
    found = held_out_loss(model, renderer, [replace(one, weight=float(n)) for n, one in enumerate(corpus)])
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert (found.tokens, found.trajectories) == (len(losses), len(corpus))
    assert found.usage.tokens_forward == sum(len(one.input_ids) for one in rendered)
    assert (found.cut > 0) == (context_length is not None)


def test_without_a_demonstration_there_is_no_loss(dialogue):
    path, _ = dialogue
    with pytest.raises(ConfigError, match="no demonstration to measure the loss on"):
        held_out_loss(gp.ModelSpec(path).load(), gp.Renderer(gp.load_tokenizer(path), None), [])
