"""A language model plays episodes, many at once. While the engines of one half play, the model answers the other half.

The order of events is fixed: the halves take turns, and a place whose episode has ended is given the next task. So what is played
depends on no clock.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gradprism.checkpoints import load_config, tokenizer_source
from gradprism.environments.pool import RESET, STEP, Pending, SessionPool
from gradprism.environments.prompts import PromptTemplate
from gradprism.environments.protocol import Environment, Step, Task
from gradprism.environments.registry import as_environment
from gradprism.models import ModelSpec, check_context_length
from gradprism.rollouts.config import RolloutConfig
from gradprism.rollouts.episode import Episode, StopReason, Turn
from gradprism.rollouts.generator import CachedGenerator, Generator
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.progress import warn
from gradprism.runtime.usage import Usage
from gradprism.trajectories.rendering import Renderer, load_tokenizer

OnDone = Callable[[Episode], None]


def rollout(
    model: Any,
    tokenizer: Any,
    environment: Environment | str,
    tasks: Sequence[Task],
    config: RolloutConfig = RolloutConfig(),
    *,
    seed: int = 0,
    workers: int | None = None,
) -> list[Episode]:
    """Plays each task once with a `transformers` causal language model; its episodes, in the order of `tasks`.

    `model` may also be a folder, a hub id or a `ModelSpec`, `tokenizer` None for the model's own, `environment` the name of one.
    What is played follows from model, tasks, `config` and `seed`, and from neither `workers` (processes of engines; default one per
    core) nor `config.in_flight`. Raises `ConfigError` for a task whose first observation does not fit into the context, and
    `ModelError` for a tokenizer without a usable chat template or logits that are not finite.
    """
    environment = as_environment(environment)
    model, tokenizer = model_and_tokenizer(model, tokenizer)
    with SessionPool(environment, workers) as pool:
        return Player(model, Renderer(tokenizer, None), pool, config).play(tasks, seed)


def model_and_tokenizer(model: Any, tokenizer: Any = None) -> tuple[Any, Any]:
    """Both, loaded where they are not yet: a model by folder, hub id or `ModelSpec`, and for None the model's own tokenizer.

    Raises `ConfigError` for a loaded model that has no name by which to find its tokenizer.
    """
    if isinstance(model, str | Path):
        model = ModelSpec(str(model))
    name, template = (model.path, model.chat_template) if isinstance(model, ModelSpec) else (model.name_or_path, None)
    if isinstance(model, ModelSpec):
        load_config(name)  # what is no language model is refused before its tokenizer is
    if tokenizer is None:
        if not name:
            raise ConfigError("tokenizer: the model has no name by which to find its own; give one")
        tokenizer = load_tokenizer(tokenizer_source(name), template)
    return model.load() if isinstance(model, ModelSpec) else model, tokenizer


@dataclass(slots=True)
class _Lane:
    """A place of a cohort: an episode, the numbers that it draws from, and the tokens before its next action.

    `unread` of these, the last, came since the action before it.
    """

    session: int
    episode: Episode | None = None
    number: int = -1
    stream: np.random.Generator = field(default_factory=np.random.default_rng)
    prompt: list[int] = field(default_factory=list)
    unread: int = 0


@dataclass(slots=True)
class _Cohort:
    """Lanes that move together; `pending` are the calls whose steps have not come yet."""

    lanes: list[_Lane]
    generator: Generator
    pending: list[tuple[Pending, list[int]]] = field(default_factory=list)


class Player:
    """Plays episodes of one model. Deterministic for a seed, a model, a list of tasks and a `RolloutConfig`.

    `make_generator` gives what answers a cohort of so many slots; by default this process's model, of which else the configuration will
    do. A task whose first observation does
    not fit is an error or, with `refuse_long` false, an episode without actions. All calls of `play` have `used` so much,
    and taken so many seconds to generate and to wait for the engines.
    """

    def __init__(
        self,
        model: Any,
        renderer: Renderer,
        pool: SessionPool,
        config: RolloutConfig,
        make_generator: Callable[[int], Generator] | None = None,
        *,
        cohorts: int = 2,
        refuse_long: bool = True,
    ) -> None:
        self.model, self.renderer, self.pool, self.config = model, renderer, pool, config
        self.cohorts, self.refuse_long = cohorts, refuse_long
        self.context_length = check_context_length(model, config.context_length)
        self.used, self.generate_seconds, self.environment_seconds = Usage(), 0.0, 0.0
        self._make_generator = make_generator or self._cached_generator
        tokenizer = renderer.tokenizer
        self._end: int = renderer.stop_id
        self._warned = False
        self._decode: Callable[[list[int]], str] = lambda ids: tokenizer.decode(ids, skip_special_tokens=True).strip()

    def play(self, tasks: Sequence[Task], seed: int = 0, on_done: OnDone = lambda _: None) -> list[Episode]:
        """Plays every task once and returns the episodes in the order of `tasks`; `on_done` is called as each ends."""
        episodes: dict[int, Episode] = {}
        lanes = min(self.config.in_flight, len(tasks))
        if not lanes:
            return []
        cohorts = [
            _Cohort([_Lane(session) for session in sessions], self._make_generator(len(sessions)))
            for sessions in _shares(lanes, min(self.cohorts, lanes))
        ]
        queue = iter(enumerate(tasks))

        def end(lane: _Lane, episode: Episode) -> None:
            episodes[lane.number], lane.episode = episode, None
            on_done(episode)

        was_training = getattr(self.model, "training", False)
        if was_training:
            self.model.eval()
        try:
            for cohort in cohorts:
                self._begin(cohort, queue)
            for cohort in itertools.cycle(cohorts):
                if len(episodes) == len(tasks):
                    break
                ready = self._receive(cohort, seed, end)
                self._begin(cohort, queue)
                if ready:
                    self._act(cohort, ready)
        finally:
            if was_training:
                self.model.train()
            self.used += Usage(sum(cohort.generator.tokens_read for cohort in cohorts))
        return [episodes[number] for number in range(len(tasks))]

    def check_fits(self, tasks: Sequence[Task]) -> None:
        """Raises `ConfigError` where a task's first observation leaves no room for an action; plays nothing."""
        for task, step in zip(tasks, self.pool.reset(range(len(tasks)), [task.id for task in tasks]), strict=True):
            self._refuse(task, self.renderer.prompt_ids(self.config.prompt.first(step)))

    def _cached_generator(self, slots: int) -> Generator:
        config = self.config
        return CachedGenerator(self.model, slots, self.context_length, self._end, config.max_action_tokens, config.temperature)

    def _begin(self, cohort: _Cohort, queue: Iterator[tuple[int, Task]]) -> None:
        """Gives free lanes the next tasks and asks for their first observations."""
        free = [i for i, lane in enumerate(cohort.lanes) if lane.episode is None]
        begun = list(zip(free, queue, strict=False)) if free else []
        for i, (number, task) in begun:
            cohort.lanes[i].number = number
            cohort.lanes[i].episode = Episode(task, grows=self.config.prompt.history is None)
        if begun:
            lanes = [i for i, _ in begun]
            call = self.pool.send(RESET, [cohort.lanes[i].session for i in lanes], [task.id for _, (_, task) in begun])
            cohort.pending.append((call, lanes))

    def _receive(self, cohort: _Cohort, seed: int, end: Callable[[_Lane, Episode], None]) -> list[int]:
        """Takes the steps that the cohort waits for; the lanes that are to act next."""
        ready = []
        clock = time.perf_counter()
        received = [(lanes, self.pool.collect(call)) for call, lanes in cohort.pending]
        self.environment_seconds += time.perf_counter() - clock
        cohort.pending = []
        for lanes, steps in received:
            for i, step in zip(lanes, steps, strict=True):
                lane = cohort.lanes[i]
                assert lane.episode is not None
                if self._take(lane, lane.episode, step, seed):
                    ready.append(i)
                else:
                    end(lane, lane.episode)
        return sorted(ready)

    def _take(self, lane: _Lane, episode: Episode, step: Step, seed: int) -> bool:
        """Adds what an action, or the task's beginning, led to; whether the episode goes on."""
        episode.take(step)
        if not episode.turns:
            lane.stream, lane.prompt = np.random.default_rng([seed, lane.number]), []
        if step.done or len(episode.turns) >= self.config.max_steps:
            return False
        if not self._warned and (control := self.renderer.control_in(episode.observation)):
            self._warned = True
            warn(
                f"warning: task {episode.task.id!r}: an observation holds the text of {', '.join(map(repr, sorted(control)))}, which the "
                "tokenizer reads as if the chat template had written it"
            )
        ids = next_prompt(self.renderer, self.config.prompt, episode.observations, episode.actions, step)
        if episode.grows:
            # An action that ran into its length limit has no end, and the template needs one.
            ids = [self._end, *ids] if lane.prompt and lane.prompt[-1] != self._end else ids
            lane.prompt = lane.prompt + ids
        else:
            lane.prompt = ids
        lane.unread = len(ids)
        if self._fits(len(lane.prompt)):
            return True
        if self.refuse_long and not episode.turns:
            self._refuse(episode.task, lane.prompt)
        episode.stop_reason = StopReason.CONTEXT
        return False

    def _act(self, cohort: _Cohort, ready: list[int]) -> None:
        """Generates one action for every ready lane and sends it to its engine."""
        lanes = [cohort.lanes[i] for i in ready]
        clock = time.perf_counter()
        answers = cohort.generator.generate(ready, [lane.prompt for lane in lanes], [lane.stream for lane in lanes])
        commands = []
        for lane, answer in zip(lanes, answers, strict=True):
            episode = lane.episode
            assert episode is not None
            text = answer.text
            if text is None:
                text = self._decode(answer.ids[:-1] if answer.ids[-1] == self._end else answer.ids)
            command, well_formed = self.config.prompt.parse(text)
            read = lane.prompt[-lane.unread :]
            episode.turns.append(Turn(episode.observation, text, read, answer.ids, answer.logprobs, well_formed))
            lane.prompt = lane.prompt + answer.ids
            commands.append(command)
        self.generate_seconds += time.perf_counter() - clock
        self.used += Usage(tokens_generated=sum(len(answer.ids) for answer in answers), environment_steps=len(lanes))
        cohort.pending.append((self.pool.send(STEP, [lane.session for lane in lanes], commands), ready))

    def _fits(self, tokens: int) -> bool:
        return tokens + self.config.max_action_tokens <= self.context_length

    def _refuse(self, task: Task, ids: list[int]) -> None:
        if not self._fits(len(ids)):
            raise ConfigError(
                f"task {task.id!r}: its prompt of {len(ids)} tokens and one action do not fit into a context of "
                f"{self.context_length}; raise the context length"
            )


def next_prompt(
    renderer: Renderer, prompt: PromptTemplate, observations: Sequence[str], actions: Sequence[str], step: Step
) -> list[int]:
    """Tokens before the next action: those since the action before it in a growing conversation, else the whole prompt.

    `observations` are those so far with the current one last, `actions` those between them; `step` is the current one.
    """
    if prompt.history is not None:
        return renderer.prompt_ids(prompt.messages(observations, actions, step))
    return renderer.turn_suffix_ids(prompt.following(step)) if actions else renderer.prompt_ids(prompt.first(step))


def _shares(n: int, parts: int) -> list[range]:
    """`range(n)` in `parts` runs of nearly equal length."""
    cuts = [n * part // parts for part in range(parts + 1)]
    return [range(a, b) for a, b in itertools.pairwise(cuts)]
