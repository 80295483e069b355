"""Reinforcement learning on routed tasks: TRL's GRPO trainer over multi-turn episodes that our own player plays."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Environment, Task
from gradprism.errors import ConfigError, DataError, MissingFileError
from gradprism.progress import Progress
from gradprism.rollouts.episodes import Episode, PlayConfig, Player
from gradprism.trajectories.rendering import Renderer


class RlConfig(BaseModel):
    """Settings of the RL stage."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int = Field(default=150, ge=1, description="Optimizer steps; each plays `groups` x `rollouts` episodes.")
    groups: int = Field(default=16, ge=1, description="Tasks a step.")
    rollouts: int = Field(default=8, ge=2, description="Episodes a task; advantages are relative to their mean.")
    learning_rate: float = Field(default=1e-6, gt=0, description="Learning rate of AdamW, constant after the warm-up.")
    warmup_steps: int = Field(default=0, ge=0, description="Steps over which the learning rate rises.")
    kl: float = Field(default=0.0, ge=0, description="Weight of the KL divergence to the starting checkpoint.")
    loss: Literal["dapo", "dr_grpo", "grpo"] = Field(
        default="dapo", description="How tokens are weighed: all alike (dapo, dr_grpo), or each episode by its own length (grpo)."
    )
    clip: float = Field(default=0.2, gt=0, description="Clipping range of the probability ratio.")
    iterations: int = Field(default=1, ge=1, description="Optimizer passes over each batch of episodes.")
    temperature: float = Field(default=1.0, gt=0, description="Sampling temperature of rollouts.")
    max_steps: int = Field(default=20, ge=1, description="Actions an episode.")
    max_action_tokens: int = Field(default=16, ge=1, description="Tokens an action.")
    invalid_penalty: float = Field(
        default=0.0, ge=0, description="Subtracted from the reward for every action that the engine refuses."
    )
    micro_batch: int = Field(default=16, ge=1, description="Episodes a forward and backward pass and device.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are clipped to this norm.")
    bf16: bool = Field(default=False, description="Train under bfloat16 autocast.")
    activation_checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass to save memory.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of task order and sampling.")

    @model_validator(mode="after")
    def _micro_batches_fill_a_batch(self) -> Self:
        if self.groups * self.rollouts % self.micro_batch:
            raise ValueError(f"micro_batch {self.micro_batch} must divide groups x rollouts = {self.groups * self.rollouts}")
        return self


def shaped_reward(episode: Episode, config: RlConfig) -> float:
    """The environment's reward less the penalty for refused actions."""
    return episode.reward - config.invalid_penalty * episode.valid.count(False)


def read_tasks(path: Path, environment: Environment) -> list[Task]:
    """The tasks of a route folder's `rl.jsonl`, without repeats; raises `DataError` naming the line that has none."""
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; give the rl.jsonl of a route folder")
    tasks: dict[str, Task] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                task = environment.task(json.loads(line)["task"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path}:{number}: no task of environment {environment.name!r} ({error})") from None
            tasks[task.id] = task
    return list(tasks.values())


def train_rl(
    model: Any,
    renderer: Renderer,
    environment: Environment,
    tasks: Sequence[Task],
    config: RlConfig,
    out: Path,
    *,
    context_length: int,
    workers: int | None = None,
) -> dict[str, Any]:
    """Trains `model` in place with GRPO on `tasks` and writes it with its tokenizer to `out`; returns a summary and the step log.

    Only the tasks are used, never a gold action. Tokens of observations get no loss: TRL receives `env_mask`, which is 1 on the
    tokens that the model chose.
    """
    from transformers import PrinterCallback

    from gradprism.training.callbacks import ProgressCallback, log_history
    from gradprism.training.sft import save_checkpoint

    if not tasks:
        raise ConfigError("no tasks to train on: the route sends nothing to RL; lower the threshold or use another policy")
    play = PlayConfig(
        max_steps=config.max_steps,
        max_action_tokens=config.max_action_tokens,
        temperature=config.temperature,
        context_length=context_length,
        in_flight=config.groups * config.rollouts,
    )
    with SessionPool(environment, workers) as pool, Progress("RL", 0) as progress:
        rollouts = Rollouts(Player(model, renderer, pool, play), {task.id: task for task in tasks}, config)
        trainer = build_trainer(model, renderer, tasks, rollouts, config, out)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ProgressCallback(progress, "reward"))
        trainer.train()
        statistics = rollouts.player.statistics
    save_checkpoint(model, renderer.tokenizer, out)
    # Several optimizer steps learn from one generation.
    history = [{**row, **rollouts.log[step // config.iterations]} for step, row in enumerate(log_history(trainer))]
    tokens = rollouts.tokens * config.iterations
    return {
        "tasks": len(tasks),
        "steps": trainer.state.global_step,
        "episodes": rollouts.episodes,
        "tokens_generated": statistics.tokens_generated,
        "tokens_forward": statistics.tokens_read + tokens,
        "tokens_backward": tokens,
        "environment_steps": statistics.environment_steps,
        "generate_seconds": statistics.generate_seconds,
        "environment_seconds": statistics.environment_seconds,
        "history": history,
    }


class Rollouts:
    """TRL's `rollout_func`: plays the prompts' tasks and hands back tokens, mask and rewards."""

    def __init__(self, player: Player, tasks: dict[str, Task], config: RlConfig) -> None:
        self.player, self.tasks, self.config = player, tasks, config
        self.episodes = 0
        self.tokens = 0
        self.log: list[dict[str, float]] = []

    def __call__(self, prompts: list[list[dict[str, str]]], trainer: Any) -> dict[str, Any]:
        """`prompts` holds one conversation an episode, its only message naming the task."""
        tasks = [self.tasks[prompt[0]["content"]] for prompt in prompts]
        episodes = self.player.play(tasks, seed=self.config.seed + self.episodes)
        self.episodes += len(episodes)
        self.tokens += sum(len(e.prompt_ids) + len(e.completion_ids) for e in episodes)
        rewards = [shaped_reward(e, self.config) for e in episodes]
        groups = [rewards[i : i + self.config.rollouts] for i in range(0, len(rewards), self.config.rollouts)]
        actions = sum(len(e.actions) for e in episodes)
        self.log.append(
            {
                "success": sum(e.success for e in episodes) / len(episodes),
                "episode_steps": actions / len(episodes),
                "invalid_share": sum(e.valid.count(False) for e in episodes) / actions,
                "equal_groups": sum(len(set(group)) == 1 for group in groups) / len(groups),
            }
        )
        return {
            "prompt_ids": [e.prompt_ids for e in episodes],
            "completion_ids": [e.completion_ids for e in episodes],
            "logprobs": [e.logprobs for e in episodes],
            "env_mask": [e.action_mask for e in episodes],
            "episode_reward": rewards,
        }


def episode_reward(completions: list[Any], episode_reward: list[float | None], **_: Any) -> list[float | None]:
    """TRL's reward function: the rewards that `Rollouts` handed back."""
    return episode_reward


def build_trainer(model: Any, renderer: Renderer, tasks: Sequence[Task], rollouts: Any, config: RlConfig, out: Path) -> Any:
    """TRL's `GRPOTrainer` whose prompts are task ids and whose generation is `rollouts`."""
    import os

    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is experimental, and pinned to TRL's minor version
    batch = config.groups * config.rollouts
    dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": task.id}]} for task in tasks])
    arguments = GRPOConfig(
        output_dir=str(out),
        max_steps=config.steps * config.iterations,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=config.warmup_steps,
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=batch // config.micro_batch,
        steps_per_generation=batch // config.micro_batch,
        num_generations=config.rollouts,
        num_iterations=config.iterations,
        max_completion_length=rollouts.player.config.context_length,
        temperature=config.temperature,
        beta=config.kl,
        epsilon=config.clip,
        loss_type=config.loss,
        # Dividing by each group's own spread would make a lone refused action weigh as much as a success; the batch's does not.
        scale_rewards="batch",
        max_grad_norm=config.max_grad_norm,
        bf16=config.bf16,
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that diverged is to be seen
        disable_tqdm=True,
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=False,
        activation_checkpointing=config.activation_checkpointing,
    )
    return GRPOTrainer(
        model=model,
        reward_funcs=episode_reward,
        args=arguments,
        train_dataset=dataset,
        processing_class=renderer.tokenizer,
        rollout_func=rollouts,
    )
