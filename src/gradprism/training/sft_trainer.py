"""TRL's SFT trainer with whole checkpoints, counted tokens, and a held-out loss that is exact."""

from typing import Any

import torch
from trl.trainer.sft_trainer import SFTTrainer

from gradprism.training.checkpoints import AtomicCheckpoints
from gradprism.training.tracking import CountedTokens


class SftTrainer(CountedTokens, AtomicCheckpoints, SFTTrainer):
    """`SFTTrainer` whose evaluations give the mean loss over all held-out response tokens, each counted once and alike.

    The trainer's own is a mean of batch means, over batches that are filled up by repeating rows.
    """

    _held_out: torch.Tensor  # [2]: sum of losses, number of tokens

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        learnt = (inputs["labels"][:, 1:] != -100).sum()
        if self.model.training:  # pyright: ignore[reportOptionalMemberAccess]
            # Rows without padding have no mask.
            read = inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["input_ids"].numel()
            self.count_tokens(read, learnt)
            return super().compute_loss(model, inputs, *args, **kwargs)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self._held_out += torch.stack([loss.detach().double() * learnt, learnt.double()])
        return loss

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        self._held_out = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        total, count = self.accelerator.reduce(self._held_out, "sum").tolist()  # pyright: ignore[reportAttributeAccessIssue]
        output.metrics.update({f"{metric_key_prefix}_loss": total / count, f"{metric_key_prefix}_tokens": int(count)})  # pyright: ignore[reportOptionalMemberAccess]
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # TRL's means over batches, and its count of tokens, which begins anew after a kill.
        self._metrics["eval"].clear()
        self._metrics["train"].pop("num_tokens", None)
        if "eval_loss" in logs:
            logs = {name: logs[name] for name in ("eval_loss", "eval_tokens", "eval_runtime")}
        super().log(logs, start_time)
