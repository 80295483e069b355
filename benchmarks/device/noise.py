"""An environment without a subject: texts of a fixed length, a fixed number of steps, and random rewards, so that no group of episodes
is without a gradient even where a model of random weights plays."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from gradprism.environments.protocol import Environment, Info, Step, Task

_WORDS = (
    "find",
    "me",
    "a",
    "red",
    "cotton",
    "shirt",
    "with",
    "long",
    "sleeves",
    "and",
    "price",
    "lower",
    "than",
    "thirty",
    "dollars",
)


@dataclass(frozen=True)
class NoiseEnvironment(Environment):
    """`tasks_in_split` tasks of `steps` steps, with `words` words an observation and `action_words` an action."""

    tasks_in_split: int = 64
    steps: int = 3
    words: int = 120
    action_words: int = 8
    name = "device.noise:NoiseEnvironment"
    splits = ("train", "test")
    evaluation_splits = ("test",)

    def ids(self, split: str, task_type: str | None = None) -> Sequence[str]:
        """Ids of a split's tasks."""
        return [f"{split}/{number}" for number in range(self.tasks_in_split)]

    def find(self, task_id: str) -> Task:
        """The task of an id."""
        return Task(self.name, task_id, "noise", task_id.partition("/")[0])

    def session(self) -> "NoiseSession":
        """A session."""
        return NoiseSession(self)


class NoiseSession:
    """See `Session`; unlike others it does not repeat itself: rewards are drawn anew."""

    def __init__(self, environment: NoiseEnvironment) -> None:
        self._environment, self._taken, self._random = environment, 0, random.Random()

    def reset(self, task_id: str) -> Step:
        """Begins an episode."""
        self._taken = 0
        return Step(self._text(self._environment.words), info=self._info())

    def step(self, action: str) -> Step:
        """Takes any action."""
        self._taken += 1
        done = self._taken >= self._environment.steps
        reward = self._random.random() if done else 0.0
        return Step(self._text(self._environment.words), reward, done, self._info(reward))

    def _info(self, score: float = 0.0) -> Info:
        return Info(True, [self._text(self._environment.action_words) for _ in range(4)], False, score)

    def _text(self, words: int) -> str:
        return " ".join(self._random.choices(_WORDS, k=words))
