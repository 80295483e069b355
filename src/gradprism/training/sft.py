"""Supervised fine-tuning with TRL on exactly the tokens that the probe's response mask marks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gradprism.errors import ModelError
from gradprism.progress import Progress
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import Renderer


class SftConfig(BaseModel):
    """Settings of the SFT stage."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: float = Field(default=3.0, gt=0, description="Passes over the SFT set.")
    learning_rate: float = Field(default=1e-5, gt=0, description="Peak learning rate of AdamW.")
    batch_size: int = Field(default=16, ge=1, description="Trajectories a step and device.")
    gradient_accumulation: int = Field(default=1, ge=1, description="Batches summed before an optimizer step.")
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1, description="Share of the steps over which the learning rate rises.")
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay of AdamW.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are clipped to this norm.")
    bf16: bool = Field(default=False, description="Train under bfloat16 autocast.")
    activation_checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass to save memory.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of data order and dropout.")


def build_dataset(trajectories: Sequence[Trajectory], renderer: Renderer) -> Any:
    """A `datasets.Dataset` with `input_ids` and `labels`; labels are -100 wherever the response mask is false."""
    from datasets import Dataset

    rendered = [renderer.render(trajectory) for trajectory in trajectories]
    return Dataset.from_dict(
        {
            "input_ids": [r.input_ids.tolist() for r in rendered],
            "labels": [
                [int(token) if marked else -100 for token, marked in zip(r.input_ids, r.response_mask, strict=True)]
                for r in rendered
            ],
        }
    )


def build_trainer(model: Any, renderer: Renderer, dataset: Any, config: SftConfig, out: Path) -> Any:
    """TRL's `SFTTrainer` over a pre-tokenised dataset; it adds no token and changes no label."""
    import math

    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    steps = math.ceil(len(dataset) / (config.batch_size * config.gradient_accumulation)) * config.epochs
    arguments = SFTConfig(
        output_dir=str(out),
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        warmup_steps=round(steps * config.warmup_ratio),
        lr_scheduler_type="cosine",
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.bf16,
        seed=config.seed,
        data_seed=config.seed,
        max_length=None,  # the renderer has cut already, and counted what it cut
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that diverged is to be seen
        disable_tqdm=True,
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=False,
        activation_checkpointing=config.activation_checkpointing,
    )
    return SFTTrainer(model=model, args=arguments, train_dataset=dataset, processing_class=renderer.tokenizer)


def train_sft(model: Any, renderer: Renderer, trajectories: Sequence[Trajectory], config: SftConfig, out: Path) -> dict[str, Any]:
    """Fine-tunes `model` in place and writes it with its tokenizer to `out`; returns a summary with the loss of every step."""
    from transformers import PrinterCallback

    from gradprism.training.callbacks import ProgressCallback, log_history

    dataset = build_dataset(trajectories, renderer)
    trainer = build_trainer(model, renderer, dataset, config, out)
    with Progress("SFT", 0) as progress:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ProgressCallback(progress, "loss"))
        trainer.train()
    save_checkpoint(model, renderer.tokenizer, out)
    history = log_history(trainer)
    tokens = sum(len(ids) for ids in dataset["input_ids"])
    return {
        "trajectories": len(trajectories),
        "steps": trainer.state.global_step,
        "tokens_forward": round(tokens * config.epochs),
        "tokens_backward": round(tokens * config.epochs),
        "first_loss": history[0]["loss"],
        "last_loss": history[-1]["loss"],
        "history": history,
    }


def save_checkpoint(model: Any, tokenizer: Any, out: Path) -> None:
    """Writes model (safetensors) and tokenizer into `out`; raises `ModelError` for weights that are not finite, and writes nothing."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ModelError(f"training diverged: {name} is not finite, so no checkpoint is written; lower the learning rate")
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
