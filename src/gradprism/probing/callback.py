"""Concentration of a fixed set of trajectories while a model is trained by transformers' or TRL's trainers."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradprism.concentration import METRICS, GroupBy, Groups
from gradprism.models import check_context_length
from gradprism.probing.manifest import UnitInfo
from gradprism.probing.plan import plan_batches
from gradprism.probing.prober import Prober, read_length
from gradprism.probing.run import default_batch_tokens
from gradprism.probing.scores import measure, unit_groups
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.registry import as_names
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import Renderer


class ProbeCallback(TrainerCallback):
    """Probes `trajectories` before the first step and after every `every`-th, and logs what became of their concentration.

    Logged per metric: `probe/<metric>_mean`, `probe/<metric>_std`, and `probe/<metric>_split_agreement`, the share of trajectories that
    the median split sends the same way as at the first probe. The figures are a row of `state.log_history` and go into the `logs` of the
    next `on_log`, for the callbacks that come after this one. Trackers come before it: they too are told where `log` is
    `trainer.log` (`callback.log = trainer.log`).

    The model, its gradients, its modes and the random numbers are left as they were: the training is the same bit for bit. Process zero
    alone probes, so the model must be whole there: sharded training (FSDP, DeepSpeed) raises `ConfigError`.
    """

    def __init__(
        self,
        trajectories: Iterable[Trajectory],
        tokenizer: Any = None,
        *,
        every: int = 100,
        metrics: str | Sequence[str] = "gini",
        context_length: int | None = None,
        batch_tokens: int | None = None,
        log: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        """`tokenizer`: None for the trainer's own (`processing_class`); `metrics`: a name or several.

        Raises `ConfigError` for an unknown metric or none, no interval or no trajectories.
        """
        if every < 1:
            raise ConfigError(f"every {every}: must be at least 1 step")
        self._metrics = tuple(METRICS.checked(name) for name in as_names(metrics))
        if not self._metrics:
            raise ConfigError(f"ProbeCallback: no metrics; give one or more of {', '.join(METRICS)}")
        self._trajectories, self._tokenizer = list(trajectories), tokenizer
        if not self._trajectories:
            raise ConfigError("ProbeCallback: no trajectories; give some to probe")
        self._every, self._context_length, self._batch_tokens, self.log = every, context_length, batch_tokens, log
        self._rendered: list[Any] = []
        self._first: dict[str, NDArray[np.float64]] = {}
        self._unlogged: dict[str, float] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        """Renders the trajectories and probes the model as it is."""
        if args.fsdp or args.deepspeed:
            raise ConfigError(
                "ProbeCallback: no process holds the whole model of an FSDP or DeepSpeed training; probe its checkpoints"
            )
        if state.is_world_process_zero:
            length = check_context_length(parts["model"], self._context_length)
            renderer = Renderer(self._tokenizer or parts["processing_class"], length)
            self._rendered = [renderer.render(trajectory) for trajectory in self._trajectories]
            self._probe(state, parts["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        """Probes, every so many steps."""
        if state.is_world_process_zero and state.global_step % self._every == 0:
            self._probe(state, parts["model"])

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **parts: Any) -> None:
        """Adds what was probed since the last log."""
        if logs is not None:
            logs.update(self._unlogged)
            self._unlogged = {}

    def _probe(self, state: TrainerState, model: Any) -> None:
        norms, groups = self._norms(model)
        figures: dict[str, float] = {}
        for name in self._metrics:
            scores = measure(name, norms, groups)
            first = self._first.setdefault(name, scores)
            same = (scores > np.median(scores)) == (first > np.median(first))
            figures |= {
                f"probe/{name}_mean": float(scores.mean()),
                f"probe/{name}_std": float(scores.std()),
                f"probe/{name}_split_agreement": float(same.mean()),
            }
        if self.log is not None:
            self.log(figures)
        else:
            state.log_history.append({**figures, "epoch": state.epoch or 0.0, "step": state.global_step})
            self._unlogged = figures

    def _norms(self, model: Any) -> tuple[NDArray[np.float64], dict[GroupBy, Groups]]:
        """Norms, float64 `[n, N]`, and the groups of the N units."""
        prober = Prober(model)
        lengths = [read_length(rendered) for rendered in self._rendered]
        norms = np.empty((len(lengths), len(prober.units)))
        for batch in plan_batches(lengths, self._batch_tokens or default_batch_tokens(prober.device.type)):
            norms[batch] = prober.probe([self._rendered[k] for k in batch]).norms
        return norms, unit_groups([UnitInfo(name) for name in prober.unit_names])
