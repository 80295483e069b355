"""The core that SFT and RL share: a model on its devices, AdamW steps that do not diverge unseen, whole checkpoints, and the log.

A training's own module says what a step reads. Its step, in every process:

    loop.begin_step()
    for number, batch in enumerate(batches, 1):
        with loop.forward_pass(last=number == len(batches)):
            loss = …                            # this process's share of the loss, which is the sum over processes and batches
            loop.backward(loss)
    loop.log(loop.update(loss_so_far, tokens, response_tokens))
    loop.save(state)                            # now and then
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from gradprism.models import resolve_device
from gradprism.passes import failures_named
from gradprism.runtime.attempts import Attempt, total_usage
from gradprism.runtime.errors import ConfigError, ModelError
from gradprism.runtime.files import append_jsonl, read_json, write_json
from gradprism.runtime.progress import Progress
from gradprism.runtime.usage import Usage
from gradprism.training import folder
from gradprism.training.adapters import add_adapters, merged_state, save_adapter
from gradprism.training.processes import fsdp_version
from gradprism.training.settings import TrainingConfig

Schedule = Callable[[int], float]  # steps done → the part of the learning rate with which the next one is made
_ACCOUNT_SECONDS = 10.0
_SAMPLE = 1024  # weights of a parameter by which is told whether it has moved


def cosine(steps: int, warmup: int, level: float = 0.0) -> Schedule:
    """Rises over `warmup` steps from 0, then falls along half a cosine to `level` at `steps`, and stays there."""

    def part(done: int) -> float:
        if done < warmup:
            return done / warmup
        fallen = min(1.0, (done - warmup) / max(1, steps - warmup))
        return level + (1 - level) * (1 + math.cos(math.pi * fallen)) / 2

    return part


def constant(warmup: int) -> Schedule:
    """Rises over `warmup` steps from 0, then stays."""
    return lambda done: min(1.0, done / warmup) if warmup else 1.0


class Loop:
    """A training of `model` into the folder `out`, which has been claimed; `step` counts the optimizer steps that are done.

    `model` may lie on the CPU: it is moved to `device`, copied (DDP) or sharded (FSDP) as the launcher and accelerate's configuration say.
    With `config.lora_rank` adapters are put into it and trained alone. `used` is what this attempt has used, to which the caller adds.
    """

    def __init__(
        self, model: Any, config: TrainingConfig, out: Path, schedule: Schedule, *, device: str = "auto", label: str = "training"
    ) -> None:
        # Autocast is ours but where FSDP needs to know: accelerate would leave a forward pass of its own on the model.
        self.accelerator = Accelerator(
            cpu=resolve_device(device) == "cpu",
            mixed_precision="bf16" if config.bf16 and fsdp_version() else "no",
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=_has_more_than_text(model))],
            log_with=list(config.track) or None,
            project_dir=out,
        )
        kind = str(self.accelerator.distributed_type.value)
        if kind == "DEEPSPEED":
            raise ConfigError("DeepSpeed: this training does not run under it; use FSDP, or several processes without it")
        self.config, self.out, self.sharded = config, out, kind == "FSDP"
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.is_first, self.device = self.accelerator.is_main_process, self.accelerator.device
        self.step, self.used = 0, Usage()
        self._schedule, self._seed = schedule, config.seed
        self._attempt, self._accounted = Attempt(out), 0.0
        self._clock = time.perf_counter()
        self.progress = Progress(label, 0)

        torch.manual_seed(config.seed)  # of which adapters are made
        model = add_adapters(model, config)
        if config.activation_checkpointing:
            recompute = getattr(model, "activation_checkpointing_enable", None)  # its name in transformers 5.20 and later
            (recompute or model.gradient_checkpointing_enable)()
        self.model, self.optimizer = self._prepare(model)
        self.parameters_trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self._began_with = [_sample(parameter) for parameter in self._trained()]
        if config.track:
            names = {name: {"name": out.name} for name in config.track if name != "tensorboard"}
            self.accelerator.init_trackers(os.environ.get("WANDB_PROJECT", "gradprism"), init_kwargs=names)

    def _prepare(self, model: Any) -> tuple[Any, Any]:
        if self.sharded and self.accelerator.is_fsdp2:  # it swaps the optimizer's weights for shards
            return self.accelerator.prepare(model, self._adamw(model))
        model = self.accelerator.prepare(model)
        return model, self._adamw(model)

    def _adamw(self, model: Any) -> torch.optim.AdamW:
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.config.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=self.config.learning_rate, fused=True)

    @property
    def unwrapped(self) -> Any:
        """The model without what DDP or FSDP has put around it."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def trained_dtype(self) -> torch.dtype:
        """The type of the trained weights, of several the narrowest."""
        return min((parameter.dtype for parameter in self._trained()), key=lambda dtype: dtype.itemsize)

    def moved_share(self) -> float:
        """Share of the trained weights, of a sample of each, that differ from those that the whole training began with."""
        pairs = [(before, _sample(parameter)) for before, parameter in zip(self._began_with, self._trained(), strict=True)]
        sizes = [_local(parameter).numel() for parameter in self._trained()]
        moved = sum(size * float((a != b).double().mean()) for size, (a, b) in zip(sizes, pairs, strict=True) if size)
        changed, whole = self.summed([moved, float(sum(sizes))])
        return changed / whole

    def summed(self, values: Sequence[float]) -> list[float]:
        """Each value added over all processes."""
        local = torch.tensor(values, dtype=torch.float64, device=self.device)
        return self.accelerator.reduce(local, "sum").tolist()  # pyright: ignore[reportAttributeAccessIssue]

    # A step

    def begin_step(self) -> None:
        """Starts the clock of a step, and draws its dropout anew: a training that goes on needs no random state of the one before."""
        self._clock = time.perf_counter()
        draw = np.random.SeedSequence([self._seed, self.step, self.rank]).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(draw))
        self.model.train()

    @contextmanager
    def forward_pass(self, last: bool = True) -> Iterator[None]:
        """Forward and backward pass of one batch; `last` of its step: then DDP adds up the gradients over processes."""
        waits = isinstance(self.model, DistributedDataParallel) and not last
        with self.model.no_sync() if waits else nullcontext():
            yield

    def autocast(self) -> Any:
        """The precision in which the model is to be called."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16)

    def backward(self, loss: Tensor) -> None:
        """Adds gradients of this process's share of the loss, of which DDP and FSDP take the mean."""
        with failures_named(self.unwrapped):
            self.accelerator.backward(loss * self.world)

    def update(self, loss: float, tokens: int, response_tokens: int) -> dict[str, float]:
        """Makes the optimizer step; figures of the log, from this process's shares of loss and tokens.

        Raises `ModelError` where loss or gradient is not finite, before any weight is changed.
        """
        loss, tokens_, responses = self.summed([loss, tokens, response_tokens])
        norm: Any = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        grad_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        self._refuse_divergence(self.step + 1, {"loss": loss, "norm of the gradient": grad_norm})
        rate = self.config.learning_rate * self._schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.used += Usage(tokens_forward=int(tokens_), tokens_backward=int(tokens_))
        seconds = time.perf_counter() - self._clock
        return {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "tokens": int(tokens_),
            "response_tokens": int(responses),
            "seconds": seconds,
            "tokens_per_second": tokens_ / seconds,
            "response_tokens_per_second": responses / seconds,
        }

    def _refuse_divergence(self, step: int, figures: Mapping[str, float]) -> None:
        # Asked in every process: each has the sum of all, so all stop at the same step.
        for name, value in figures.items():
            if not math.isfinite(value):
                raise ModelError(f"step {step}: training diverged: the {name} is {value}; lower the learning rate")

    # What is written

    def log(self, figures: Mapping[str, float], note: str = "") -> None:
        """Adds a line of the finite figures to `log.jsonl` and the trackers; `note` is shown beside the progress."""
        self._refuse_divergence(self.step, {"held-out loss": figures.get("eval_loss", 0.0)})
        finite = {name: value for name, value in figures.items() if math.isfinite(value)}
        if self.is_first:
            append_jsonl(self.out / folder.LOG, {"step": self.step, **finite})
            if time.perf_counter() - self._accounted > _ACCOUNT_SECONDS:
                self.account()
        if self.config.track:
            self.accelerator.log(finite, step=self.step)
        if "loss" in figures:
            self.progress.advance(1, note or f"loss {figures['loss']:.3f}, {figures['tokens_per_second']:.0f} tokens/s")

    def account(self) -> None:
        """Writes down what this attempt has used so far. First process only."""
        self._attempt.record(self.used)
        self._accounted = time.perf_counter()

    def usage(self) -> tuple[Usage, Usage]:
        """Usage of all attempts at this training, and of those before this one. First process only."""
        self.account()
        return total_usage(self.out), total_usage(self.out, without=self._attempt.name)

    def save(self, state: Any = None) -> None:
        """Writes a checkpoint that appears whole; `state` is a JSON value of each process's own. Every process must call this."""
        if self.is_first:
            self.account()  # whenever a kill comes: what a checkpoint keeps is accounted for
            folder.begin_checkpoint(self.out)
        self.accelerator.wait_for_everyone()
        partial = folder.partial_checkpoint(self.out)
        if self.sharded or self.is_first:
            with folder.writing_weights(partial):
                save_file(self._tensors(), partial / f"rank-{self.rank}.safetensors")
                folder.copy_best(self.out, self.rank, partial)
        write_json(partial / f"rank-{self.rank}.json", state)
        self.accelerator.wait_for_everyone()
        if self.is_first:
            folder.publish_checkpoint(self.out, self.step, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def save_best(self) -> None:
        """Keeps the weights as they are now, in place of those kept before. Every process must call this."""
        if self.sharded or self.is_first:
            with folder.writing_weights(self.out):
                folder.keep_best(self.out, self.rank, {str(n): _local(p).detach().cpu() for n, p in enumerate(self._trained())})
        self.accelerator.wait_for_everyone()

    @property
    def has_best(self) -> bool:
        """Whether weights were kept."""
        return folder.best_weights(self.out, self._weights_rank).is_file()

    @property
    def _weights_rank(self) -> int:
        """The process whose files hold this one's weights."""
        return self.rank if self.sharded else 0

    @torch.no_grad()
    def restore_best(self) -> None:
        """Gives the model the weights that were kept."""
        with safe_open(folder.best_weights(self.out, self._weights_rank), "pt") as file:
            for number, parameter in enumerate(self._trained()):
                _local(parameter).copy_(file.get_tensor(str(number)))

    def restore(self, step: int) -> Any:
        """Goes on from the checkpoint of `step`, also with the weights kept by then; returns this process's `state` there."""
        checkpoint = folder.checkpoint_path(self.out, step)
        if self.sharded or self.is_first:
            folder.restore_best(self.out, self.rank, checkpoint)
        self.accelerator.wait_for_everyone()
        with safe_open(checkpoint / f"rank-{self._weights_rank}.safetensors", "pt") as file, torch.no_grad():
            there = set(file.keys())
            for number, parameter in enumerate(self._trained()):
                _local(parameter).copy_(file.get_tensor(f"{number}.weight"))
                if f"{number}.step" not in there:  # it has had no gradient yet, as an image encoder that is shown no image
                    continue
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                for name, moment in moments.items():
                    _local(moment).copy_(file.get_tensor(f"{number}.{name}"))
                count = file.get_tensor(f"{number}.step").to(parameter.device)
                self.optimizer.state[parameter] = {"step": count, **moments}
        self.step = step
        return read_json(checkpoint / f"rank-{self.rank}.json")

    def _trained(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer state, of a sharded model this process's part."""
        tensors = {}
        for number, parameter in enumerate(self._trained()):
            for name, value in {"weight": parameter, **self.optimizer.state[parameter]}.items():
                tensors[f"{number}.{name}"] = _local(value).detach().cpu().contiguous()
        return tensors

    def save_model(self, tokenizer: Any) -> None:
        """Writes the trained model into the folder: a whole model, and a LoRA adapter into `adapter/` as well.

        Every process must call this: the weights may be spread over all of them. The first one writes.
        """
        for tracker in self.accelerator.trackers:
            tracker.finish()
        state: Any = self.accelerator.get_state_dict(self.model) if self.sharded else None
        if not self.is_first:
            return
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False, keep_torch_compile=False)
        if self.config.lora_rank is not None:
            state = model.state_dict() if state is None else state
            folder.check_finite(state)
            save_adapter(model, state, self.out / folder.ADAPTER)
            model, state = model.get_base_model(), merged_state(model, state)
        folder.save_model(model, tokenizer, self.out, state)


def _has_more_than_text(model: Any) -> bool:
    """Whether a model has weights, such as an image encoder's, that get no gradient of text: DDP waits for those of all."""
    spoken = {id(p) for part in (model.get_decoder(), model.get_output_embeddings()) for p in part.parameters()}
    return any(id(p) not in spoken for p in model.parameters())


def _sample(parameter: Tensor) -> Tensor:
    """A copy of up to 1,024 of this process's weights of a parameter, evenly spread, on the CPU."""
    flat = _local(parameter).detach().flatten()
    return flat[:: max(1, flat.numel() // _SAMPLE)].cpu().clone()


def _local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
