"""An environment whose engine dies, hangs or raises when it is told to."""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

from gradprism.environments.protocol import Environment, Info, Step, Task
from gradprism.runtime.errors import ConfigError, DataError


@dataclass(frozen=True)
class BrokenGames(Environment):
    """Counting games: `add` adds one, three wins. `folder` holds marks of what has gone wrong before.

    `by_length` rewards every action by its length, up to 30 characters, so that what a random model says earns it something.
    """

    folder: str = ""
    by_length: bool = False
    name = "broken"

    def ids(self, split: str, task_type: str | None = None) -> list[str]:
        return [f"{split}/{i}" for i in range(1000)]

    def find(self, task_id: str) -> Task:
        split, _, number = task_id.partition("/")
        return Task(self.name, task_id, f"kind {int(number or 0) % 2}", split)

    def session(self):
        return BrokenSession(self.folder, self.by_length)

    def expert(self):
        return Adder()


class Adder:
    def act(self, step: Step) -> str:
        return "add"


class BrokenSession:
    def __init__(self, folder: str, by_length: bool = False) -> None:
        self.folder, self.by_length = Path(folder), by_length
        self.count = 0

    def reset(self, task_id: str) -> Step:
        if task_id == "unknown":
            raise ConfigError("no such task")
        if task_id == "corrupt":
            raise DataError("file.game: not a game")
        if task_id == "fatal":
            os._exit(7)
        self.count = 0
        return Step(f"{task_id}: count to 3", info=Info(admissible=("add", "say <words>")))

    def step(self, action: str) -> Step:
        if action in ("die", "hang", "die once", "hang once"):
            mark = self.folder / action.replace(" ", "-")
            if not action.endswith("once") or not mark.exists():
                mark.touch()
                os._exit(9) if action.startswith("die") else time.sleep(600)
        if action == "raise":
            raise ZeroDivisionError("the engine's own")
        if action.startswith("nan "):
            value = {word: math.nan if action.endswith(word) else 0.5 for word in ("reward", "score", "part")}
            return Step("", value["reward"], info=Info(score=value["score"], parts={"one": value["part"]}))
        self.count += action == "add"
        done = self.count >= 3
        info = Info(
            valid=len(action) < 1000,
            success=done,
            score=self.count / 3,
            admissible=("add", "say <words>"),
            details={"n": self.count},
        )
        reward = min(len(action), 30) / 30 if self.by_length else float(done)
        return Step(f"count {self.count} after {len(action)}", reward, done, info)
