"""A training's model and tokenizer, whether they are given or named."""

from pathlib import Path
from typing import Any

from gradprism.models import ModelSpec, check_trainable
from gradprism.runtime.folders import OnExisting
from gradprism.runtime.ranks import Ranks
from gradprism.training.folder import TRAINING
from gradprism.trajectories.rendering import load_tokenizer


def load_to_train(model: Any, tokenizer: Any, out: Path, on_existing: OnExisting, ranks: Ranks | None) -> tuple[Any, Any]:
    """`model`, loaded where it is a folder, a hub id or a `ModelSpec`, and `tokenizer`, by default the model's own.

    What is loaded lies on the CPU; the training places it. Raises `FolderInUseError` before anything is loaded where `out` holds
    something else, and `ModelError` for a model that cannot be trained.
    """
    if isinstance(model, str | Path):
        model = ModelSpec(str(model))
    if isinstance(model, ModelSpec):
        if ranks is None or ranks.is_first:
            TRAINING.check(out, on_existing)
        check_trainable(model.path)
        return model.load("cpu"), tokenizer or load_tokenizer(model.path, model.chat_template)
    return model, tokenizer or load_tokenizer(model.name_or_path)
