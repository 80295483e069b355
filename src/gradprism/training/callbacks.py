"""What joins the trainers' callbacks to our progress and logs."""

from typing import Any

from transformers import TrainerCallback

from gradprism.progress import Progress


class ProgressCallback(TrainerCallback):
    """Moves a `Progress` with the trainer's steps and shows one logged value beside it."""

    def __init__(self, progress: Progress, shown: str) -> None:
        self.progress, self.shown = progress, shown
        self._note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.begin(state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.advance(1, self._note)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and self.shown in logs:
            self._note = f"{self.shown} {float(logs[self.shown]):.3f}"


def log_history(trainer: Any) -> list[dict[str, float]]:
    """The trainer's per-step records, numbers only."""
    rows = [{k: float(v) for k, v in row.items() if isinstance(v, int | float)} for row in trainer.state.log_history]
    return [row for row in rows if "loss" in row]
