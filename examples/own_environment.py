"""Your own environment: a number to guess, played by its expert, at random, and by a model.

    python examples/own_environment.py

Worker processes import the class again, so that it stands in a module of its own; `gradprism init own` writes the same one to begin with.
"""

import random
from dataclasses import dataclass

from transformers import AutoModelForCausalLM, AutoTokenizer

import gradprism as gp


@gp.register_environment("guess-example")
@dataclass(frozen=True)
class Guess(gp.Environment):
    """Tasks `train/0`, `train/1`, …: each a number from 1 to `most`, which its id decides."""

    most: int = 20

    def ids(self, split: str, task_type: str | None = None) -> list[str]:
        return [f"{split}/{number}" for number in range(1000)]

    def session(self) -> "Session":
        return Session(self.most)

    def expert(self) -> "Expert":
        return Expert(self.most)


class Session:
    """Plays a task at a time; any text is an action, and one that is no number changes nothing."""

    def __init__(self, most: int) -> None:
        self.most = most

    def reset(self, task_id: str) -> gp.Step:
        self.number = random.Random(task_id).randint(1, self.most)
        return gp.Step(f"Guess a number from 1 to {self.most}.", info=gp.Info(admissible=[str(n + 1) for n in range(self.most)]))

    def step(self, action: str) -> gp.Step:
        if not (action.isascii() and action.isdecimal() and len(action) < 10):
            return gp.Step("Say a number.", info=gp.Info(valid=False))
        won = int(action) == self.number
        text = "Right." if won else "Higher." if int(action) < self.number else "Lower."
        return gp.Step(text, float(won), won, gp.Info(success=won, score=float(won)))


class Expert:
    """Halves what is left."""

    def __init__(self, most: int) -> None:
        self.low, self.high, self.last = 1, most, 0

    def act(self, step: gp.Step) -> str:
        if step.observation == "Higher.":
            self.low = self.last + 1
        elif step.observation == "Lower.":
            self.high = self.last - 1
        self.last = (self.low + self.high) // 2
        return str(self.last)


def main(count: int = 48) -> dict[str, float]:
    """The success rate of the expert, of random actions, and of a tiny model that has never seen the game."""
    environment = gp.make_environment("guess-example")
    rates = {}
    for agent in ("expert", "random"):
        played = gp.evaluate(agent, environment, gp.EvaluationConfig(splits={"test": count}, max_steps=8))
        rates[agent] = played.rows[0].success
        print(f"{agent}: {played.headline}")

    name = gp.shipped("alfworld-tiny")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    episodes = gp.rollout(model, tokenizer, environment, environment.tasks("test", count), gp.RolloutConfig(max_steps=4), seed=0)
    rates["model"] = sum(episode.success for episode in episodes) / count
    print(f"model: {rates['model']:.0%} success; its first episode said {episodes[0].actions}")
    return rates


if __name__ == "__main__":
    main()
