"""The settings of RL."""

from pathlib import Path
from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from gradprism.environments.prompts import PromptTemplate
from gradprism.rollouts.config import RolloutConfig
from gradprism.runtime.files import read_json
from gradprism.runtime.folders import MANIFEST, differences, flat, plain
from gradprism.training.settings import TrainingConfig


class RlConfig(RolloutConfig, TrainingConfig):
    """Settings of the RL stage; those of its rollouts are `RolloutConfig`'s."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    algorithm: Literal["grpo", "gigpo"] = Field(
        default="grpo", description="Whose advantages: grpo compares episodes of a task, gigpo also steps that start alike."
    )
    rounds: int = Field(
        default=150, ge=1, description="Rounds of rollouts; each plays `tasks_per_round` x `rollouts_per_task` episodes."
    )
    tasks_per_round: int = Field(default=16, ge=1, description="Tasks per round, over all processes.")
    rollouts_per_task: int = Field(default=8, ge=2, description="Episodes per task; advantages are relative to their mean.")
    updates_per_round: int = Field(default=1, ge=1, description="Optimizer steps into which each round's episodes are split.")
    epochs_per_round: int = Field(default=1, ge=1, description="Passes over each round's episodes.")
    learning_rate: float = Field(default=1e-6, gt=0, description="Learning rate of AdamW, constant after the warm-up.")
    warmup_steps: int = Field(default=0, ge=0, description="Optimizer steps over which the learning rate rises.")
    kl: float = Field(default=0.0, ge=0, description="Weight of the KL divergence to the starting checkpoint.")
    loss: Literal["dapo", "dr_grpo", "grpo"] = Field(
        default="dapo",
        description="How tokens are weighed: all alike (dapo, dr_grpo), or each training row by its own length (grpo).",
    )
    clip: float = Field(default=0.2, gt=0, description="Clipping range of the probability ratio.")
    clip_high: float | None = Field(default=None, gt=0, description="Upper clipping range, where it differs (DAPO's 0.28).")
    advantage_scale: Literal["group", "batch", "none"] = Field(
        default="batch",
        description="What advantages are divided by: the std of their group, of the batch, or nothing. With penalties a group's own std "
        "makes a lone refused action weigh as much as a success.",
    )
    gamma: float = Field(default=0.95, gt=0, le=1, description="Discount of gigpo's step returns.")
    step_weight: float = Field(default=1.0, ge=0, description="Weight of gigpo's step advantage.")
    reward: Literal["environment", "success", "score"] = Field(
        default="environment", description="What is rewarded: the environment's own rewards, success, or the final score."
    )
    reward_scale: float = Field(default=1.0, gt=0, description="Factor of the reward, before penalties.")
    invalid_penalty: float = Field(default=0.0, ge=0, description="Subtracted for every action that the environment refuses.")
    malformed_penalty: float = Field(default=0.0, ge=0, description="Subtracted for every answer of the wrong form.")
    dynamic_sampling: bool = Field(
        default=False, description="Draw further tasks in place of zero-variance groups, which have no gradient (DAPO)."
    )
    dynamic_sampling_limit: float = Field(
        default=4.0, ge=1, description="Groups played per round at most, as a multiple of `tasks_per_round`."
    )
    temperature: float = Field(default=1.0, gt=0, description="Sampling temperature of rollouts.")
    micro_batch_tokens: int = Field(
        default=8192, ge=1, description="Padded tokens per forward and backward pass and device; a longer row is passed alone."
    )
    evaluate_every: int = Field(default=0, ge=0, description="Rounds between evaluations while training; 0 for none.")
    evaluate_split: str = Field(default="", description="Split to evaluate on; default the environment's first choice.")
    evaluate_tasks: int = Field(default=96, ge=1, description="Tasks per evaluation, played greedily.")
    vllm: Literal["off", "colocate", "server"] = Field(
        default="off", description="Generate with vLLM: colocate runs it in each training process, server asks one at --vllm-url."
    )
    vllm_url: str = Field(default="http://localhost:8000", description="Where `trl vllm-serve` answers.")
    vllm_memory: float = Field(default=0.4, gt=0, lt=1, description="Share of the device that a colocated vLLM may take.")
    save_every: int = Field(default=10, ge=1, description="Rounds between checkpoints.")

    @model_validator(mode="after")
    def _limits(self) -> Self:
        episodes = self.tasks_per_round * self.rollouts_per_task
        if self.updates_per_round > episodes:
            raise ValueError(
                f"updates_per_round {self.updates_per_round}: more than tasks_per_round x rollouts_per_task = {episodes} episodes"
            )
        if self.lora_dropout:
            raise ValueError(
                "lora_dropout: episodes are played without dropout, and the ratio of probabilities would be noise; use 0"
            )
        return self

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps of each round."""
        return self.updates_per_round * self.epochs_per_round


def other_prompt(model: Path | str, prompt: PromptTemplate) -> str:
    """`key: trained with → prompt; …` for a model whose folder says that RL trained it with another prompt; empty for any other model."""
    manifest = Path(model) / MANIFEST
    trained = read_json(manifest) if manifest.is_file() else {}
    if trained.get("command") != "rl":
        return ""
    return differences(flat(trained["config"]["prompt"]), flat(plain(prompt.model_dump())))
