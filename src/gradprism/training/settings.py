"""The settings that SFT and RL share; without torch."""

import importlib.util
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from gradprism.runtime.errors import MissingDependencyError
from gradprism.runtime.settings import Settings

ALL_LINEAR = "all-linear"
Tracker = Literal["tensorboard", "trackio", "wandb"]
# Modules of which any one will do, as accelerate's trackers have it.
_MODULES: dict[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}


class LoraSettings(Settings):
    """Settings of LoRA (arXiv 2106.09685); without a rank all weights are trained."""

    lora_rank: int | None = Field(default=None, ge=1, description="Train LoRA adapters of this rank; default: all weights.")
    lora_alpha: float | None = Field(default=None, gt=0, description="Adapters count alpha / rank times; default twice the rank.")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="Share of an adapter's inputs that is dropped in training.")
    lora_targets: tuple[str, ...] = Field(
        default=(ALL_LINEAR,),
        min_length=1,
        description="Modules that get adapters, by the end of their names; all-linear: every linear layer but the output head.",
    )

    @model_validator(mode="after")
    def _rank_is_given(self) -> Self:
        fields = {"lora_alpha", "lora_dropout", "lora_targets"}
        for name in sorted(fields if self.lora_rank is None else ()):
            if getattr(self, name) != LoraSettings.model_fields[name].default:
                raise ValueError(f"{name} needs lora_rank")
        return self


class TrainingConfig(LoraSettings):
    """Settings of every training: optimizer, precision, checkpoints, seed, and where its numbers go besides `log.jsonl`."""

    # Settings that came when there were results already; at their defaults they change none.
    added: ClassVar[frozenset[str]] = frozenset(("order",))

    order: Literal["shuffled", "given"] = Field(
        default="shuffled",
        description="Order of the data in the first pass over it: shuffled, or as it is given; later passes are shuffled.",
    )
    track: tuple[Tracker, ...] = Field(
        default=(), description="Also send the log to tensorboard (below the output folder), trackio or wandb."
    )
    learning_rate: float = Field(default=1e-5, gt=0, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay of AdamW, on matrices alone.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are clipped to this norm.")
    bf16: bool = Field(default=False, description="Train under bfloat16 autocast, for devices that compute in it.")
    activation_checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass to save memory.")
    keep_checkpoints: bool = Field(default=False, description="Keep all checkpoints, also when the training has finished.")
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="Seed of data order, sampling, dropout, adapters and the held-out share."
    )


def check_trackers(settings: TrainingConfig) -> None:
    """Raises `MissingDependencyError` for a tracker that is not installed."""
    for tracker in settings.track:
        # A folder of that name in the working directory, as wandb leaves one, has no origin.
        specs = [importlib.util.find_spec(module) for module in _MODULES[tracker]]
        if not any(spec and spec.origin for spec in specs):
            raise MissingDependencyError(f"track: {tracker} is not installed; install it with: pip install {tracker}")
