"""Short stories under wishes as an `Environment`: tasks without data, a graded score, an expert that writes by a grammar."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from gradprism.environments.protocol import Environment, Info, Step, Task
from gradprism.environments.stories import fluency, grammar, tasks
from gradprism.environments.stories.text import repetition, words
from gradprism.environments.stories.wishes import Wishes
from gradprism.runtime.errors import ConfigError, EnvironmentPlayError

MAX_CHARACTERS = 4000  # of a story; what comes after them is not read
BAR = 0.5  # the score of a success, besides all wishes


@dataclass(frozen=True)
class StoriesEnvironment(Environment):
    """Stories scored by `fluency`: the folder of a frozen language model, `shipped:stories-tiny`, or `none` to leave it out.

    A mean log-probability of `worst` or below is no fluency at all, of `best` or above all of it. `revisions` are how often a writer may
    write the story again after being told which wishes it does not meet; the last story counts.
    """

    fluency: str = "shipped:stories-tiny"
    worst: float = -5.0
    best: float = -1.5
    revisions: int = 0
    name = "stories"
    splits = tuple(tasks.SIZES)
    evaluation_splits = ("unseen", "seen")
    dev_split = "dev"

    def __post_init__(self) -> None:
        if not self.worst < self.best:
            raise ConfigError(f"worst {self.worst:g}: must be below best {self.best:g}")
        if self.revisions < 0:
            raise ConfigError(f"revisions {self.revisions}: choose 0 or more")
        if self.fluency != fluency.NONE:
            fluency.model_folder(self.fluency)

    def ids(self, split: str, task_type: str | None = None) -> Sequence[str]:
        """Ids of a split's tasks, its combinations of kinds of wish in turn."""
        types = tasks.types_of(split)
        if task_type is not None and task_type not in types:
            raise ConfigError(f"task type {task_type!r}: choose one of {list(types)}")
        return [f"{split}/{n}" for n in range(tasks.SIZES[split]) if task_type in (None, types[n % len(types)])]

    def find(self, task_id: str) -> Task:
        """The task of an id such as `train/17`."""
        return Task(self.name, task_id, tasks.type_of(task_id), tasks.parse_id(task_id)[0])

    def identity(self, tasks: Sequence[Task] | None = None) -> dict[str, object]:
        """All that its tasks and steps depend on; the model that tells fluency counts by the hash of its files, not by its path."""
        return {**super().identity(tasks), "fluency": fluency.fingerprint(self.fluency)}

    def session(self) -> "StoriesSession":
        """A session; all of a process share one frozen model."""
        return StoriesSession(self)

    def expert(self) -> "StoriesExpert":
        """The writer, who has no memory."""
        return StoriesExpert()


class StoriesSession:
    """One writer's desk; see `Session`."""

    def __init__(self, environment: StoriesEnvironment) -> None:
        self._environment = environment
        self._model = None if environment.fluency == fluency.NONE else fluency.frozen_model(environment.fluency)
        self._wishes, self._task, self._left, self._last = Wishes(), "", 0, Step("")

    def reset(self, task_id: str) -> Step:
        """Tells the wishes."""
        self._wishes, self._left = tasks.wishes_of(task_id), self._environment.revisions
        self._task = self._wishes.text()
        self._last = Step(self._task, info=Info(admissible=["<story>"]))
        return self._last

    def step(self, action: str) -> Step:
        """Reads a story and scores it. What holds no word is no story and changes nothing."""
        story = action[:MAX_CHARACTERS]
        if self._last.done or not words(story):
            last = self._last.info
            info = Info(False, last.admissible, last.success, last.score, last.parts, details=last.details)
            return Step("Write the story.", done=self._last.done, info=info)
        info = self._score(story)
        done = info.success or not self._left
        self._left -= 1
        missed = info.details["missed"]
        asked = f"Not yet: {' '.join(missed)}" if isinstance(missed, list) and missed else "Write it more simply."
        told = "The end." if done else f"{asked}\nWrite the whole story again."
        self._last = Step(told, info.score if done else 0.0, done, info)
        return self._last

    def _score(self, story: str) -> Info:
        """Share of wishes met × fluency × (1 − repetition), rounded to 4 digits, so that no machine's rounding shows."""
        found = self._wishes.check(story)
        each = [met for of_kind in found.values() for met in of_kind]
        fluent, details = 1.0, dict[str, object]()
        if self._model is not None:
            worst, best = self._environment.worst, self._environment.best
            log_probability = max(-1e6, self._model.log_probability(self._task, story))
            fluent = min(1.0, max(0.0, (log_probability - worst) / (best - worst)))
            details["log_probability"] = round(log_probability, 4)
        fresh = 1 - repetition(words(story))
        score = round(sum(each) / len(each) * fluent * fresh, 4)
        details["missed"] = [line for kind, line in self._wishes.lines() if not all(found[kind])]
        parts = {kind: float(all(met)) for kind, met in found.items()}
        parts |= {"fluency": round(fluent, 4), "no repetition": round(fresh, 4)}
        return Info(True, ["<story>"], all(each) and score >= BAR, score, parts, details=details)


class StoriesExpert:
    """Writes by the grammar what the task's text asks for; the same text gives the same story."""

    def act(self, step: Step) -> str:
        """A story; raises `EnvironmentPlayError` where the step asks for none, or for a word that the grammar has not."""
        try:
            return grammar.write(Wishes.parse(step.observation), random.Random(step.observation))
        except ValueError as error:
            raise EnvironmentPlayError(f"the expert cannot write this: {error}") from None
