"""A language model plays episodes, many at once, as growing conversations with one key/value cache."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gradprism.environments.pool import SessionPool
from gradprism.environments.prompts import PromptTemplate
from gradprism.environments.protocol import Step, Task
from gradprism.errors import ConfigError, ModelError
from gradprism.rollouts.cache import ConversationCache
from gradprism.trajectories.rendering import Renderer

# Finished episodes and masked columns are squeezed out of the cache once they make up this share of it.
SQUEEZE_AT = 0.25


@dataclass(frozen=True, slots=True)
class PlayConfig:
    """How episodes are played.

    `temperature` 0 is greedy. `context_length` bounds prompt and completion together: an episode that would outgrow it ends there.
    """

    max_steps: int = 20
    max_action_tokens: int = 16
    temperature: float = 0.0
    context_length: int = 1024
    in_flight: int = 64
    prompt: PromptTemplate = field(default_factory=PromptTemplate)


@dataclass(slots=True)
class Episode:
    """One played episode. `completion_ids` holds actions and observations; `action_mask` is 1 on the tokens that the model chose.

    Where the prompt is rebuilt at every step, `prompt_ids` is the first one and `completion_ids` holds the actions alone. `ended_by` is
    `environment`, `steps`, `context` or `failure` (of the engine; `failure` says which).
    """

    task: Task
    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    action_mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    observations: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    valid: list[bool] = field(default_factory=list)
    reward: float = 0.0
    success: bool = False
    score: float = 0.0
    ended_by: str = "steps"
    failure: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def take(self, step: Step) -> None:
        """Adds what an action led to."""
        self.observations.append(step.observation)
        self.valid.append(step.info.valid)
        self.reward += step.reward
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
    """Where the time went, and how many tokens and steps it bought."""

    generate_seconds: float = 0.0
    environment_seconds: float = 0.0
    tokens_read: int = 0
    tokens_generated: int = 0
    environment_steps: int = 0


class Player:
    """Plays episodes of one model. Deterministic for a seed, a model, a list of tasks and a `PlayConfig`."""

    def __init__(self, model: Any, renderer: Renderer, pool: SessionPool, config: PlayConfig) -> None:
        self.model, self.renderer, self.pool, self.config = model, renderer, pool, config
        self.statistics = PlayStatistics()
        tokenizer = renderer.tokenizer
        if tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no end-of-sequence token; an action would never end")
        self._end: int = tokenizer.eos_token_id
        self._decode: Callable[[list[int]], str] = lambda ids: tokenizer.decode(ids, skip_special_tokens=True).strip()

    def play(self, tasks: Sequence[Task], seed: int = 0, on_done: Callable[[Episode], None] | None = None) -> list[Episode]:
        """Plays every task once and returns the episodes in the order of `tasks`; `on_done` is called as each ends."""
        was_training = self.model.training
        self.model.eval()
        generator = torch.Generator(device=self.model.device).manual_seed(seed)
        try:
            episodes = []
            for begin in range(0, len(tasks), self.config.in_flight):
                episodes += self._play_batch(tasks[begin : begin + self.config.in_flight], generator, on_done)
            return episodes
        finally:
            self.model.train(was_training)

    def _play_batch(
        self, tasks: Sequence[Task], generator: torch.Generator, on_done: Callable[[Episode], None] | None
    ) -> list[Episode]:
        clock = time.perf_counter()
        starts = self.pool.reset(range(len(tasks)), [task.id for task in tasks])
        self.statistics.environment_seconds += time.perf_counter() - clock
        prompt = self.config.prompt
        episodes = [
            Episode(task, self._prompt(task, prompt.first(s)), observations=[s.observation])
            for task, s in zip(tasks, starts, strict=True)
        ]
        cache = ConversationCache(self.model, len(tasks))
        rows = list(range(len(tasks)))  # the episode that each row of the cache plays
        pending = [episode.prompt_ids for episode in episodes]  # tokens that the cache has yet to read
        playing = set(rows)

        def end(row: int) -> None:
            pending[row] = []
            playing.discard(rows[row])
            if on_done is not None:
                on_done(episodes[rows[row]])

        for row, start in enumerate(starts):
            if start.done:  # the engine could not start it
                episodes[row].close(start)
                end(row)
        while playing:
            kept = [i for i, e in enumerate(rows) if e in playing]
            if prompt.history is not None:
                cache = ConversationCache(self.model, len(kept))
                rows, pending = [rows[i] for i in kept], [pending[i] for i in kept]
            elif len(playing) < (1 - SQUEEZE_AT) * len(rows) or cache.waste() > SQUEEZE_AT:
                cache.select(kept)
                rows, pending = [rows[i] for i in kept], [pending[i] for i in kept]
            active = [i for i, e in enumerate(rows) if e in playing]
            clock = time.perf_counter()
            self._act(cache, pending, [episodes[e] for e in rows], active, generator)
            self.statistics.generate_seconds += time.perf_counter() - clock
            clock = time.perf_counter()
            steps = self.pool.step([rows[i] for i in active], [prompt.parse(episodes[rows[i]].actions[-1])[0] for i in active])
            self.statistics.environment_seconds += time.perf_counter() - clock
            self.statistics.environment_steps += len(active)
            for i, step in zip(active, steps, strict=True):
                episode = episodes[rows[i]]
                episode.take(step)
                if not step.done and len(episode.actions) < self.config.max_steps:
                    pending[i] = self._observe(episode, step)
                    if pending[i]:
                        continue
                    episode.ended_by = "context"
                end(i)
        return episodes

    def _prompt(self, task: Task, messages: list[dict[str, str]]) -> list[int]:
        ids = self.renderer.prompt_ids(messages)
        if len(ids) + self.config.max_action_tokens > self.config.context_length:
            raise ConfigError(
                f"task {task.id!r}: its prompt of {len(ids)} tokens and one action do not fit into a context of "
                f"{self.config.context_length}; raise the context length"
            )
        return ids

    def _act(
        self,
        cache: ConversationCache,
        pending: list[list[int]],
        episodes: list[Episode],
        active: list[int],
        generator: torch.Generator,
    ) -> None:
        """Generates one action for every active row and writes it into its episode; rows stop at the end token."""
        chosen: dict[int, list[int]] = {i: [] for i in active}
        feed, open_rows = [tokens if i in chosen else [] for i, tokens in enumerate(pending)], list(active)
        for _ in range(self.config.max_action_tokens):
            self.statistics.tokens_read += sum(map(len, feed))
            logits_BV = cache.append(feed)
            tokens_B, logprobs_B = self._sample(logits_BV, generator)
            for i in open_rows:
                token = int(tokens_B[i])
                chosen[i].append(token)
                episodes[i].completion_ids.append(token)
                episodes[i].action_mask.append(1)
                episodes[i].logprobs.append(float(logprobs_B[i]))
            self.statistics.tokens_generated += len(open_rows)
            open_rows = [i for i in open_rows if chosen[i][-1] != self._end]
            if not open_rows:
                break
            # A row's last token is left unread, whether its action ends before the others' or with them.
            feed = [chosen[i][-1:] if i in open_rows else [] for i in range(len(episodes))]
        # The last token of every row has been chosen but not read; it goes before the next observation.
        for i in active:
            ids = chosen[i]
            pending[i] = ids[-1:]
            episodes[i].actions.append(self._decode(ids[:-1] if ids[-1] == self._end else ids))

    def _sample(self, logits_BV: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        if not bool(logits_BV.isfinite().all()):
            raise ModelError("the model's logits are not finite; its weights are broken or the dtype overflows")
        if self.config.temperature == 0:
            logprobs_BV = logits_BV.log_softmax(-1)
            tokens_B = logits_BV.argmax(-1)
        else:
            logprobs_BV = (logits_BV / self.config.temperature).log_softmax(-1)
            tokens_B = torch.multinomial(logprobs_BV.exp(), 1, generator=generator)[:, 0]
        return tokens_B, logprobs_BV.gather(1, tokens_B[:, None])[:, 0]

    def _observe(self, episode: Episode, step: Step) -> list[int]:
        """Adds the observation to the episode's tokens; returns what the cache has yet to read, or [] when the context is full."""
        prompt = self.config.prompt
        if prompt.history is not None:
            ids = self.renderer.prompt_ids(prompt.messages(episode.observations, episode.actions, step))
            return ids if len(ids) + self.config.max_action_tokens <= self.config.context_length else []
        suffix = self.renderer.turn_suffix_ids(prompt.following(step))
        if episode.completion_ids[-1] != self._end:
            suffix = [self._end, *suffix]  # the action ran into its length limit; the template needs its end
        used = len(episode.prompt_ids) + len(episode.completion_ids)
        if used + len(suffix) + self.config.max_action_tokens > self.config.context_length:
            return []
        unread = episode.completion_ids[-1]
        episode.completion_ids += suffix
        episode.action_mask += [0] * len(suffix)
        episode.logprobs += [0.0] * len(suffix)
        return [unread, *suffix]
