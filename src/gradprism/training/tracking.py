"""What a training says of itself: the log's file, trackers, and tokens a second (`callbacks.py` writes it down)."""

import importlib.util
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gradprism.runtime.errors import MissingDependencyError

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # a mixin

LOG = "log.jsonl"
Tracker = Literal["tensorboard", "trackio", "wandb"]
# Modules of which any one will do, as the trainer's own integrations have it.
_MODULES: dict[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}


class TrackingSettings(BaseModel):
    """Settings of any stage that trains: where its numbers go besides `log.jsonl`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    track: tuple[Tracker, ...] = Field(
        default=(), description="Also send the log to tensorboard (below the output folder), trackio or wandb."
    )


def check_trackers(settings: TrackingSettings) -> None:
    """Raises `MissingDependencyError` for a tracker that is not installed."""
    for tracker in settings.track:
        # A folder of that name in the working directory, as wandb leaves one, has no origin.
        specs = [importlib.util.find_spec(module) for module in _MODULES[tracker]]
        if not any(spec and spec.origin for spec in specs):
            raise MissingDependencyError(f"track: {tracker} is not installed; install it with: pip install {tracker}")


def tracking_arguments(settings: TrackingSettings, out: Path) -> dict[str, Any]:
    """What a trainer's arguments need so that it logs each step, to the trackers too, and prints nothing of its own."""
    return {
        "report_to": list(settings.track) or "none",
        "run_name": out.name,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a loss that diverged is to be seen
        "disable_tqdm": True,
    }


class CountedTokens(_Trainer):
    """Adds tokens, seconds and their ratios to each logged step of a `transformers` trainer.

    A mixin, before the trainer. The trainer calls `count_tokens` for what it learns from; evaluating and saving is not timed.
    """

    _tokens: tuple[int, int] = (0, 0)
    _clock: float | None = None

    def count_tokens(self, tokens: Any, response_tokens: Any) -> None:
        """Adds what this process has read (without padding) and the part of it that has a loss; numbers or tensors."""
        self._tokens = (self._tokens[0] + tokens, self._tokens[1] + response_tokens)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.start_clock()
        return super().training_step(*args, **kwargs)

    def start_clock(self) -> None:
        """Begins the time of a step, unless it has begun at the end of the step before."""
        self._clock = self._clock or time.perf_counter()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._clock is not None:
            seconds = time.perf_counter() - self._clock
            tokens, response_tokens = self._summed_tokens()
            logs = {
                **logs,
                "tokens": tokens,
                "response_tokens": response_tokens,
                "seconds": seconds,
                "tokens_per_second": tokens / seconds,
                "response_tokens_per_second": response_tokens / seconds,
            }
        super().log(logs, start_time)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._clock = time.perf_counter()

    def _summed_tokens(self) -> list[int]:
        import torch

        counted = torch.tensor([int(number) for number in self._tokens], device=self.accelerator.device)
        self._tokens = (0, 0)
        return self.accelerator.reduce(counted, "sum").tolist()  # pyright: ignore[reportAttributeAccessIssue]


def read_log(out: Path) -> list[dict[str, float]]:
    """The whole lines of a training's `log.jsonl`; a kill may have torn the last one."""
    if not (out / LOG).is_file():
        return []
    rows = []
    for line in (out / LOG).read_bytes().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
