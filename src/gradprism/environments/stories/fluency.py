"""How likely a story is to a frozen language model: loaded once per process, on the CPU, and never trained."""

import functools
import math
import multiprocessing
from pathlib import Path

from gradprism.package_data import resolve_shipped_model
from gradprism.runtime.errors import ConfigError, GradprismError
from gradprism.runtime.files import sha256_folder

NONE = "none"


class FrozenModel:
    """A causal language model with its tokenizer and chat template, in float32; a story is the answer to its task."""

    def __init__(self, folder: Path) -> None:
        import torch  # a worker that needs no model saves two seconds

        from gradprism.models import ModelSpec
        from gradprism.trajectories.rendering import Renderer, load_tokenizer

        if multiprocessing.parent_process() is not None:
            torch.set_num_threads(1)  # workers play side by side, and a story is a few dozen tokens
        self._torch, self.model = torch, ModelSpec(str(folder), "float32", "cpu").load()
        self.model.eval()
        self.renderer = Renderer(load_tokenizer(folder), None)
        self.context = int(getattr(self.model.config, "max_position_embeddings", 1024))

    def log_probability(self, task: str, story: str) -> float:
        """The mean natural log-probability of the story's tokens after the task; −inf for a story without tokens.

        What does not fit into the model's context does not count.
        """
        torch, tokenizer = self._torch, self.renderer.tokenizer
        prompt = self.renderer.prompt_ids([{"role": "user", "content": task}])
        own = tokenizer(story, add_special_tokens=False)["input_ids"][: max(0, self.context - len(prompt))]
        if not own:
            return -math.inf
        with torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([prompt + own])).logits[0, len(prompt) - 1 : -1].float()
        found = logits.log_softmax(-1).gather(-1, torch.tensor(own)[:, None]).mean().item()
        return found if math.isfinite(found) else -math.inf


def model_folder(name: str) -> Path:
    """The folder of a model by its path or as `shipped:…`; raises `ConfigError` where there is none."""
    folder = Path(resolve_shipped_model(name)).expanduser()
    if not (folder / "config.json").is_file():
        raise ConfigError(f"fluency {name!r}: is no folder of a model; give one, or {NONE}")
    return folder


@functools.lru_cache(maxsize=2)
def frozen_model(name: str) -> FrozenModel:
    """The model of that name, once per process; raises `ConfigError` where it cannot be loaded."""
    folder = model_folder(name)
    try:
        return FrozenModel(folder)
    except GradprismError as error:
        raise ConfigError(f"fluency {name!r}: {error}") from None


@functools.lru_cache(maxsize=2)
def fingerprint(name: str) -> str:
    """What the model is, whatever its path: the hash of its files; `none` for none."""
    return NONE if name == NONE else sha256_folder(model_folder(name))
