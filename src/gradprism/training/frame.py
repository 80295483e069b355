"""The frame of every training: a loaded model, a folder that is this training's alone, and the summary at the end."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gradprism.models import ModelSpec, check_trainable, resolve_device
from gradprism.runtime.folders import Manifest, OnExisting
from gradprism.runtime.progress import quiet
from gradprism.runtime.ranks import Ranks
from gradprism.training.folder import TRAINING, claim_training, decide, describe_training, finish_training, sole_training
from gradprism.training.loop import Loop
from gradprism.training.processes import join_processes
from gradprism.training.settings import TrainingConfig, check_trackers
from gradprism.training.summary import TrainingSummary
from gradprism.trajectories.rendering import load_tokenizer


@dataclass(slots=True)
class Frame:
    """A training of `model`, which lies on the CPU where it was loaded here, in `out`; `step` is the checkpoint to go on from."""

    model: Any
    tokenizer: Any
    config: TrainingConfig
    out: Path
    device: str
    on_existing: OnExisting
    ranks: Ranks | None
    step: int = 0

    @property
    def world(self) -> int:
        """Number of the launcher's processes."""
        return self.ranks.world if self.ranks else 1

    def claim(self, command: Literal["sft", "rl"], inputs: Callable[[], Manifest]) -> TrainingSummary | None:
        """Makes the folder this training's, which depends on `inputs` besides model and settings; its summary if it has finished.

        Raises `FolderInUseError` where the folder holds another training or anything else.
        """

        def describe() -> Manifest:
            more = {**inputs(), "device": resolve_device(self.device)}
            return describe_training(command, self.config, self.model, self.tokenizer, self.world, more)

        self.step, finished = claim_training(self.out, describe, self.on_existing, self.ranks)
        return finished

    def finish(self, loop: Loop, examples: int, counts: Mapping[str, float], evaluation_seconds: float) -> TrainingSummary:
        """Writes the trained model and the summary, which every process returns."""
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
                counts=counts,
            ).to_json()

        return TrainingSummary.from_json(decide(self.ranks, summary))


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
    with quiet(not is_first), sole_training(out, ranks):
        if isinstance(model, str | Path):
            model = ModelSpec(str(model))
        name = model.path if isinstance(model, ModelSpec) else model.name_or_path
        if isinstance(model, ModelSpec):
            check_trainable(name)
            tokenizer = tokenizer or load_tokenizer(name, model.chat_template)
            model = model.load("cpu")
        yield Frame(model, tokenizer or load_tokenizer(name), config, out, device, on_existing, ranks)
