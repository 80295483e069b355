"""A round of rollouts: which tasks are drawn, how their groups are played, and the rows that training reads of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gradprism.environments.protocol import Task
from gradprism.rollouts.episode import Episode, StopReason
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.progress import warn
from gradprism.training.advantages.gigpo import gigpo
from gradprism.training.advantages.grpo import grpo
from gradprism.training.advantages.outcome import Outcome, Summed
from gradprism.training.rewards import outcome
from gradprism.training.rl_config import RlConfig
from gradprism.training.rows import Row, training_rows
from gradprism.training.tasks import TaskStream

RANK_STRIDE = 2**40  # more than all episodes of a training
# Plays tasks with a seed and gives their episodes in order.
Play = Callable[[Sequence[Task], int], list[Episode]]


class Group(NamedTuple):
    """The episodes of one task, and what they earned."""

    episodes: list[Episode]
    outcomes: list[Outcome]


@dataclass(frozen=True, slots=True)
class Round:
    """The groups to train on, their rows, and counts of all that was played (`counts_of`), also of groups that were replaced."""

    groups: list[Group]
    rows: list[Row]
    counts: Mapping[str, float]


class Rounds:
    """Draws, plays and scores groups of `config.rollouts_per_task` episodes, `groups` in each round of this process.

    `refresh`, if given, is asked before each round but the first, with the number of those played, for the tasks to go on with; None
    keeps them. `summed` adds numbers over all processes that play together. Its `state` is all that the next round depends on.
    """

    def __init__(
        self,
        stream: TaskStream,
        play: Play,
        config: RlConfig,
        groups: int,
        refresh: Callable[[int], Sequence[Task] | None] | None = None,
        summed: Summed | None = None,
    ) -> None:
        self.stream, self.play, self.config, self._groups = stream, play, config, groups
        self._refresh, self._summed = refresh, summed
        self.played = self.count = 0
        self._warned: set[str] = set()

    @property
    def state(self) -> dict[str, Any]:
        """State on which the next round depends; JSON-serialisable."""
        tasks = [task.reference() for task in self.stream.tasks] if self.stream.salt else None
        return {
            "drawn": self.stream.drawn,
            "played": self.played,
            "count": self.count,
            "tasks": tasks,
            "salt": list(self.stream.salt),
        }

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        self.played, self.count = state["played"], state["count"]
        if state["tasks"] is not None:
            self.stream = self.stream.over([Task(**reference) for reference in state["tasks"]], tuple(state["salt"]))
        self.stream.drawn = state["drawn"]

    def next(self) -> Round:
        """Plays one round."""
        config = self.config
        if self._refresh is not None and self.count:
            tasks = self._refresh(self.count)
            if tasks is not None and not tasks:
                raise ConfigError(f"refresh: gave no tasks for round {self.count + 1}; return None to keep those before")
            # The same tasks go on in their order: begun anew, it would come to the last of them never.
            if tasks is not None and list(tasks) != self.stream.tasks:
                self.stream = self.stream.over(tasks, (self.count,))
        self.count += 1
        mixed, flat = self._play_groups()
        taken = mixed + flat[: max(0, self._groups - len(mixed))]
        advantages = advantages_of([group.outcomes for group in taken], config, self._summed)
        rows = [
            row
            for number, (group, of_group) in enumerate(zip(taken, advantages, strict=True))
            for episode, of_episode in zip(group.episodes, of_group, strict=True)
            for row in training_rows(episode, of_episode, number)
        ]
        without = sum(not any(advantages.any() for advantages in of_group) for of_group in advantages)
        return Round(taken, rows, {**counts_of(mixed, flat, taken), "taken": len(taken), "without_gradient": without})

    def _play_groups(self) -> tuple[list[Group], list[Group]]:
        """Groups whose episodes earn differently, and zero-variance groups; with dynamic sampling until there are enough of the first.

        Penalties do not count: a group that has failed as one teaches nothing about success, however often each was refused. A wave is
        as large as the share of mixed groups so far makes it need to be, since small ones cost nearly as much; what it has too many of
        is paid for, and trained on.
        """
        config, mixed, flat = self.config, [], []
        earned = config.model_copy(update=dict.fromkeys(("invalid_penalty", "malformed_penalty", "timeout_penalty"), 0.0))
        most = round(self._groups * config.dynamic_sampling_limit) if config.dynamic_sampling else self._groups
        while (missing := self._groups - len(mixed)) > 0 and len(mixed) + len(flat) < most:
            played = len(mixed) + len(flat)
            wave = math.ceil(missing * played / max(1, len(mixed))) if played else missing
            tasks = self.stream.draw(min(wave, most - played))
            # Every process draws numbers of its own.
            seed = config.seed + self.played + RANK_STRIDE * self.stream.rank
            episodes = self.play([task for task in tasks for _ in range(config.rollouts_per_task)], seed)
            self.played += len(episodes)
            for i in range(0, len(episodes), config.rollouts_per_task):
                of_task = episodes[i : i + config.rollouts_per_task]
                group = Group(of_task, [outcome(episode, config) for episode in of_task])
                self._report(group)
                differ = has_gradient([outcome(episode, earned) for episode in of_task], earned)
                (mixed if differ else flat).append(group)
        return mixed, flat

    def _report(self, group: Group) -> None:
        """Says once per task why an episode of it is left out."""
        for episode, result in zip(group.episodes, group.outcomes, strict=True):
            why = ""
            if not result.counted:
                why = episode.failure or f"a reward is not finite: {[r for r in result.rewards if not np.isfinite(r)][:1]}"
            elif episode.stop_reason == StopReason.CONTEXT and not episode.turns:
                why = "its first observation does not fit the context"
            if why and episode.task.id not in self._warned:
                self._warned.add(episode.task.id)
                warn(f"warning: task {episode.task.id!r}: an episode is not trained on ({why})")


def advantages_of(outcomes: Sequence[Sequence[Outcome]], config: RlConfig, summed: Summed | None = None) -> list[list[np.ndarray]]:
    """The advantage of every step of every episode, by the configured algorithm."""
    if config.algorithm == "gigpo":
        return gigpo(outcomes, config.advantage_scale, config.gamma, config.step_weight, summed)
    return grpo(outcomes, config.advantage_scale, summed)


def has_gradient(group: Sequence[Outcome], config: RlConfig) -> bool:
    """Whether any step of a group has an advantage. GiGPO can find one where all returns are equal: one way was shorter."""
    alone = config.model_copy(update={"advantage_scale": "none"})
    return any(bool(advantages.any()) for advantages in advantages_of([group], alone)[0])


def counts_of(mixed: Sequence[Group], flat: Sequence[Group], taken: Sequence[Group]) -> dict[str, float]:
    """Counts of a round, to be added over processes; `figures_of` makes the log's figures of them.

    Of all that was played: the groups that were kept for being mixed would tell of another success.
    """
    groups = [*mixed, *flat]
    episodes = [episode for group in groups for episode in group.episodes]
    returns = [result.total for group in groups for result in group.outcomes if result.counted]
    turns = [turn for episode in episodes for turn in episode.turns]
    return {
        "episodes": len(episodes),
        "success": sum(e.success for e in episodes),
        "score": sum(e.score for e in episodes),
        "counted": len(returns),
        "reward": sum(returns),
        "actions": len(turns),
        "invalid": sum(not turn.valid for turn in turns),
        "malformed": sum(not turn.well_formed for turn in turns),
        "repeated": sum(map(repeats, episodes)),
        "groups": len(groups),
        "zero_variance_groups": len(flat),
        "replaced_groups": len(groups) - len(taken),
        "failed_episodes": len(episodes) - len(returns),
        "cut_by_context": sum(e.stop_reason == StopReason.CONTEXT for e in episodes),
        "out_of_steps": sum(e.stop_reason == StopReason.STEPS for e in episodes),
    }


def repeats(episode: Episode) -> int:
    """Number of its actions that it had already tried after the same observation."""
    return len(episode.turns) - len({(turn.observation, turn.action) for turn in episode.turns})


def figures_of(counts: Mapping[str, float]) -> dict[str, float]:
    """The log's figures of a round: means per episode, shares of actions and of groups, and counts."""
    episodes, actions = max(1.0, counts["episodes"]), max(1.0, counts["actions"])
    return {
        "reward": counts["reward"] / max(1.0, counts["counted"]),
        "success": counts["success"] / episodes,
        "score": counts["score"] / episodes,
        "steps_per_episode": counts["actions"] / episodes,
        "invalid_share": counts["invalid"] / actions,
        "malformed_share": counts["malformed"] / actions,
        "repeated_share": counts["repeated"] / actions,
        "zero_variance_groups": counts["zero_variance_groups"] / max(1.0, counts["groups"]),
        "groups_without_gradient": counts["without_gradient"] / max(1.0, counts["taken"]),
        **{name: counts[name] for name in ("replaced_groups", "failed_episodes", "cut_by_context", "out_of_steps", "episodes")},
    }
