"""Guess a number. Tasks have stable ids, a session plays one of them at a time, an expert acts on what an agent would see."""

import random
from dataclasses import dataclass

from gradprism.environments.protocol import Info, Step, Task
from gradprism.runtime.errors import ConfigError


@dataclass(frozen=True)
class Guess:
    """The tasks. Fields are options; all have defaults."""

    name: str = "own_environment:Guess"
    most: int = 100
    splits: tuple[str, ...] = ("train", "test")
    evaluation_splits: tuple[str, ...] = ("test",)

    def size(self, split: str) -> int:
        return 1000

    def tasks(self, split: str, count: int | None = None, start: int = 0, task_type: str | None = None) -> list[Task]:
        if split not in self.splits:
            raise ConfigError(f"split {split!r}: choose one of {list(self.splits)}")
        return [self.task({"id": f"{split}/{i}"}) for i in range(start, start + (count or self.size(split)))]

    def task(self, reference: dict[str, str]) -> Task:
        return Task(self.name, reference["id"], "guess", reference["id"].split("/")[0])

    def session(self) -> "Session":
        return Session(self.most)

    def expert(self) -> "Expert":
        return Expert(self.most)


class Session:
    """Plays one task at a time; the same task and actions give the same steps."""

    def __init__(self, most: int) -> None:
        self.most = most

    def reset(self, task_id: str) -> Step:
        self.number = random.Random(task_id).randint(1, self.most)
        return Step(f"Guess a number from 1 to {self.most}.", info=Info(admissible=["guess <number>"]))

    def step(self, action: str) -> Step:
        word = action.removeprefix("guess ")
        if not (word.isascii() and word.isdecimal() and len(word) < 10):  # not understood: nothing changes
            return Step("Say: guess <number>.", info=Info(valid=False, admissible=["guess <number>"]))
        won = int(word) == self.number
        text = "Right." if won else "Higher." if int(word) < self.number else "Lower."
        return Step(text, float(won), won, Info(admissible=["guess <number>"], success=won, score=float(won)))


class Expert:
    """Halves what is left."""

    def __init__(self, most: int) -> None:
        self.low, self.high, self.last = 1, most, 0

    def act(self, step: Step) -> str:
        if step.observation == "Higher.":
            self.low = self.last + 1
        elif step.observation == "Lower.":
            self.high = self.last - 1
        self.last = (self.low + self.high) // 2
        return f"guess {self.last}"
