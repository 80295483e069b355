"""The frame of every training: a loaded model, a folder that is this training's alone, and the summary at the end."""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import accelerate
import torch
import transformers

from gradprism import __version__
from gradprism.checkpoints import check_trainable
from gradprism.models import ModelSpec, resolve_device
from gradprism.probing.fingerprint import config_fingerprint, weights_fingerprint
from gradprism.runtime.folders import Manifest, OnExisting, exclusive_lock
from gradprism.runtime.processor import lacks_bfloat16
from gradprism.runtime.progress import quiet, say
from gradprism.runtime.ranks import Ranks
from gradprism.training.folder import TRAINING, claim_training, finish_training
from gradprism.training.loop import Loop
from gradprism.training.processes import decide, join_processes
from gradprism.training.settings import TrainingConfig, check_trackers
from gradprism.training.summary import TrainingSummary
from gradprism.trajectories.rendering import load_tokenizer, template_fingerprint, tokenizer_fingerprint

FEW = 0.5  # of half-precision weights: fewer than so many changed means that rounding decides
LOCK = ".training.tmp"  # held by the first process for all


@dataclass(slots=True)
class Frame:
    """A training of `model`, which lies on the CPU where it was loaded here, in `out`; `step` is the checkpoint to go on from.

    `warnings` are of its summary.
    """

    model: Any
    tokenizer: Any
    config: TrainingConfig
    out: Path
    device: str
    on_existing: OnExisting
    ranks: Ranks | None
    step: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def world(self) -> int:
        """Number of the launcher's processes."""
        return self.ranks.world if self.ranks else 1

    def claim(
        self,
        command: Literal["sft", "rl"],
        inputs: Callable[[], Manifest],
        steps: int | None = None,
        stop_when: Sequence[str] = (),
    ) -> TrainingSummary | None:
        """Makes the folder this training's, which depends on `inputs` besides model and settings; its summary if it has finished.

        `steps`: how many optimizer steps it is to have, where more may be asked of it than before; one that an alarm of `stop_when`
        ended has finished with fewer. Raises `FolderInUseError` where the
        folder holds another training or anything else (`claim_training`).
        """

        def claim() -> tuple[int, dict[str, Any] | None]:
            step, finished = claim_training(self.out, self._manifest(command, inputs()), self.on_existing, steps, stop_when)
            return step, finished and finished.to_json()

        self.step, finished = decide(self.ranks, claim)
        if finished is None:
            self.warn(*of_precision(self.config, self.device))
            return None
        summary = TrainingSummary.from_json(finished)
        self.warn(*summary.warnings)
        return summary

    def _manifest(self, command: str, inputs: Manifest) -> Manifest:
        """Everything that the trained weights depend on; of processes the number, since it decides which examples make a batch."""
        libraries = (torch, transformers, accelerate)
        return {
            "command": command,
            "config": self.config.model_dump(mode="json"),
            **inputs,
            "weights_sha256": weights_fingerprint(self.model),
            "config_sha256": config_fingerprint(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": self.model.config._attn_implementation,
            "tokenizer_sha256": tokenizer_fingerprint(self.tokenizer),
            "template_sha256": template_fingerprint(self.tokenizer),
            "processes": self.world,
            "device": resolve_device(self.device),
            "versions": {
                "gradprism": __version__,
                "python": platform.python_version(),
                **{library.__name__: str(library.__version__) for library in libraries},
            },
        }

    def warn(self, *lines: str) -> None:
        """Says each line, and keeps it for the summary."""
        for line in lines:
            say(f"warning: {line}")
        self.warnings += lines

    def finish(
        self, loop: Loop, examples: int, counts: Mapping[str, float], evaluation_seconds: float, stopped: str = ""
    ) -> TrainingSummary:
        """Writes the trained model and the summary, which every process returns; warns of weights that have not changed."""
        moved = loop.moved_share()
        self.warn(*_of_weights(moved, loop.trained_dtype))
        loop.save_model(self.tokenizer)

        def summary() -> dict[str, Any]:
            usage, earlier = loop.usage()
            return finish_training(
                self.out,
                keep_checkpoints=self.config.keep_checkpoints,
                examples=examples,
                steps=loop.step,
                parameters_trained=loop.parameters_trained,
                usage=usage,
                earlier=earlier,
                evaluation_seconds=evaluation_seconds,
                resumed_at=self.step,
                counts={**counts, "moved_share": moved},
                warnings=tuple(self.warnings),
                stopped=stopped,
            ).to_json()

        return TrainingSummary.from_json(decide(self.ranks, summary))


def of_precision(config: TrainingConfig, device: str) -> list[str]:
    """What is to be said of the numbers in which `device` is to compute."""
    if config.bf16 and resolve_device(device) == "cpu" and lacks_bfloat16():
        return ["bf16: this processor has no bfloat16 instructions and emulates them, slower than float32; leave bf16 out"]
    return []


def _of_weights(moved: float, dtype: torch.dtype) -> list[str]:
    """What the share of weights that the training changed says of it."""
    if moved == 0:
        return ["no weight has changed: the model is the one that the training began with"]
    if moved < FEW and dtype.itemsize == 2:
        return [
            f"only {moved:.1%} of the weights have changed: {str(dtype).removeprefix('torch.')} rounds steps of this size away; keep "
            "float32 weights (--dtype float32 --bf16, or FSDP, which does), or raise the learning rate"
        ]
    return []


@contextmanager
def training_frame(
    model: Any, tokenizer: Any, config: TrainingConfig, out: Path | str, device: str, on_existing: OnExisting
) -> Iterator[Frame]:
    """A block in which no other command trains into `out`; `model` is loaded where it is a folder, a hub id or a `ModelSpec`.

    `tokenizer` is by default the model's own. Raises `FolderInUseError` before anything is loaded where `out` holds something else or
    is being trained, and `ModelError` for a model that cannot be trained.
    """
    check_trackers(config)
    out, ranks = Path(out).expanduser(), join_processes(device)
    is_first = ranks is None or ranks.is_first
    if is_first:
        TRAINING.check(out, on_existing)
    with quiet(not is_first), exclusive_lock(out, LOCK, "is being trained") if is_first else nullcontext():
        if isinstance(model, str | Path):
            model = ModelSpec(str(model))
        name = model.path if isinstance(model, ModelSpec) else model.name_or_path
        if isinstance(model, ModelSpec):
            check_trainable(name)
            tokenizer = tokenizer or load_tokenizer(name, model.chat_template)
            model = model.load("cpu")
        yield Frame(model, tokenizer or load_tokenizer(name), config, out, device, on_existing, ranks)
