"""The held-out loss against single tokens."""

from dataclasses import replace

import numpy as np
import pytest

import gradprism as gp
from gradprism.runtime.errors import ConfigError
from gradprism.training.held_out import held_out_loss
from helpers.training import loss_by_hand


@pytest.fixture(scope="module")
def dialogue():
    """The shipped model, and demonstrations of its environment that are more than one batch."""
    environment = gp.make_environment("dialogue")
    return gp.shipped("dialogue-tiny"), gp.collect(environment, environment.tasks("seen", 20), max_steps=12, workers=1)


@pytest.mark.parametrize("context_length", [None, 120])
def test_it_is_the_mean_over_single_tokens_whatever_their_trajectories_weigh(dialogue, context_length):
    path, corpus = dialogue
    renderer, model = gp.Renderer(gp.load_tokenizer(path), context_length), gp.ModelSpec(path).load()
    by_hand, tokens = loss_by_hand(model, renderer, corpus)
    of_each = [loss_by_hand(model, renderer, [one])[0] for one in corpus]
    assert len(corpus) > 16 and abs(by_hand - np.mean(of_each)) > 1e-4, "the mean of means would be seen"
    found = held_out_loss(model, renderer, [replace(one, weight=float(n)) for n, one in enumerate(corpus)])
    assert found.loss == pytest.approx(by_hand, rel=1e-5)
    assert (found.tokens, found.trajectories) == (tokens, len(corpus))
    assert found.usage.tokens_forward == sum(len(renderer.render(one).input_ids) for one in corpus)
    assert (found.cut > 0) == (context_length is not None)


def test_without_a_demonstration_there_is_no_loss(dialogue):
    path, _ = dialogue
    with pytest.raises(ConfigError, match="no demonstration to measure the loss on"):
        held_out_loss(gp.ModelSpec(path).load(), gp.Renderer(gp.load_tokenizer(path), None), [])
