"""A trial of a model on a few tokens before it is probed: whether it is causal, and what its logits are when nothing is skipped."""

from typing import Any

import torch
from torch import Tensor

from gradprism.passes import failures_named
from gradprism.runtime.errors import ModelError

_LENGTH, _TAIL = 24, 8


@torch.no_grad()
def check_causal(model: Any, vocabulary: int, device: torch.device) -> Tensor:
    """The logits `[1, T, V]` of the tokens of `trial_tokens`.

    Raises `ModelError` where later tokens change the logits of earlier ones: padding would then change norms, and targets be seen.
    """
    ids = trial_tokens(vocabulary, device)
    other = ids.clone()
    other[:, -_TAIL:] = (other[:, -_TAIL:] + 1) % vocabulary
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with failures_named(model):
            logits, changed = (model(input_ids=each, use_cache=False).logits.float() for each in (ids, other))
    finally:
        for module, training in modes:
            module.training = training
    if logits.shape[:2] != ids.shape:
        raise ModelError(
            f"{type(model).__name__}: does not give logits for each of its tokens; the probe needs a causal language model"
        )
    if differ(logits[:, :-_TAIL], changed[:, :-_TAIL], model):
        raise ModelError(
            f"{type(model).__name__}: is not causal, as it is loaded: later tokens change what it makes of earlier ones; "
            "the probe needs a causal language model"
        )
    return logits


def trial_tokens(vocabulary: int, device: torch.device) -> Tensor:
    """A few tokens `[1, T]` of the vocabulary, each another than the one before."""
    return (torch.arange(_LENGTH, device=device) * 7 + 3).remainder(vocabulary)[None]


def differ(some: Tensor, others: Tensor, model: Any) -> bool:
    """True where logits differ by more than the model's arithmetic rounds."""
    is_exact = model.dtype in (torch.float32, torch.float64) and not getattr(model, "is_quantized", False)
    bound = (1e-4 if is_exact else 0.1) * others.abs().max()
    return bool((some - others).abs().max() > bound)
