"""What joins the trainers' callbacks to our progress and logs, and ends a training whose loss is no number."""

import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from gradprism.runtime.attempts import Attempt
from gradprism.runtime.errors import ModelError
from gradprism.runtime.files import append_jsonl, write_jsonl
from gradprism.runtime.progress import Progress
from gradprism.training.tracking import LOG, read_log

_ACCOUNT_SECONDS = 10.0


class ProgressCallback(TrainerCallback):
    """Moves a `Progress` with the trainer's steps and shows one logged value and the tokens a second beside it."""

    def __init__(self, progress: Progress, shown: str) -> None:
        self.progress, self.shown = progress, shown
        self._note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.begin(state.max_steps, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.advance(1, self._note)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and self.shown in logs:
            self._note = f"{self.shown} {float(logs[self.shown]):.3f}"
            if "tokens_per_second" in logs:
                self._note += f", {logs['tokens_per_second']:.0f} tokens/s"


class LogCallback(TrainerCallback):
    """Writes `log.jsonl` and stops a training that has diverged.

    Each line holds the numbers of one logged step, or of one evaluation (`eval_…`), with `step`. Going on from a checkpoint drops
    what came after it. What every attempt has cost is kept in `attempts.jsonl`.
    """

    def __init__(self, out: Path) -> None:
        self.path, self.attempt = out / LOG, Attempt(out)
        self._accounted = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.path.is_file():
            step = state.global_step
            write_jsonl(self.path, [row for row in read_log(self.path.parent) if row["step"] <= step] if step else [])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        # Asked in every process: each has the sum of all, so all stop at the same step.
        logs = logs or {}
        for name, what in (("loss", "loss"), ("grad_norm", "norm of the gradient"), ("eval_loss", "held-out loss")):
            if not math.isfinite(logs.get(name, 0.0)):
                raise ModelError(
                    f"step {state.global_step}: training diverged: the {what} is {logs[name]}; lower the learning rate"
                )
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        numbers = {name: value for name, value in logs.items() if isinstance(value, int | float) and math.isfinite(value)}
        append_jsonl(self.path, {"step": state.global_step, **numbers})
        self.attempt.tokens += int(logs.get("tokens", 0))
        # Before a checkpoint: what it keeps is accounted for, whenever the kill comes.
        if control.should_save or time.monotonic() - self._accounted > _ACCOUNT_SECONDS:
            self._account()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._account()

    def _account(self) -> None:
        self.attempt.add(0, 0)
        self._accounted = time.monotonic()


def log_history(trainer: Any) -> list[dict[str, float]]:
    """The trainer's per-step records, numbers only."""
    rows = [{k: float(v) for k, v in row.items() if isinstance(v, int | float)} for row in trainer.state.log_history]
    return [row for row in rows if "loss" in row]
