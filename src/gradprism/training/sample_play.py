"""A few episodes played to see how long they are and how long they take, before any training."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Step, Task
from gradprism.evaluation.agents import ScriptedAgent
from gradprism.rollouts.episode import Episode
from gradprism.rollouts.player import Player
from gradprism.training.rl_config import RlConfig
from gradprism.trajectories.rendering import Renderer

EPISODES = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """Means per episode: training `rows`, their tokens (`trained`) and the sum of their `squares`, tokens `read` and `generated`,
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


class _Watched:
    """The part of a pool that `ScriptedAgent` asks; keeps every session's steps."""

    def __init__(self, pool: SessionPool) -> None:
        self.pool, self.steps = pool, defaultdict[int, list[Step]](list)

    def reset(self, sessions: Sequence[int], task_ids: Sequence[str]) -> list[Step]:
        return self._kept(sessions, self.pool.reset(sessions, task_ids))

    def step(self, sessions: Sequence[int], actions: Sequence[str]) -> list[Step]:
        return self._kept(sessions, self.pool.step(sessions, actions))

    def _kept(self, sessions: Sequence[int], steps: list[Step]) -> list[Step]:
        for session, step in zip(sessions, steps, strict=True):
            self.steps[session].append(step)
        return steps


def play_some(
    model: Any | None, renderer: Renderer, pool: SessionPool, tasks: Sequence[Task], config: RlConfig, context_length: int
) -> Sample:
    """Plays `EPISODES` of the tasks with `model`, or without one by random admissible actions, under the limits of `config`."""
    config = config.model_copy(update={"context_length": context_length})
    drawn = [tasks[i * len(tasks) // EPISODES] for i in range(EPISODES)]
    pool.reset([0], [drawn[0].id])  # the first game of a process pays for what it loads
    clock = time.perf_counter()
    if model is None:
        episodes = [turns for _, turns in play_randomly(renderer, pool, drawn, config, context_length)]
        seconds = time.perf_counter() - clock
        read = sum(read for episode in episodes for read, _ in episode)
    else:
        player = Player(model, renderer, pool, config, refuse_long=False)
        played = player.play(drawn, config.seed)
        seconds, read = time.perf_counter() - clock, player.costs.tokens_read
        episodes = [[(len(turn.prompt_ids), len(turn.completion_ids)) for turn in episode.turns] for episode in played]
    rows = [row for episode in episodes for row in rows_of(episode, config)]
    return Sample(
        rows=len(rows) / EPISODES,
        trained=sum(rows) / EPISODES,
        squares=sum(row * row for row in rows) / EPISODES,
        read=read / EPISODES,
        generated=sum(said for episode in episodes for _, said in episode) / EPISODES,
        steps=sum(map(len, episodes)) / EPISODES,
        seconds=seconds / EPISODES,
        longest=max(rows, default=1),
        by_model=model is not None,
    )


def play_randomly(
    renderer: Renderer, pool: SessionPool, tasks: Sequence[Task], config: RlConfig, context_length: int
) -> list[tuple[Episode, list[tuple[int, int]]]]:
    """Episodes of random admissible actions, and the tokens that each of their turns would have read and said."""
    watched: Any = _Watched(pool)
    played, _ = ScriptedAgent("random").play(None, watched, tasks, config, config.seed, lambda _: None)  # pyright: ignore[reportArgumentType] # chance asks no environment
    return [(episode, _imagined(episode, watched.steps[i], renderer, config, context_length)) for i, episode in enumerate(played)]


def rows_of(turns: Sequence[tuple[int, int]], config: RlConfig) -> list[int]:
    """Lengths of an episode's training rows, from the tokens that each turn read and said."""
    lengths = [read + said for read, said in turns]
    return ([sum(lengths)] if lengths else []) if config.prompt.history is None else lengths


def _imagined(
    episode: Episode, steps: Sequence[Step], renderer: Renderer, config: RlConfig, context_length: int
) -> list[tuple[int, int]]:
    """Tokens that each turn would have read and said, had a language model played the episode, until its context is full."""
    prompt, most, turns, total = config.prompt, config.max_action_tokens, [], 0
    for number, (turn, step) in enumerate(zip(episode.turns, steps, strict=False)):
        if number == 0:
            read = len(renderer.prompt_ids(prompt.first(step)))
        elif prompt.history is None:
            read = len(renderer.turn_suffix_ids(prompt.following(step)))
        else:
            read = len(renderer.prompt_ids(prompt.messages(episode.observations[: number + 1], episode.actions[:number], step)))
        total = read + (total if prompt.history is None else 0)
        if total + most > context_length:
            break
        # With its end; thoughts are taken to be as long as they may.
        said = most if prompt.form == "tags" else len(renderer.tokenizer(turn.action, add_special_tokens=False)["input_ids"]) + 1
        total += min(said, most)
        turns.append((read, min(said, most)))
    return turns
