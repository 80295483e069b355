"""A round of rollouts: which tasks are drawn, how their groups are played, and the rows that training reads of them."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradprism.environments.protocol import Task
from gradprism.rollouts.episodes import Episode
from gradprism.training.advantages.gigpo import gigpo
from gradprism.training.advantages.grpo import grpo
from gradprism.training.advantages.outcome import Outcome
from gradprism.training.rewards import outcome
from gradprism.training.rl_config import RlConfig

# Plays tasks with a seed and gives their episodes in order.
Play = Callable[[Sequence[Task], int], list[Episode]]


class TaskStream:
    """Tasks in an order shuffled anew for each pass; process `rank` of `world` takes every `world`-th. `drawn` is its whole state."""

    def __init__(self, tasks: Sequence[Task], seed: int, rank: int = 0, world: int = 1) -> None:
        self.tasks, self._seed, self._rank, self._world = list(tasks), seed, rank, world
        self.drawn = 0
        self._pass, self._order = -1, np.zeros(0, dtype=np.int64)

    def over(self, tasks: Sequence[Task]) -> "TaskStream":
        """A new stream of other tasks for the same process."""
        return TaskStream(tasks, self._seed, self._rank, self._world)

    def draw(self, n: int) -> list[Task]:
        """The next `n` tasks."""
        return [self._next() for _ in range(n)]

    def _next(self) -> Task:
        number, place = divmod(self.drawn * self._world + self._rank, len(self.tasks))
        if number != self._pass:
            self._pass, self._order = number, np.random.default_rng([self._seed, number]).permutation(len(self.tasks))
        self.drawn += 1
        return self.tasks[self._order[place]]


@dataclass(frozen=True, slots=True)
class Row:
    """What one forward pass reads: prompt and completion tokens, and for each of the completion's, whether the model chose it, its
    log-probability when it was sampled, and its advantage."""

    prompt_ids: list[int]
    completion_ids: list[int]
    mask: list[int]
    logprobs: list[float]
    advantages: list[float]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(slots=True)
class Round:
    """Groups of episodes with their outcomes and rows; `played` are all episodes, also those that were resampled away."""

    groups: list[list[Episode]]
    outcomes: list[list[Outcome]]
    rows: list[Row]
    played: list[Episode]
    equal_groups: int
    resampled: int


class Rounds:
    """Draws, plays and scores. Its state is `state`, so that a training that was cut short goes on with the next round.

    `refresh`, if given, is asked before each round but the first, with the number of those played, for the tasks to go on with; None
    keeps them.
    """

    def __init__(
        self,
        stream: TaskStream,
        play: Play,
        config: RlConfig,
        groups: int,
        refresh: Callable[[int], Sequence[Task] | None] | None = None,
    ) -> None:
        self.stream, self.play, self.config, self._groups, self._refresh = stream, play, config, groups, refresh
        self.played = self.count = 0
        self._refreshed = False
        self._warned: Counter[str] = Counter()

    @property
    def state(self) -> dict[str, Any]:
        """What the next round depends on; JSON-serialisable."""
        tasks = [task.reference() for task in self.stream.tasks] if self._refreshed else None
        return {"drawn": self.stream.drawn, "played": self.played, "count": self.count, "tasks": tasks}

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        self.played, self.count = state["played"], state["count"]
        if state["tasks"] is not None:
            self._replace([Task(**reference) for reference in state["tasks"]])
        self.stream.drawn = state["drawn"]

    def _replace(self, tasks: Sequence[Task]) -> None:
        self.stream, self._refreshed = self.stream.over(tasks), True

    def next(self) -> Round:
        """Plays one round."""
        config = self.config
        if self._refresh is not None and self.count:
            tasks = self._refresh(self.count)
            if tasks is not None:
                self._replace(tasks)
        self.count += 1
        groups, equal, every = [], [], []
        most = round(self._groups * config.resample_limit) if config.resample else self._groups
        while (missing := self._groups - len(groups)) > 0 and len(groups) + len(equal) < most:
            tasks = self.stream.draw(min(missing, most - len(groups) - len(equal)))
            episodes = self.play([task for task in tasks for _ in range(config.rollouts)], config.seed + self.played)
            self.played += len(episodes)
            every += episodes
            for i in range(0, len(episodes), config.rollouts):
                group = episodes[i : i + config.rollouts]
                scored = [outcome(episode, config) for episode in group]
                self._report(group, scored)
                teaches = len({o.total for o in scored if o.counted}) > 1
                (groups if teaches else equal).append((group, scored))
        resampled = max(0, len(groups) + len(equal) - self._groups)
        taken = groups + equal[: self._groups - len(groups)]
        outcomes = [scored for _, scored in taken]
        advantages = advantages_of(outcomes, config)
        rows = [
            row
            for (group, _), of_group in zip(taken, advantages, strict=True)
            for episode, of_episode in zip(group, of_group, strict=True)
            for row in training_rows(episode, of_episode)
        ]
        return Round([group for group, _ in taken], outcomes, rows, every, len(equal), resampled)

    def _report(self, group: Sequence[Episode], scored: Sequence[Outcome]) -> None:
        for episode, result in zip(group, scored, strict=True):
            what = ""
            if not result.counted:
                what = episode.failure or f"a reward is not finite: {[r for r in result.rewards if not np.isfinite(r)][:1]}"
            elif episode.ended_by == "context" and not episode.actions:
                what = "its first observation does not fit the context"
            if what:
                self._warned[episode.task.id] += 1
                if self._warned[episode.task.id] == 1:
                    print(f"warning: task {episode.task.id!r}: teaches nothing ({what})", file=sys.stderr, flush=True)


def advantages_of(outcomes: Sequence[Sequence[Outcome]], config: RlConfig) -> list[list[np.ndarray]]:
    """The advantage of every step of every episode, by the configured algorithm."""
    if config.algorithm == "gigpo":
        return gigpo(outcomes, config.advantage_scale, config.gamma, config.step_weight)
    return grpo(outcomes, config.advantage_scale)


def training_rows(episode: Episode, advantages: np.ndarray) -> list[Row]:
    """One row for a growing conversation; one a step where the prompt was rebuilt at every step; none without an action."""
    if episode.step_prompts:
        return [
            Row(
                prompt,
                episode.completion_ids[begin:end],
                [1] * (end - begin),
                episode.logprobs[begin:end],
                [float(advantage)] * (end - begin),
            )
            for prompt, (begin, end), advantage in zip(episode.step_prompts, episode.turns, advantages, strict=True)
        ]
    if not episode.turns:
        return []
    spread = [0.0] * len(episode.completion_ids)
    for (begin, end), advantage in zip(episode.turns, advantages, strict=True):
        spread[begin:end] = [float(advantage)] * (end - begin)
    return [Row(episode.prompt_ids, episode.completion_ids, episode.action_mask, episode.logprobs, spread)]


def sums(round_: Round) -> dict[str, float]:
    """Counts of a round, to be added over processes; `means` makes the log's figures of them."""
    episodes, outcomes = [e for g in round_.groups for e in g], [o for g in round_.outcomes for o in g]
    counted = [o.total for o in outcomes if o.counted]
    return {
        "episodes": len(episodes),
        "success": sum(e.success for e in episodes),
        "score": sum(e.score for e in episodes),
        "counted": len(counted),
        "reward": sum(counted),
        "actions": sum(len(e.actions) for e in episodes),
        "invalid": sum(e.valid.count(False) for e in episodes),
        "malformed": sum(e.formed.count(False) for e in episodes),
        "groups": len(round_.groups),
        "equal_groups": round_.equal_groups,
        "resampled_groups": round_.resampled,
        "failed": sum(e.ended_by == "failure" for e in round_.played),
        "cut_by_context": sum(e.ended_by == "context" for e in round_.played),
        "played": len(round_.played),
        "action_tokens": sum(sum(row.mask) for row in round_.rows),
        "row_tokens": sum(map(len, round_.rows)),
    }


def means(totals: dict[str, float]) -> dict[str, float]:
    """The log's figures of a round: shares, means an episode, and counts."""
    episodes, actions = max(1.0, totals["episodes"]), max(1.0, totals["actions"])
    return {
        "reward": totals["reward"] / max(1.0, totals["counted"]),
        "success": totals["success"] / episodes,
        "score": totals["score"] / episodes,
        "episode_steps": totals["actions"] / episodes,
        "invalid_share": totals["invalid"] / actions,
        "malformed_share": totals["malformed"] / actions,
        # Of all groups played: those resampled away were equal too.
        "equal_groups": totals["equal_groups"] / max(1.0, totals["groups"] + totals["resampled_groups"]),
        "resampled_groups": totals["resampled_groups"],
        "failed_episodes": totals["failed"],
        "cut_by_context": totals["cut_by_context"],
        "episodes": totals["played"],
        "action_tokens": totals["action_tokens"],
        "row_tokens": totals["row_tokens"],
    }
