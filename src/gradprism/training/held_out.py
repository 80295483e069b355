"""The loss of a model on demonstrations that it is not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradprism.runtime.errors import ConfigError
from gradprism.runtime.usage import Usage
from gradprism.training.head import add_head, places_of, score_tokens
from gradprism.training.sft_data import Given, Row, tensors
from gradprism.trajectories.corpus import Corpus
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import Renderer

_BATCH = 16  # demonstrations per forward pass


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """Mean loss in nats over `tokens` response tokens of `trajectories`, each token counted alike; `cut` others lie past the context."""

    loss: float
    tokens: int
    trajectories: int
    cut: int
    usage: Usage


@torch.no_grad()
def held_out_loss(model: Any, renderer: Renderer, demonstrations: Corpus | Sequence[Trajectory]) -> HeldOutLoss:
    """The mean loss over all response tokens of the demonstrations that the renderer's context holds, whatever they weigh in SFT.

    Gives the model the head of `score_tokens`, and leaves it in evaluation mode. What of a corpus with `on_bad` of `skip` cannot be
    rendered is left out. Raises `ConfigError` where there is no demonstration, and what rendering raises.
    """
    rendered = sorted(Given.of(demonstrations).rendered(renderer), key=lambda one: -len(one.input_ids))
    if not rendered:
        raise ConfigError("no demonstration to measure the loss on: the files hold none, or the expert solved no task; give others")
    add_head(model)
    model.eval()
    rows = [[one] for one in rendered]
    total = sum(float(summed_loss(model, model, rows[at : at + _BATCH], model.device)) for at in range(0, len(rows), _BATCH))
    tokens = sum(one.n_targets for one in rendered)
    read = Usage(tokens_forward=sum(len(one.input_ids) for one in rendered))
    return HeldOutLoss(total / tokens, tokens, len(rendered), sum(one.n_truncated for one in rendered), read)


def summed_loss(model: Any, unwrapped: Any, rows: Sequence[Row], device: torch.device) -> Tensor:
    """Sum of the losses of all response tokens of rows that are not packed, in nats: a scalar, float64.

    `unwrapped` is `model` without what DDP or FSDP has put around it.
    """
    inputs, chosen = tensors(rows, device, packed=False)
    found: Any = score_tokens(model, unwrapped, inputs, places_of(inputs["input_ids"], chosen))
    return -found.log_probs.double().sum()
