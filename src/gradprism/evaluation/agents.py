"""Who plays an evaluation: a language model, the environment's expert, or chance."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Environment, Step, Task
from gradprism.evaluation.config import EvaluationConfig
from gradprism.rollouts.episodes import Episode, PlayConfig, Player, PlayStatistics
from gradprism.runtime.errors import EnvironmentPlayError
from gradprism.trajectories.rendering import Renderer

OnDone = Callable[[Episode], None]
_PLACEHOLDER = re.compile(r"<[^<>]*>")
_WORD = re.compile(r"[A-Za-z]{3,}")


class Agent(Protocol):
    """Plays batches of tasks; what it does depends on the batch and the seed alone."""

    @property
    def description(self) -> dict[str, Any]:
        """What tells it from other agents, for the manifest."""
        ...

    def play(
        self,
        environment: Environment,
        pool: SessionPool,
        tasks: Sequence[Task],
        config: EvaluationConfig,
        seed: int,
        on_done: OnDone,
    ) -> tuple[list[Episode], PlayStatistics]:
        """One episode a task, in order, and what they cost."""
        ...


@dataclass(frozen=True, slots=True)
class ModelAgent:
    """A language model; `identity` says which."""

    model: Any
    renderer: Renderer
    context_length: int
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def description(self) -> dict[str, Any]:
        """The model's identity and the context it plays in."""
        return {"kind": "model", "context_length": self.context_length, **self.identity}

    def play(
        self,
        environment: Environment,
        pool: SessionPool,
        tasks: Sequence[Task],
        config: EvaluationConfig,
        seed: int,
        on_done: OnDone,
    ) -> tuple[list[Episode], PlayStatistics]:
        """See `Agent`."""
        player = Player(
            self.model,
            self.renderer,
            pool,
            PlayConfig(
                max_steps=config.max_steps,
                max_action_tokens=config.max_action_tokens,
                temperature=config.temperature,
                context_length=self.context_length,
                in_flight=config.in_flight,
                prompt=config.prompt,
            ),
        )
        return player.play(tasks, seed, on_done), player.statistics


@dataclass(frozen=True, slots=True)
class ScriptedAgent:
    """The environment's expert, or uniformly random admissible actions."""

    kind: str

    @property
    def description(self) -> dict[str, Any]:
        """Its kind."""
        return {"kind": self.kind}

    def play(
        self,
        environment: Environment,
        pool: SessionPool,
        tasks: Sequence[Task],
        config: EvaluationConfig,
        seed: int,
        on_done: OnDone,
    ) -> tuple[list[Episode], PlayStatistics]:
        """See `Agent`."""
        if self.kind == "expert":
            policies = [environment.expert().act for _ in tasks]
        else:
            policies = [RandomPolicy(f"{seed}/{task.id}").act for task in tasks]
        steps = pool.reset(range(len(tasks)), [task.id for task in tasks])
        episodes = [Episode(task, [], observations=[step.observation]) for task, step in zip(tasks, steps, strict=True)]
        statistics, playing = PlayStatistics(), []
        for index, step in enumerate(steps):
            if step.done:  # the engine could not start it
                episodes[index].close(step)
                on_done(episodes[index])
            else:
                playing.append(index)
        while playing:
            acting = []
            for index in playing:
                try:
                    episodes[index].actions.append(policies[index](steps[index]))
                    acting.append(index)
                except EnvironmentPlayError:  # the expert knows no way on
                    episodes[index].ended_by = "gave up"
                    on_done(episodes[index])
            for index, step in zip(acting, pool.step(acting, [episodes[i].actions[-1] for i in acting]), strict=True):
                steps[index] = step
                episodes[index].take(step)
            statistics.environment_steps += len(acting)
            playing = [i for i in acting if not steps[i].done and len(episodes[i].actions) < config.max_steps]
            for index in sorted(set(acting) - set(playing)):
                on_done(episodes[index])
        return episodes, statistics


class RandomPolicy:
    """Each admissible action is as likely as any other; `<…>` in one stands for one to three words of the first observation."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self._words: list[str] = []

    def act(self, step: Step) -> str:
        """The next action."""
        self._words = self._words or _WORD.findall(step.observation) or ["look"]
        action = self._random.choice(step.info.admissible) if step.info.admissible else "look"
        return _PLACEHOLDER.sub(lambda _: " ".join(self._random.choices(self._words, k=self._random.randint(1, 3))), action)
