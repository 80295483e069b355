"""Answers from a vLLM engine, whose prefix cache keeps what was read through the turns of an episode."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from trl.generation import vllm_client, vllm_generation

from gradprism.rollouts.generator import Generated
from gradprism.runtime.errors import ModelError

# Takes prompts of token ids; gives completions of token ids, and for each of their tokens the log-probabilities of the sampled one
# first or alone.
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


class TrainedVllm:
    """vLLM with the weights of a model that is being trained, through TRL's client: in each process, or one server for all.

    `sync` brings it the weights of now; all processes must call it. No other call waits for another process: their episodes take
    different numbers of turns.
    """

    def __init__(
        self, model: Any, accelerator: Any, tokenizer: Any, *, url: str | None, memory: float, max_tokens: int, context_length: int
    ) -> None:
        """Without `url` each process runs an engine of its own in the share `memory` of its device."""
        self._max_tokens, self._accelerator = max_tokens, accelerator
        self._generation = vllm_generation.VLLMGeneration(
            model=model,
            accelerator=accelerator,
            processing_class=tokenizer,
            mode="colocate" if url is None else "server",
            server_base_url=url,
            gpu_memory_utilization=memory,
            max_model_length=context_length,
            enable_sleep_mode=False,  # it would wake and sleep at every turn
            max_completion_length=max_tokens,
        )
        # Every process asks by a client of its own; TRL's, in the first, also sends the weights.
        self._client = None if url is None else vllm_client.VLLMClient(base_url=url)

    def sync(self) -> None:
        """Brings the engine the model's weights."""
        self._generation.sync_weights()
        self._accelerator.wait_for_everyone()  # the first process sends a server the weights, and all ask it

    def generator(self, temperature: float) -> VllmGenerator:
        """A generator of the engine's answers."""
        return VllmGenerator(lambda prompts: self._ask(prompts, temperature))

    def _ask(self, prompts: list[list[int]], temperature: float) -> tuple[list[list[int]], list[list[Any]]]:
        if self._client is not None:
            said = self._client.generate(prompts, temperature=temperature, max_tokens=self._max_tokens, logprobs=0)
            return said["completion_ids"], said["logprobs"]
        self._generation.temperature = temperature
        _, completions, logprobs, _ = self._generation.generate(prompts, None, 1)
        return completions, logprobs


def _first(logprob: Any) -> float:
    """The sampled token's log-probability; one that the engine could not give is NaN, and the loss leaves it uncorrected."""
    value = logprob[0] if isinstance(logprob, Sequence) else logprob
    return float("nan") if value is None else float(value)
