"""What a training says of itself: the log's file, trackers, and tokens a second (`callbacks.py` writes it down)."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradprism.training.settings import TrackingSettings, check_trackers  # noqa: F401 # until RL has a loop of its own

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # a mixin

LOG = "log.jsonl"


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
