"""The settings of SFT; without torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from gradprism.training.settings import TrainingConfig


class SftConfig(TrainingConfig):
    """Settings of the SFT stage."""

    epochs: float = Field(default=3.0, gt=0, description="Passes over the SFT set.")
    max_steps: int | None = Field(default=None, ge=1, description="Optimizer steps, in place of `epochs`.")
    batch_size: int = Field(default=16, ge=1, description="Trajectories, or packed rows, per forward and backward pass and device.")
    gradient_accumulation: int = Field(default=1, ge=1, description="Batches summed before an optimizer step.")
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1, description="Share of the steps over which the learning rate rises.")
    packing: Literal["off", "auto", "on"] = Field(
        default="off",
        description="Fill rows of the context length with several trajectories, none of which sees another. auto: with flash attention, "
        "which alone gains by it; on: wherever the model keeps them apart.",
    )
    eval_share: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the trajectories that is held out for the loss on them."
    )
    eval_steps: int | None = Field(
        default=None, ge=1, description="Steps between held-out losses; one comes before training and one after it anyhow."
    )
    save_steps: int = Field(
        default=100, ge=0, description="Steps between checkpoints, from which a killed training goes on; 0: none."
    )

    @model_validator(mode="after")
    def _order_is_kept(self) -> Self:
        if self.order == "given" and self.packing != "off":
            raise ValueError("order given: packing fills rows by length, which keeps no order; leave packing off")
        return self
