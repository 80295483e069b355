"""Guess a number: an environment to replace piece by piece. Tasks have stable ids, a session plays one of them at a time.

python own_environment.py      # plays it
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import gradprism as gp


@gp.register_environment("guess")
@dataclass(frozen=True)
class Guess(gp.Environment):
    """The tasks. Fields are the options that `environment.options` or `--env-option` may set; all have defaults."""

    most: int = 100

    def ids(self, split: str, task_type: str | None = None) -> Sequence[str]:
        return [f"{split}/{number}" for number in range(1000)]

    def session(self) -> "Session":
        return Session(self.most)

    def expert(self) -> "Expert":
        return Expert(self.most)


class Session:
    """Plays one task at a time; the same task and actions give the same steps."""

    def __init__(self, most: int) -> None:
        self.most = most

    def reset(self, task_id: str) -> gp.Step:
        self.number = random.Random(task_id).randint(1, self.most)
        return gp.Step(f"Guess a number from 1 to {self.most}.", info=gp.Info(admissible=["<number>"]))

    def step(self, action: str) -> gp.Step:
        if not (action.isascii() and action.isdecimal() and len(action) < 10):  # not understood: nothing changes
            return gp.Step("Say a number.", info=gp.Info(valid=False, admissible=["<number>"]))
        won = int(action) == self.number
        text = "Right." if won else "Higher." if int(action) < self.number else "Lower."
        return gp.Step(text, float(won), won, gp.Info(admissible=["<number>"], success=won, score=float(won)))


class Expert:
    """Acts on what an agent sees, and halves what is left."""

    def __init__(self, most: int) -> None:
        self.low, self.high, self.last = 1, most, 0

    def act(self, step: gp.Step) -> str:
        if step.observation == "Higher.":
            self.low = self.last + 1
        elif step.observation == "Lower.":
            self.high = self.last - 1
        self.last = (self.low + self.high) // 2
        return str(self.last)


if __name__ == "__main__":  # its expert and random actions play it, before a model comes in
    for agent in ("expert", "random"):
        played = gp.evaluate(agent, Guess(), gp.EvaluationConfig(splits={"test": 48}, max_steps=8))
        print(f"{agent}: {played.headline}")
