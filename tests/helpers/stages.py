"""Stages that processes of an experiment can run."""

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from gradprism.experiments.stages import Stage
from gradprism.runtime.errors import ModelError


def write(config: dict[str, Any], folder: Path, inputs: dict[str, Path]) -> dict[str, Any]:
    """Writes its inputs' words and its own; does what `config` says on the way."""
    words = [(path / "words").read_text() for _, path in sorted(inputs.items())]
    if config.get("fail"):
        raise ModelError(config["fail"])
    if config.get("die") and not (folder / "begun").exists():
        (folder / "begun").touch()
        os.kill(os.getpid(), 9)
    time.sleep(config.get("seconds", 0))
    (folder / "words").write_text(" ".join([*words, config["word"]]))
    (folder / "process").write_text(str(os.getpid()))
    return {"headline": config["word"], "tokens_forward": 7}


def stage(name: str, needs: tuple[str, ...] = (), resumes: bool = False, **config: Any) -> Stage:
    """A stage that writes its name."""
    config = {"word": name, **config}
    return Stage(name, partial(write, config), {"word": name}, {need: need for need in needs}, resumes, "write")
