"""What of an RL training can be known to fail before anything is written."""

import importlib.util
from typing import Any

from gradprism.runtime.errors import ConfigError, ModelError
from gradprism.training.processes import fsdp_version
from gradprism.training.rl_config import RlConfig
from gradprism.trajectories.rendering import Renderer


def check_rl(config: RlConfig, world: int, model: Any, renderer: Renderer) -> None:
    """Refuses settings under which `world` processes could not train `model`.

    Raises `ConfigError`, and `ModelError` where the tokenizer is another model's.
    """
    if config.tasks_per_round % world:
        raise ConfigError(
            f"tasks_per_round {config.tasks_per_round}: must be a multiple of the {world} processes, so that none shares a group"
        )
    episodes = config.tasks_per_round // world * config.rollouts_per_task
    if config.updates_per_round > episodes:
        raise ConfigError(
            f"updates_per_round {config.updates_per_round}: each of {world} processes plays {episodes} episodes a round"
        )
    if config.context_length is not None and config.max_action_tokens >= config.context_length:
        raise ConfigError(
            f"max_action_tokens {config.max_action_tokens}: leaves no room in a context of {config.context_length} tokens"
        )
    if fsdp_version() and config.vllm == "off":
        raise ConfigError(
            "a sharded model cannot play: its processes would wait for each other's turns; use vllm colocate or server"
        )
    if fsdp_version() == 1 and config.kl and config.lora_rank is None:
        raise ConfigError("kl: version 1 of FSDP does not shard the reference model; use fsdp_version: 2, kl 0 or a lora_rank")
    if config.vllm != "off" and importlib.util.find_spec("vllm") is None:
        raise ConfigError(f"vllm {config.vllm}: vLLM is not installed here; pip install vllm, or vllm off")
    if config.vllm != "off" and renderer.stop_id != renderer.tokenizer.eos_token_id:
        raise ConfigError(
            f"vllm {config.vllm}: stops at the tokenizer's end-of-sequence token {renderer.tokenizer.eos_token!r}, with which the chat "
            "template does not end a turn; make the turn's end the tokenizer's eos_token, or vllm off"
        )
    rows, tokens = model.get_input_embeddings().weight.shape[0], len(renderer.tokenizer)
    if tokens > rows:
        raise ModelError(f"the tokenizer has {tokens} tokens and the model {rows} embeddings: it is another model's tokenizer")
    if config.prompt.history is None:
        renderer.turn_suffix_ids("")  # a template that rewrites earlier turns is refused here
