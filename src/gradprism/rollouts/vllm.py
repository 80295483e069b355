"""Answers from a vLLM engine, whose prefix cache keeps what was read through the turns of an episode."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradprism.rollouts.generator import Generated
from gradprism.runtime.errors import ModelError

# Takes prompts of token ids; gives completions of token ids, and for each of their tokens the log-probabilities of the sampled one
# first or alone. TRL's `VLLMGeneration` and `VLLMClient` are asked through such a function.
Engine = Callable[[list[list[int]]], tuple[list[list[int]], list[list[Any]]]]


class VllmGenerator:
    """See `Generator`. The engine draws from a stream of its own, so a seed does not fix what is played."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.tokens_read = 0

    def generate(
        self, slots: Sequence[int], prompts: Sequence[list[int]], streams: Sequence[np.random.Generator]
    ) -> list[Generated]:
        """One answer per prompt."""
        completions, logprobs = self._engine(list(prompts))
        # What the engine had in its cache is not told; counted as if it had nothing.
        self.tokens_read += sum(map(len, prompts)) + sum(map(len, completions))
        answers = [Generated(list(ids), [_first(x) for x in of_ids]) for ids, of_ids in zip(completions, logprobs, strict=True)]
        if len(answers) != len(prompts) or any(not answer.ids for answer in answers):
            raise ModelError(f"vLLM gave {len(answers)} answers to {len(prompts)} prompts, or an empty one; look at its log")
        return answers


def _first(logprob: Any) -> float:
    """The sampled token's log-probability; one that the engine could not give is NaN, and the loss leaves it uncorrected."""
    value = logprob[0] if isinstance(logprob, Sequence) else logprob
    return float("nan") if value is None else float(value)
