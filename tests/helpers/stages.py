"""Stages that processes of an experiment can run."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from gradprism.experiments.results import Part
from gradprism.experiments.stage import Outcome, Stage, Store
from gradprism.runtime.errors import ModelError
from gradprism.runtime.usage import Usage


class Words(Part):
    words: str
    left: list[str]


@dataclass(frozen=True)
class Write(Stage[Words]):
    """Writes the words of the stages that it needs and its own; does what it is told on the way."""

    kind = "write"
    Found = Words
    runner = "helpers.stages:write"

    word: str
    on: tuple["Write", ...] = ()
    value: int = 0
    fail: str = field(default="", compare=False)
    die: bool = field(default=False, compare=False)
    seconds: float = field(default=0, compare=False)
    earlier: float = field(default=0, compare=False)


@dataclass(frozen=True)
class Resume(Write):
    """The same, and goes on from what it left."""

    resumes: ClassVar[bool] = True


def words(stages: Iterable[object]) -> list[str]:
    return [stage.word for stage in stages if isinstance(stage, Write)]


def write(stage: Write, folder: Path, store: Store) -> Outcome[Words]:
    words = [store.found(need).words for need in stage.on]
    left = sorted(path.name for path in folder.iterdir())
    (folder / "partial").write_text("x")
    if stage.fail:
        raise ModelError(stage.fail)
    if stage.die and not (folder / "begun").exists():
        (folder / "begun").touch()
        os.kill(os.getpid(), 9)
    time.sleep(stage.seconds)
    earlier = Usage(wall_seconds=stage.earlier, cpu_seconds=stage.earlier)
    found = Words(words=" ".join([*words, stage.word]), left=left)
    return Outcome(found, f"{stage.word} by {os.getpid()}", Usage(tokens_forward=7), earlier)
