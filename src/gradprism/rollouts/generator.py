"""Where a player's actions come from: this process's model with its key/value cache, or another engine behind the same call."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from gradprism.rollouts.cache import SlotCache
from gradprism.runtime.errors import ModelError


@dataclass(slots=True)
class Generated:
    """An answer's tokens, with the end token where it was reached, and their log-probabilities.

    `text` is what it says, where the tokens were made of it: they need not hold all of it. None: what the tokens say.
    """

    ids: list[int]
    logprobs: list[float]
    text: str | None = None


class Generator(Protocol):
    """Answers conversations; `tokens_read` counts what it has computed.

    `slots` tell which of them go on from an earlier call, so that what was read then can be kept.
    """

    tokens_read: int

    def generate(
        self, slots: Sequence[int], prompts: Sequence[list[int]], streams: Sequence[np.random.Generator]
    ) -> list[Generated]:
        """One answer per prompt; `streams` give the uniform numbers that decide what is drawn, where the engine takes them."""
        ...


class CachedGenerator:
    """The model in this process. `temperature` 0 is greedy.

    What is drawn for a prompt depends on the prompt and its stream alone, up to rounding. Log-probabilities are those of the
    distribution that was sampled (at temperature 0, of the untempered one), computed in float32.
    """

    def __init__(self, model: Any, slots: int, capacity: int, end: int, max_tokens: int, temperature: float) -> None:
        self._cache = SlotCache(model, slots, capacity)
        self._end, self._max_tokens, self._temperature = end, max_tokens, temperature
        self.tokens_read = 0

    def generate(
        self, slots: Sequence[int], prompts: Sequence[list[int]], streams: Sequence[np.random.Generator]
    ) -> list[Generated]:
        """See `Generator`."""
        answers = [Generated([], []) for _ in slots]
        open_rows = list(range(len(slots)))
        logits_BV, read = self._cache.read(slots, prompts)
        for number in range(1, self._max_tokens + 1):
            self.tokens_read += read
            uniform_B = [streams[i].random() for i in open_rows] if self._temperature else []
            for i, token, logprob in zip(open_rows, *self._choose(logits_BV, uniform_B), strict=True):
                answers[i].ids.append(token)
                answers[i].logprobs.append(logprob)
            # An answer's last token is left unread: it is read with what follows it, if anything does.
            open_rows = [i for i in open_rows if answers[i].ids[-1] != self._end]
            if not open_rows or number == self._max_tokens:
                break
            logits_BV, read = self._cache.extend([slots[i] for i in open_rows], [answers[i].ids[-1:] for i in open_rows])
        return answers

    def _choose(self, logits_BV: torch.Tensor, uniform_B: list[float]) -> tuple[list[int], list[float]]:
        if not bool(logits_BV.isfinite().all()):
            raise ModelError("the model's logits are not finite; its weights are broken or the dtype overflows")
        if self._temperature == 0:
            logprobs_BV = logits_BV.log_softmax(-1)
            token_B = logits_BV.argmax(-1)
        else:
            logprobs_BV = (logits_BV / self._temperature).log_softmax(-1)
            token_B = sample(logprobs_BV, torch.tensor(uniform_B, dtype=torch.float64, device=logits_BV.device))
        return token_B.tolist(), logprobs_BV.gather(1, token_B[:, None])[:, 0].tolist()


def sample(logprobs_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """The token [B] at which each row's cumulative probability passes its uniform number; one of probability 0 is never drawn."""
    cumulative_BV = logprobs_BV.double().exp().cumsum(-1)
    target_B1 = (uniform_B * cumulative_BV[:, -1])[:, None]
    return torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0].clamp(max=logprobs_BV.shape[1] - 1)
