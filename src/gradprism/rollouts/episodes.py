"""A language model plays episodes, many at once. While the engines of one half play, the model answers the other half.

The order of events is fixed: the halves take turns, and a place whose episode has ended is given the next task. So what is played
depends on no clock.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradprism.environments.pool import RESET, STEP, Pending, SessionPool
from gradprism.environments.prompts import PromptTemplate
from gradprism.environments.protocol import Step, Task
from gradprism.rollouts.generator import CachedGenerator, Generator
from gradprism.runtime.errors import ConfigError
from gradprism.trajectories.rendering import Renderer


@dataclass(frozen=True, slots=True)
class PlayConfig:
    """How episodes are played.

    `temperature` 0 is greedy. `context_length` bounds prompt and completion together: an episode that would outgrow it ends there.
    `in_flight` episodes are played at once, in `cohorts` that take turns. A task whose first observation does not fit is an error, or
    with `refuse_long` false an episode without actions.
    """

    max_steps: int = 20
    max_action_tokens: int = 16
    temperature: float = 0.0
    context_length: int = 1024
    in_flight: int = 64
    cohorts: int = 2
    refuse_long: bool = True
    prompt: PromptTemplate = field(default_factory=PromptTemplate)


@dataclass(slots=True)
class Episode:
    """One played episode. `completion_ids` holds actions and observations; `action_mask` is 1 on the tokens that the model chose.

    `turns` are the half-open spans of the actions in `completion_ids`. Where the prompt is rebuilt at every step, `step_prompts` has
    the tokens before each action, and `completion_ids` holds the actions alone. `valid`: the environment took the
    action; `formed`: the answer had the prompt's form. `rewards` are the environment's, one a step.
    `ended_by` is `environment`, `steps`, `context` or `failure` (of the engine; `failure` says which).
    """

    task: Task
    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    action_mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[tuple[int, int]] = field(default_factory=list)
    step_prompts: list[list[int]] = field(default_factory=list)
    observations: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    valid: list[bool] = field(default_factory=list)
    formed: list[bool] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    success: bool = False
    score: float = 0.0
    ended_by: str = "steps"
    failure: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def reward(self) -> float:
        """The sum of the environment's rewards."""
        return sum(self.rewards)

    def take(self, step: Step) -> None:
        """Adds what an action led to."""
        self.observations.append(step.observation)
        self.valid.append(step.info.valid)
        self.rewards.append(step.reward)
        self.close(step)

    def close(self, step: Step) -> None:
        """Writes down how the episode stands after `step`."""
        info = step.info
        self.success, self.score, self.details = info.success, info.score, info.details
        if step.done:
            self.ended_by, self.failure = ("failure" if info.failure else "environment"), info.failure

    def transcript(self) -> dict[str, Any]:
        """The episode as a JSON-serialisable record."""
        return {
            **self.task.reference(),
            "success": self.success,
            "score": self.score,
            "reward": self.reward,
            "steps": len(self.actions),
            "invalid": self.valid.count(False),
            "tokens": sum(self.action_mask),
            "ended_by": self.ended_by,
            **({"failure": self.failure} if self.failure else {}),
            **({"details": self.details} if self.details else {}),
            "observations": self.observations,
            "actions": self.actions,
        }


@dataclass(slots=True)
class PlayStatistics:
    """Where the time went, and how many tokens and steps it bought; `environment_seconds` is what was waited for the engines."""

    generate_seconds: float = 0.0
    environment_seconds: float = 0.0
    tokens_read: int = 0
    tokens_generated: int = 0
    environment_steps: int = 0


@dataclass(slots=True)
class _Lane:
    """A place of a cohort: an episode, the numbers that it draws from, and the tokens before its next action."""

    session: int
    episode: Episode | None = None
    number: int = -1
    stream: np.random.Generator = field(default_factory=np.random.default_rng)
    prompt: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Cohort:
    """Lanes that move together; `waiting` are the calls whose steps they are owed."""

    lanes: list[_Lane]
    generator: Generator
    waiting: list[tuple[Pending, list[int]]] = field(default_factory=list)


class Player:
    """Plays episodes of one model. Deterministic for a seed, a model, a list of tasks and a `PlayConfig`.

    `make_generator` gives what answers a cohort of so many slots; by default this process's model.
    """

    def __init__(
        self,
        model: Any,
        renderer: Renderer,
        pool: SessionPool,
        config: PlayConfig,
        make_generator: Callable[[int], Generator] | None = None,
    ) -> None:
        self.model, self.renderer, self.pool, self.config = model, renderer, pool, config
        self.statistics = PlayStatistics()
        self._make_generator = make_generator or self._cached_generator
        tokenizer = renderer.tokenizer
        if tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no end-of-sequence token; an action would never end")
        self._end: int = tokenizer.eos_token_id
        self._decode: Callable[[list[int]], str] = lambda ids: tokenizer.decode(ids, skip_special_tokens=True).strip()

    def play(self, tasks: Sequence[Task], seed: int = 0, on_done: Callable[[Episode], None] | None = None) -> list[Episode]:
        """Plays every task once and returns the episodes in the order of `tasks`; `on_done` is called as each ends."""
        episodes: list[Episode | None] = [None] * len(tasks)
        lanes = min(self.config.in_flight, len(tasks))
        if not lanes:
            return []
        cohorts = [
            _Cohort([_Lane(session) for session in sessions], self._make_generator(len(sessions)))
            for sessions in _shares(lanes, min(self.config.cohorts, lanes))
        ]
        queue = iter(enumerate(tasks))
        done = 0

        def end(lane: _Lane) -> None:
            nonlocal done
            assert lane.episode is not None
            episodes[lane.number], done = lane.episode, done + 1
            if on_done is not None:
                on_done(lane.episode)
            lane.episode, lane.number = None, -1

        was_training = self.model.training
        self.model.eval()
        try:
            for cohort in cohorts:
                self._begin(cohort, range(len(cohort.lanes)), queue)
            for cohort in itertools.cycle(cohorts):
                if done == len(tasks):
                    break
                ready = self._receive(cohort, seed, end)
                free = [i for i, lane in enumerate(cohort.lanes) if lane.episode is None and lane.number < 0]
                self._begin(cohort, free, queue)
                if ready:
                    self._act(cohort, ready)
        finally:
            self.model.train(was_training)
            for cohort in cohorts:
                self.statistics.tokens_read += cohort.generator.tokens_read
        return [episode for episode in episodes if episode is not None]

    def check_fits(self, tasks: Sequence[Task]) -> None:
        """Raises `ConfigError` where a task's first observation leaves no room for an action; plays nothing."""
        for task, step in zip(tasks, self.pool.reset(range(len(tasks)), [task.id for task in tasks]), strict=True):
            self._refuse(task, self.renderer.prompt_ids(self.config.prompt.first(step)))

    def _cached_generator(self, slots: int) -> Generator:
        config = self.config
        return CachedGenerator(self.model, slots, config.context_length, self._end, config.max_action_tokens, config.temperature)

    def _begin(self, cohort: _Cohort, free: Sequence[int], queue: Iterator[tuple[int, Task]]) -> None:
        """Gives free lanes the next tasks and asks for their first observations."""
        begun = list(zip(free, queue, strict=False)) if free else []
        for i, (number, task) in begun:
            cohort.lanes[i].number, cohort.lanes[i].episode = number, Episode(task, [])
        if begun:
            lanes = [i for i, _ in begun]
            call = self.pool.send(RESET, [cohort.lanes[i].session for i in lanes], [task.id for _, (_, task) in begun])
            cohort.waiting.append((call, lanes))

    def _receive(self, cohort: _Cohort, seed: int, end: Callable[[_Lane], None]) -> list[int]:
        """Takes the steps that the cohort is owed; the lanes that are to act next."""
        ready = []
        clock = time.perf_counter()
        received = [(lanes, self.pool.collect(call)) for call, lanes in cohort.waiting]
        self.statistics.environment_seconds += time.perf_counter() - clock
        cohort.waiting = []
        for lanes, steps in received:
            for i, step in zip(lanes, steps, strict=True):
                lane = cohort.lanes[i]
                goes_on = self._first(lane, step, seed) if not lane.episode.observations else self._next(lane, step)  # pyright: ignore[reportOptionalMemberAccess]
                if goes_on:
                    ready.append(i)
                else:
                    end(lane)
        return sorted(ready)

    def _first(self, lane: _Lane, step: Step, seed: int) -> bool:
        """Opens an episode; whether it goes on."""
        episode = lane.episode
        assert episode is not None
        episode.observations.append(step.observation)
        lane.stream = np.random.default_rng([seed, lane.number])
        if step.done:  # the engine could not start it
            episode.close(step)
            return False
        lane.prompt = episode.prompt_ids = self.renderer.prompt_ids(self.config.prompt.first(step))
        if self._fits(len(lane.prompt)):
            return True
        if self.config.refuse_long:
            self._refuse(episode.task, lane.prompt)
        episode.ended_by = "context"
        return False

    def _next(self, lane: _Lane, step: Step) -> bool:
        """Adds what an action led to; whether the episode goes on."""
        episode, prompt = lane.episode, self.config.prompt
        assert episode is not None
        episode.take(step)
        if step.done or len(episode.actions) >= self.config.max_steps:
            return False
        if prompt.history is not None:
            lane.prompt = self.renderer.prompt_ids(prompt.messages(episode.observations, episode.actions, step))
            fits = self._fits(len(lane.prompt))
        else:
            suffix = self.renderer.turn_suffix_ids(prompt.following(step))
            if episode.completion_ids[-1] != self._end:
                suffix = [self._end, *suffix]  # the action ran into its length limit; the template needs its end
            fits = self._fits(len(episode.prompt_ids) + len(episode.completion_ids) + len(suffix))
            if fits:
                episode.completion_ids += suffix
                episode.action_mask += [0] * len(suffix)
                episode.logprobs += [0.0] * len(suffix)
                lane.prompt = episode.prompt_ids + episode.completion_ids
        if not fits:
            episode.ended_by = "context"
        return fits

    def _act(self, cohort: _Cohort, ready: list[int]) -> None:
        """Generates one action for every ready lane and sends it to its engine."""
        lanes = [cohort.lanes[i] for i in ready]
        clock = time.perf_counter()
        answers = cohort.generator.generate(ready, [lane.prompt for lane in lanes], [lane.stream for lane in lanes])
        commands = []
        for lane, answer in zip(lanes, answers, strict=True):
            episode = lane.episode
            assert episode is not None
            if self.config.prompt.history is not None:
                episode.step_prompts.append(lane.prompt)
            begin = len(episode.completion_ids)
            episode.completion_ids += answer.ids
            episode.logprobs += answer.logprobs
            episode.action_mask += [1] * len(answer.ids)
            episode.turns.append((begin, len(episode.completion_ids)))
            episode.actions.append(self._decode(answer.ids[:-1] if answer.ids[-1] == self._end else answer.ids))
            command, formed = self.config.prompt.parse(episode.actions[-1])
            episode.formed.append(formed)
            commands.append(command)
            self.statistics.tokens_generated += len(answer.ids)
        self.statistics.generate_seconds += time.perf_counter() - clock
        self.statistics.environment_steps += len(lanes)
        cohort.waiting.append((self.pool.send(STEP, [lane.session for lane in lanes], commands), ready))

    def _fits(self, tokens: int) -> bool:
        return tokens + self.config.max_action_tokens <= self.config.context_length

    def _refuse(self, task: Task, ids: list[int]) -> None:
        if not self._fits(len(ids)):
            raise ConfigError(
                f"task {task.id!r}: its prompt of {len(ids)} tokens and one action do not fit into a context of "
                f"{self.config.context_length}; raise the context length"
            )


def _shares(n: int, parts: int) -> list[range]:
    """`range(n)` in `parts` runs of nearly equal length."""
    cuts = [n * part // parts for part in range(parts + 1)]
    return [range(a, b) for a, b in itertools.pairwise(cuts)]
