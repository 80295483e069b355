"""A few episodes played to see how long they are and how long they take, before any training."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Step, Task
from gradprism.evaluation.agents import RandomPolicy
from gradprism.rollouts.episodes import PlayConfig, Player
from gradprism.training.rl_config import RlConfig
from gradprism.training.rounds import training_rows
from gradprism.trajectories.rendering import Renderer

EPISODES = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """Means an episode: training `rows`, their tokens (`trained`) and the sum of their `squares`, tokens `read` and `generated`,
    environment `steps`, `seconds`. `longest` is the longest row; `by_model`: the seconds hold the answers of the model itself."""

    rows: float
    trained: float
    squares: float
    read: float
    generated: float
    steps: float
    seconds: float
    longest: int
    by_model: bool

    @property
    def source(self) -> str:
        """Who played."""
        return f"{EPISODES} episodes of " + ("this model" if self.by_model else "random admissible actions, which seldom win")


def play_some(
    model: Any | None, renderer: Renderer, pool: SessionPool, tasks: Sequence[Task], config: RlConfig, context_length: int
) -> Sample:
    """Plays `EPISODES` of the tasks with `model`, or without one by random admissible actions, under the limits of `config`."""
    drawn = [tasks[i * len(tasks) // EPISODES] for i in range(EPISODES)]
    pool.reset([0], [drawn[0].id])  # the first game of a process pays for what it loads
    clock = time.perf_counter()
    if model is None:
        lanes = _play_randomly(renderer, pool, drawn, config, context_length)
        seconds = time.perf_counter() - clock
        rows = [row for lane in lanes for row in lane.rows]
        counts = [sum(getattr(lane, name) for lane in lanes) for name in ("read", "generated", "steps")]
    else:
        play = PlayConfig(
            max_steps=config.max_steps,
            max_action_tokens=config.max_action_tokens,
            temperature=config.temperature,
            context_length=context_length,
            refuse_long=False,
            prompt=config.prompt,
        )
        player = Player(model, renderer, pool, play)
        episodes = player.play(drawn, config.seed)
        seconds = time.perf_counter() - clock
        rows = [len(row) for episode in episodes for row in training_rows(episode, np.zeros(len(episode.turns)))]
        said = player.statistics
        counts = [said.tokens_read, said.tokens_generated, said.environment_steps]
    squares = sum(length * length for length in rows)
    read, generated, steps = counts
    return Sample(
        rows=len(rows) / EPISODES,
        trained=sum(rows) / EPISODES,
        squares=squares / EPISODES,
        read=read / EPISODES,
        generated=generated / EPISODES,
        steps=steps / EPISODES,
        seconds=seconds / EPISODES,
        longest=max(rows, default=1),
        by_model=model is not None,
    )


@dataclass(slots=True)
class _Lane:
    """An episode of random actions; `length` is what its next prompt, or its conversation so far, has."""

    policy: RandomPolicy
    step: Step
    observations: list[str]
    length: int = 0
    ended: bool = False
    actions: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    read: int = 0
    generated: int = 0

    @property
    def steps(self) -> int:
        return len(self.actions)


def _play_randomly(
    renderer: Renderer, pool: SessionPool, tasks: Sequence[Task], config: RlConfig, context_length: int
) -> list[_Lane]:
    prompt, most, grows = config.prompt, config.max_action_tokens, config.prompt.history is None

    def take(lane: _Lane, step: Step, added: Callable[[], int]) -> None:
        """Shows a step to its lane; `added` gives the tokens of it that are to be read before the next action."""
        lane.step = step
        lane.ended = step.done or lane.steps >= config.max_steps
        if not lane.ended:
            tokens = added()
            length = tokens + (lane.length if grows else 0)
            lane.ended = length + most > context_length
            if not lane.ended:
                lane.length, lane.read = length, lane.read + tokens

    def first(step: Step) -> int:
        return len(renderer.prompt_ids(prompt.first(step)))

    def following(lane: _Lane, step: Step) -> int:
        if grows:
            return len(renderer.turn_suffix_ids(prompt.following(step)))
        return len(renderer.prompt_ids(prompt.messages(lane.observations, lane.actions, step)))

    lanes = []
    for i, step in enumerate(pool.reset(range(len(tasks)), [task.id for task in tasks])):
        lanes.append(_Lane(RandomPolicy(f"{config.seed}/{i}"), step, [step.observation]))
        take(lanes[i], step, partial(first, step))
    while playing := [i for i, lane in enumerate(lanes) if not lane.ended]:
        actions = [lanes[i].policy.act(lanes[i].step) for i in playing]
        for i, action, step in zip(playing, actions, pool.step(playing, actions), strict=True):
            lane = lanes[i]
            # With its end; thoughts are taken to be as long as they may.
            said = most if prompt.form == "tags" else len(renderer.tokenizer(action, add_special_tokens=False)["input_ids"]) + 1
            lane.length, lane.generated = lane.length + min(said, most), lane.generated + min(said, most)
            lane.actions.append(action)
            lane.observations.append(step.observation)
            if not grows:
                lane.rows.append(lane.length)
            take(lane, step, partial(following, lane, step))
    for lane in lanes:
        if grows and lane.actions:
            lane.rows.append(lane.length)
    return lanes
