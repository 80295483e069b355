"""The settings of RL."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from gradprism.checkpoints import is_adapter
from gradprism.environments.prompts import PromptTemplate
from gradprism.rollouts.config import RolloutConfig
from gradprism.runtime.files import read_json
from gradprism.runtime.folders import MANIFEST, differences, flat, plain
from gradprism.training.doctor import ROUNDS_NEEDED, AlarmName
from gradprism.training.settings import TrainingConfig


class RlConfig(RolloutConfig, TrainingConfig):
    """Settings of the RL stage; those of its rollouts are `RolloutConfig`'s."""

    added: ClassVar[frozenset[str]] = TrainingConfig.added | frozenset(
        (
            "decay_rounds",
            "decay_to",
            "timeout_penalty",
            "first_max_steps",
            "growth_rounds",
            "evaluate_sampled",
            "keep_best",
            "stop_when",
            "entropy",
        )
    )

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
    learning_rate: float = Field(default=1e-6, gt=0, description="Learning rate of AdamW after the warm-up.")
    warmup_steps: int = Field(default=0, ge=0, description="Optimizer steps over which the learning rate rises.")
    decay_rounds: int = Field(
        default=0,
        ge=0,
        description="Round at whose end the learning rate, after the warm-up, has fallen along half a cosine, to stay there; 0: none.",
    )
    decay_to: float = Field(default=0.1, ge=0, le=1, description="Part of the learning rate to which it falls.")
    kl: float = Field(default=0.0, ge=0, description="Weight of the KL divergence to the starting checkpoint.")
    entropy: float = Field(
        default=0.0, ge=0, description="Weight of the entropy of the answers' tokens, which a positive weight keeps from falling."
    )
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
    timeout_penalty: float = Field(default=0.0, ge=0, description="Subtracted where an episode runs out of steps.")
    first_max_steps: int | None = Field(
        default=None,
        ge=1,
        description="Actions per episode in the first round, which grow to `max_steps` (AgentGym-RL); default: no growth.",
    )
    growth_rounds: int = Field(default=0, ge=0, description="Rounds over which the actions per episode grow.")
    dynamic_sampling: bool = Field(
        default=False, description="Draw further tasks in place of groups that earn all alike, whatever their penalties (DAPO)."
    )
    dynamic_sampling_limit: float = Field(
        default=4.0, ge=1, description="Groups played per round at most, as a multiple of `tasks_per_round`."
    )
    temperature: float = Field(default=1.0, gt=0, description="Sampling temperature of rollouts.")
    micro_batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Padded tokens per forward and backward pass and device; a longer row is passed alone. Default 8192, on a CPU 2048.",
    )
    evaluate_every: int = Field(default=0, ge=0, description="Rounds between evaluations while training; 0 for none.")
    evaluate_split: str = Field(default="", description="Split to evaluate on; default the environment's dev split.")
    evaluate_tasks: int = Field(default=96, ge=1, description="Tasks per evaluation, played greedily.")
    evaluate_sampled: bool = Field(default=False, description="Evaluate at the rollouts' temperature as well.")
    keep_best: bool = Field(
        default=False, description="End with the weights of the best evaluation, of which the last round has one."
    )
    stop_when: tuple[AlarmName, ...] = Field(
        default=(), description="End at the first of these alarms (docs/training.md lists them)."
    )
    vllm: Literal["off", "colocate", "server"] = Field(
        default="off", description="Generate with vLLM: colocate runs it in each training process, server asks one at --vllm-url."
    )
    vllm_url: str = Field(default="http://localhost:8000", description="Where the server of `vllm serve` answers.")
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
        if self.first_max_steps is not None and not (self.first_max_steps <= self.max_steps and self.growth_rounds):
            raise ValueError(
                f"first_max_steps {self.first_max_steps}: must be at most max_steps {self.max_steps}, with growth_rounds"
            )
        if self.growth_rounds and self.first_max_steps is None:
            raise ValueError(f"growth_rounds {self.growth_rounds}: needs first_max_steps, from which the actions per episode grow")
        for alarm, needs in self._never_raised.items():
            if alarm in self.stop_when:
                raise ValueError(f"stop_when {alarm}: is never raised without {needs}")
        if self.keep_best and not self.evaluate_every:
            raise ValueError("keep_best needs evaluate_every: no other evaluation says which weights are the best")
        if self.evaluate_sampled and not self.evaluate_every:
            raise ValueError("evaluate_sampled needs evaluate_every")
        return self

    @property
    def _never_raised(self) -> dict[AlarmName, str]:
        """Alarms that nothing can raise under these settings, and what they need."""
        unheard: dict[AlarmName, str] = {} if self.kl else {"drift": "kl"}
        if not self.evaluate_sampled:
            unheard["greedy-gap"] = "evaluate_sampled"
        if self.steps_per_round == 1 and self.vllm == "off":
            unheard["clipping"] = "a second update or epoch per round: in the first every ratio is 1"
        return unheard

    @property
    def without_effect(self) -> list[str]:
        """Sentences on settings that change nothing beside the others, where a reader would take them to be in force."""
        total, falls = self.rounds * self.steps_per_round, self.decay_rounds * self.steps_per_round
        needed = {
            "decay_to": (self.decay_rounds, "decay_rounds"),
            "dynamic_sampling_limit": (self.dynamic_sampling, "dynamic_sampling"),
            "gamma": (self.algorithm == "gigpo", "algorithm gigpo"),
            "step_weight": (self.algorithm == "gigpo", "algorithm gigpo"),
            "clip": (
                total > self.rounds or self.vllm != "off",
                "a second update or epoch per round: in the first every ratio is 1",
            ),
            "evaluate_split": (self.evaluate_every, "evaluate_every"),
            "evaluate_tasks": (self.evaluate_every, "evaluate_every"),
            "vllm_url": (self.vllm == "server", "vllm server"),
            "vllm_memory": (self.vllm == "colocate", "vllm colocate"),
        }
        needed["clip_high"] = needed["clip"]
        given = {name: value for name in needed if (value := getattr(self, name)) != type(self).model_fields[name].default}
        told = [f"{name} {value} has no effect without {needed[name][1]}" for name, value in given.items() if not needed[name][0]]
        if self.warmup_steps >= total:
            told.append(
                f"warmup_steps {self.warmup_steps}: the {total} steps of this training end before the learning rate has risen"
            )
        elif 0 < falls <= self.warmup_steps:
            told.append(
                f"decay_rounds {self.decay_rounds} end within the {self.warmup_steps} warmup_steps, after which the rate drops at once"
            )
        early = [alarm for alarm in self.stop_when if self.rounds < ROUNDS_NEEDED.get(alarm, 0)]
        return [*told, *(f"stop_when {alarm} has no effect in fewer than {ROUNDS_NEEDED[alarm]} rounds" for alarm in early)]

    def evaluates_after(self, rounds: int) -> bool:
        """Whether models are evaluated after so many rounds: those that are to be the best after the last one too."""
        return bool(self.evaluate_every) and (rounds % self.evaluate_every == 0 or (self.keep_best and rounds == self.rounds))

    @property
    def evaluations(self) -> int:
        """Number of evaluations while training, that before the first round among them."""
        return 1 + sum(map(self.evaluates_after, range(1, self.rounds + 1))) if self.evaluate_every else 0

    def shortened(self, rounds: int) -> Self:
        """The same training in so many rounds: what changes over rounds does so in proportion."""
        share = rounds / self.rounds
        falling = max(1, round(self.decay_rounds * share)) if self.decay_rounds else 0
        growing = max(1, round(self.growth_rounds * share)) if self.growth_rounds else 0
        return self.model_copy(update={"rounds": rounds, "decay_rounds": falling, "growth_rounds": growing})

    def steps_limit(self, done: int) -> int:
        """Actions per episode of the round after `done` others."""
        if self.first_max_steps is None or done >= self.growth_rounds:
            return self.max_steps
        return self.first_max_steps + (self.max_steps - self.first_max_steps) * done // self.growth_rounds

    def micro_batch(self, device: str) -> int:
        """Padded tokens per pass on a device of this type. A CPU's caches hold the hidden states of a smaller one."""
        return self.micro_batch_tokens or (2048 if device == "cpu" else 8192)

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps of each round."""
        return self.updates_per_round * self.epochs_per_round


def other_prompt(model: Path | str, prompt: PromptTemplate) -> str:
    """`key: trained with → prompt; …` for a model whose folder says that RL trained it with another prompt; empty for any other model."""
    folder = Path(model).parent if is_adapter(str(model)) else Path(model)  # an adapter lies in its training's folder
    trained = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    if not isinstance(trained, dict) or trained.get("command") != "rl":
        return ""
    return differences(flat(trained["config"]["prompt"]), flat(plain(prompt.model_dump())))
