"""Supervised fine-tuning with TRL on exactly the tokens that the probe's response mask marks."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gradprism.runtime.errors import ConfigError, ModelError
from gradprism.runtime.progress import Progress, quiet
from gradprism.training.adapters import LoraSettings, peft_config
from gradprism.training.tracking import TrackingSettings, check_trackers, read_log, tracking_arguments
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import RenderedTrajectory, Renderer

_NEVER = 2**31  # steps


class SftConfig(LoraSettings, TrackingSettings):
    """Settings of the SFT stage."""

    epochs: float = Field(default=3.0, gt=0, description="Passes over the SFT set.")
    max_steps: int | None = Field(default=None, ge=1, description="Optimizer steps, in place of `epochs`.")
    learning_rate: float = Field(default=1e-5, gt=0, description="Peak learning rate of AdamW.")
    batch_size: int = Field(default=16, ge=1, description="Trajectories, or packed rows, a forward and backward pass and device.")
    gradient_accumulation: int = Field(default=1, ge=1, description="Batches summed before an optimizer step.")
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1, description="Share of the steps over which the learning rate rises.")
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay of AdamW.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are clipped to this norm.")
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
    keep_checkpoints: bool = Field(default=False, description="Keep all checkpoints, also when the training has finished.")
    bf16: bool = Field(default=False, description="Train under bfloat16 autocast.")
    activation_checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass to save memory.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of data order, dropout, adapters and the held-out share.")


def train_sft(
    model: Any,
    renderer: Renderer,
    trajectories: Sequence[Trajectory],
    config: SftConfig,
    out: Path,
    *,
    held_out: Sequence[Trajectory] = (),
    device: str = "auto",
    on_existing: Literal["resume", "replace", "fail"] = "resume",
) -> dict[str, Any]:
    """Fine-tunes `model` in place and writes it with its tokenizer to `out`; returns a summary with the log of every step.

    `held_out` trajectories are never learnt; without them `config.eval_share` of `trajectories` is taken. The model may lie on the
    CPU: the trainer moves it to `device`, or shards it as accelerate's configuration says. Under `torchrun` or `accelerate launch`
    every process calls this with the same arguments. A training that was killed goes on from its last checkpoint, and gives what it
    would have given; one that has finished is not repeated (`reused`).

    Raises `ConfigError`, `ModelError` or `FolderInUseError` before anything is trained; `ModelError` at the step that diverges.
    """
    from gradprism.training.callbacks import LogCallback, ProgressCallback
    from gradprism.training.checkpoints import decide, describe_training, save_trained, sole_training
    from gradprism.training.processes import join_processes

    check_trackers(config)
    ranks = join_processes(device)
    learnt, held = split_held_out(trajectories, held_out, config)
    with quiet(ranks is not None and not ranks.is_first), sole_training(out, ranks):
        rendered, rendered_held = renderer.render_all(learnt), [renderer.render(t) for t in held]
        _check_vocabulary(model, renderer.tokenizer, [*rendered, *rendered_held])
        packs = decide(ranks, lambda: packs_rows(model, config))
        inputs = {
            "data_sha256": _fingerprint(rendered),
            "held_out_sha256": _fingerprint(rendered_held),
            "context_length": renderer.context_length,
            "packs": packs,
            "device": _device_type(device),
        }
        processes = ranks.world if ranks else 1
        claimed = decide(
            ranks,
            lambda: _claim(out, describe_training("sft", config, model, renderer.tokenizer, processes, **inputs), on_existing),
        )
        if claimed["finished"] is not None:
            return claimed["finished"]
        trainer = build_trainer(
            model,
            renderer,
            build_dataset(rendered),
            config,
            out,
            held_out=build_dataset(rendered_held) if held else None,
            device=device,
            packs=packs,
            resumes=claimed["checkpoint"] is not None,
        )
        log = LogCallback(out)
        with Progress("SFT", 0) as progress:
            trainer.add_callback(log)
            trainer.add_callback(ProgressCallback(progress, "loss"))
            trainer.train(resume_from_checkpoint=claimed["checkpoint"])
        save_trained(trainer, renderer.tokenizer, out)
        counts = {
            "trajectories": len(learnt),
            "held_out": len(held),
            "packed_rows": len(trainer.train_dataset) if packs else None,
            "resumed_at": claimed["step"],
        }
        held_tokens = sum(len(r.input_ids) for r in rendered_held)
        return decide(ranks, lambda: _finish(trainer, log.attempt.name, counts, held_tokens, config.keep_checkpoints))


def _claim(out: Path, manifest: dict[str, Any], on_existing: Any) -> dict[str, Any]:
    """Where the training stands: `checkpoint` to go on from, its `step`, and the summary of one that has `finished`."""
    from gradprism.training.checkpoints import claim_training_folder, finished_training, training_cost

    checkpoint = claim_training_folder(out, manifest, on_existing)
    finished = finished_training(out)
    if finished is not None:
        history = [row for row in read_log(out) if "loss" in row]
        finished |= {"earlier_cost": training_cost(out), "history": history, "reused": True}
    step = int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else 0
    return {"checkpoint": checkpoint and str(checkpoint), "step": step, "finished": finished}


def _finish(trainer: Any, attempt: str, counts: dict[str, Any], held_tokens: int, keep_checkpoints: bool) -> dict[str, Any]:
    """Writes the summary, and returns it with the log of the steps."""
    from gradprism.runtime.attempts import total_cost
    from gradprism.training.callbacks import log_history
    from gradprism.training.checkpoints import finish_training, training_cost

    out, history = Path(trainer.args.output_dir), log_history(trainer)
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    tokens = total_cost(out)["tokens"]
    summary = {
        **counts,
        "steps": trainer.state.global_step,
        "parameters_trained": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "tokens_forward": tokens + len(losses) * held_tokens,
        "tokens_backward": tokens,
        "tokens_per_second": sum(row["tokens"] for row in history) / sum(row["seconds"] for row in history),
        "earlier_cost": training_cost(out, without=attempt),
        "first_loss": history[0]["loss"],
        "last_loss": history[-1]["loss"],
        "first_held_out_loss": losses[0] if losses else None,
        "last_held_out_loss": losses[-1] if losses else None,
    }
    finish_training(out, summary, keep_checkpoints)
    return {**summary, "history": history, "reused": False}


def build_dataset(rendered: Sequence[RenderedTrajectory]) -> Any:
    """A `datasets.Dataset` with `input_ids` and `labels`; labels are -100 wherever the response mask is false."""
    import numpy as np
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "input_ids": [r.input_ids for r in rendered],
            "labels": [np.where(r.response_mask, r.input_ids, -100) for r in rendered],
        }
    )


def build_trainer(
    model: Any,
    renderer: Renderer,
    dataset: Any,
    config: SftConfig,
    out: Path,
    *,
    held_out: Any = None,
    device: str = "auto",
    packs: bool = False,
    resumes: bool = False,
) -> Any:
    """TRL's `SFTTrainer` over pre-tokenised datasets; it adds no token and changes no label."""
    from transformers import PrinterCallback
    from trl.trainer.sft_config import SFTConfig

    from gradprism.training.checkpoints import save_total_limit
    from gradprism.training.sft_trainer import SftTrainer

    arguments = SFTConfig(
        output_dir=str(out),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.learning_rate,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        warmup_steps=config.warmup_ratio,  # a number below 1 is a share
        lr_scheduler_type="cosine",
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.bf16,
        seed=config.seed,
        data_seed=config.seed,
        # Without packing the renderer has cut already, and counted what it cut; a row of packed trajectories is cut nowhere.
        max_length=(renderer.context_length or max(map(len, dataset["input_ids"]))) if packs else None,
        packing=packs,
        eval_packing=False,
        eval_strategy="no" if held_out is None else "steps",
        eval_steps=config.eval_steps or _NEVER,
        eval_on_start=held_out is not None and not resumes,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or _NEVER,
        save_total_limit=save_total_limit(config.keep_checkpoints),
        use_cpu=_device_type(device) == "cpu",
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,  # every weight takes part in every step, and looking for others takes time
        activation_checkpointing=config.activation_checkpointing,
        **tracking_arguments(config, out),
    )
    # One process trains on one device, however many it sees: TRL refuses to spread batches over several by threads.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    if held_out is not None:
        held_out = _filled(held_out, config.batch_size * arguments.world_size)
    trainer = SftTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=held_out,
        processing_class=renderer.tokenizer,
        peft_config=peft_config(config, model),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def split_held_out(
    trajectories: Sequence[Trajectory], held_out: Sequence[Trajectory], config: SftConfig
) -> tuple[list[Trajectory], list[Trajectory]]:
    """What is learnt and what is held out, each in its own order; drawn by ids and the seed alone, whatever the order.

    Raises `ConfigError` where nothing would be left to learn, or settings do not go together.
    """
    if not trajectories:
        raise ConfigError("no trajectories to train on: the data is empty, or the route sends nothing to SFT")
    if held_out and config.eval_share:
        raise ConfigError("give either an eval_share or held-out data, not both")
    if config.eval_steps and not (held_out or config.eval_share):
        raise ConfigError("eval_steps: nothing is held out; give eval_share, or held-out data")
    if not config.eval_share:
        return list(trajectories), list(held_out)
    count = max(1, round(config.eval_share * len(trajectories)))
    if count >= len(trajectories):
        raise ConfigError(f"eval_share {config.eval_share}: leaves none of {len(trajectories)} trajectories to learn; lower it")
    draws = [hashlib.sha256(json.dumps([config.seed, t.id]).encode()).digest() for t in trajectories]
    drawn = set(sorted(range(len(trajectories)), key=draws.__getitem__)[:count])
    parts: tuple[list[Trajectory], list[Trajectory]] = ([], [])
    for index, trajectory in enumerate(trajectories):
        parts[index in drawn].append(trajectory)
    return parts


def packs_rows(model: Any, config: SftConfig) -> bool:
    """Whether several trajectories share a row; raises `ConfigError` where they must and the model would mix them up."""
    flash = "flash" in model.config._attn_implementation
    if config.packing == "on" and not flash and not keeps_packed_apart(model):
        raise ConfigError(
            f"packing: with {model.config._attn_implementation} attention {type(model).__name__} lets packed trajectories see one "
            "another; use --packing off, or --attention flash_attention_2"
        )
    return config.packing == "on" or (config.packing == "auto" and flash)


def keeps_packed_apart(model: Any) -> bool:
    """Whether the second of two sequences in a row, packed as TRL packs them, has the logits that it has alone.

    Asked of the model itself, since it depends on its code: positions that start anew become a mask for sdpa and eager attention in
    most of `transformers`, but not in models that make masks or positions of their own (OPT, Bloom), nor in recurrent ones. What
    the first does to the second in one running text is the measure of what is a difference and what rounding.
    """
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    size = min(64, model.get_input_embeddings().weight.shape[0])
    first, second = [[(7 * i + shift) % size for i in range(8)] for shift in (1, 4)]
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    packed = collate([{"input_ids": first}, {"input_ids": second}])
    del packed["labels"]

    def logits(**inputs: Any) -> torch.Tensor:
        on_device = {name: v.to(model.device) if isinstance(v, torch.Tensor) else v for name, v in inputs.items()}
        with torch.no_grad():
            return model(**on_device, use_cache=False).logits[0, -len(second) :].float()

    alone = logits(input_ids=torch.tensor([second]))
    together = logits(input_ids=torch.tensor([first + second]))
    return bool((logits(**packed) - alone).abs().max() <= 0.05 * (together - alone).abs().max())


def _filled(dataset: Any, multiple: int) -> Any:
    """The dataset, longest first, with rows that count nothing up to a multiple: else accelerate repeats some to fill the batches."""
    from datasets import Dataset, concatenate_datasets

    by_length = sorted(range(len(dataset)), key=lambda i: len(dataset[i]["input_ids"]), reverse=True)
    dataset = dataset.select(by_length)
    lack = -len(dataset) % multiple
    blank = {"input_ids": [dataset[-1]["input_ids"][:2]] * lack, "labels": [[-100, -100]] * lack}
    return concatenate_datasets([dataset, Dataset.from_dict(blank, features=dataset.features)]) if lack else dataset


def _check_vocabulary(model: Any, tokenizer: Any, rendered: Sequence[RenderedTrajectory]) -> None:
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ModelError(f"{tokenizer.name_or_path}: the tokenizer has neither a padding nor an end-of-sequence token; set one")
    rows = model.get_input_embeddings().weight.shape[0]
    for trajectory in rendered:
        if (token := int(trajectory.input_ids.max())) >= rows:
            raise ModelError(
                f"trajectory {trajectory.id!r}: token {token} is past the model's {rows} embeddings; the tokenizer is not the model's"
            )


def _fingerprint(rendered: Sequence[RenderedTrajectory]) -> str:
    digest = hashlib.sha256()
    for r in rendered:
        digest.update(json.dumps([r.id, len(r.input_ids)]).encode())
        digest.update(r.input_ids.tobytes() + r.response_mask.tobytes())
    return digest.hexdigest()


def _device_type(device: str) -> str:
    from gradprism.models import resolve_device

    return resolve_device(device).partition(":")[0]
