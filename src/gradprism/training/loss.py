"""The clipped policy gradient, with the KL divergence to where the training began and the entropy of what is sampled from."""

import torch
from torch import Tensor

from gradprism.training.batches import Batch
from gradprism.training.rl_config import RlConfig

CORRECTION_LIMIT = 3.0  # of truncated importance sampling


def policy_loss(logprobs: Tensor, entropy: Tensor, batch: Batch, config: RlConfig) -> tuple[Tensor, Tensor]:
    """The loss of a batch, to be added over batches and processes, and sums over its tokens [3]: KL divergence, clipped below, above.

    `logprobs` [K] are those of the actions' tokens under the model, `entropy` [K] that of the distribution of each (nats). A token's
    loss is −min(r·A, clip(r)·A), r its probability over the one before the round's first update (PPO, arXiv 1707.06347), corrected for
    another engine's sampling, plus `config.kl` times the low-variance estimate of the divergence (GRPO, 2402.03300, eq. 4) times r,
    which makes its gradient unbiased (2512.02556), less `config.entropy` times the entropy (PPO, eq. 9).
    """
    old = logprobs.detach() if batch.old is None else batch.old
    ratio, advantages = (logprobs - old).exp(), batch.advantages
    low, high = 1 - config.clip, 1 + (config.clip if config.clip_high is None else config.clip_high)
    loss = -torch.min(ratio * advantages, ratio.clamp(low, high) * advantages)
    if batch.correction is not None:
        loss = loss * batch.correction
    divergence = torch.zeros_like(loss)
    if batch.reference is not None:
        difference = batch.reference - logprobs
        divergence = ratio * (difference.exp() - difference - 1)
        loss = loss + config.kl * divergence
    if config.entropy:  # without it, the entropy's gradient would be computed to be multiplied by 0
        loss = loss - config.entropy * entropy
    below, above = (ratio < low) & (advantages < 0), (ratio > high) & (advantages > 0)
    sums = torch.stack([x.detach().sum().double() for x in (divergence, below, above)]) * bool(batch.actions)
    return (loss * batch.weights).sum(), sums


def sampling_correction(batch: Batch) -> Tensor:
    """Probability [K] of each token under this model over that with which another engine sampled it, at most `CORRECTION_LIMIT`.

    Truncated importance sampling; what the engine could not tell is left uncorrected.
    """
    assert batch.old is not None
    return (batch.old - batch.sampled).nan_to_num(nan=0.0).exp().clamp(max=CORRECTION_LIMIT)
