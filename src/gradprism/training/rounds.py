"""A round of rollouts: which tasks are drawn, how their groups are played, and the rows that training reads of them."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradprism.environments.protocol import Task
from gradprism.rollouts.episode import Episode, StopReason
from gradprism.training.advantages.gigpo import gigpo
from gradprism.training.advantages.grpo import grpo
from gradprism.training.advantages.outcome import Outcome, Summed
from gradprism.training.rewards import outcome
from gradprism.training.rl_config import RlConfig

RANK_STRIDE = 2**40  # more than all episodes of a training
# Plays tasks with a seed and gives their episodes in order.
Play = Callable[[Sequence[Task], int], list[Episode]]


class TaskStream:
    """Tasks in an order shuffled anew for each pass; process `rank` of `world` takes every `world`-th. `drawn` is its whole state.

    Streams of other `salt` have other orders.
    """

    def __init__(self, tasks: Sequence[Task], seed: int, rank: int = 0, world: int = 1, salt: tuple[int, ...] = ()) -> None:
        self.tasks, self.rank, self.salt = list(tasks), rank, salt
        self._seed, self._world = seed, world
        self.drawn = 0
        self._pass, self._order = -1, np.zeros(0, dtype=np.int64)

    def over(self, tasks: Sequence[Task], salt: tuple[int, ...]) -> "TaskStream":
        """A new stream of other tasks for the same process."""
        return TaskStream(tasks, self._seed, self.rank, self._world, salt)

    def draw(self, n: int) -> list[Task]:
        """The next `n` tasks."""
        return [self._next() for _ in range(n)]

    def _next(self) -> Task:
        number, place = divmod(self.drawn * self._world + self.rank, len(self.tasks))
        if number != self._pass:
            self._pass, self._order = number, np.random.default_rng([self._seed, number, *self.salt]).permutation(len(self.tasks))
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
    """The groups that are learnt from, and their rows; `played` are all episodes, also those that were replaced."""

    groups: list[list[Episode]]
    rows: list[Row]
    played: list[tuple[Episode, Outcome]]
    zero_variance_groups: int
    replaced: int


class Rounds:
    """Draws, plays and scores. Its state is `state`, so that a training that was cut short goes on with the next round.

    `refresh`, if given, is asked before each round but the first, with the number of those played, for the tasks to go on with; None
    keeps them. `summed` adds numbers over all processes that play together.
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
        self._warned: Counter[str] = Counter()

    @property
    def state(self) -> dict[str, Any]:
        """What the next round depends on; JSON-serialisable."""
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
            # The same tasks go on in their order: begun anew, it would come to the last of them never.
            if tasks is not None and list(tasks) != self.stream.tasks:
                self.stream = self.stream.over(tasks, (self.count,))
        self.count += 1
        groups, equal, every = [], [], []
        most = round(self._groups * config.dynamic_sampling_limit) if config.dynamic_sampling else self._groups
        while (missing := self._groups - len(groups)) > 0 and len(groups) + len(equal) < most:
            tasks = self.stream.draw(min(missing, most - len(groups) - len(equal)))
            # Every process draws numbers of its own.
            seed = config.seed + self.played + RANK_STRIDE * self.stream.rank
            episodes = self.play([task for task in tasks for _ in range(config.rollouts_per_task)], seed)
            self.played += len(episodes)
            for i in range(0, len(episodes), config.rollouts_per_task):
                group = episodes[i : i + config.rollouts_per_task]
                scored = [outcome(episode, config) for episode in group]
                self._report(group, scored)
                every += zip(group, scored, strict=True)
                (groups if teaches(scored, config) else equal).append((group, scored))
        replaced = max(0, len(groups) + len(equal) - self._groups)
        taken = groups + equal[: self._groups - len(groups)]
        advantages = advantages_of([scored for _, scored in taken], config, self._summed)
        rows = [
            row
            for (group, _), of_group in zip(taken, advantages, strict=True)
            for episode, of_episode in zip(group, of_group, strict=True)
            for row in training_rows(episode, of_episode)
        ]
        return Round([group for group, _ in taken], rows, every, len(equal), replaced)

    def _report(self, group: Sequence[Episode], scored: Sequence[Outcome]) -> None:
        for episode, result in zip(group, scored, strict=True):
            what = ""
            if not result.counted:
                what = episode.failure or f"a reward is not finite: {[r for r in result.rewards if not np.isfinite(r)][:1]}"
            elif episode.stop_reason == StopReason.CONTEXT and not episode.turns:
                what = "its first observation does not fit the context"
            if what:
                self._warned[episode.task.id] += 1
                if self._warned[episode.task.id] == 1:
                    print(f"warning: task {episode.task.id!r}: teaches nothing ({what})", file=sys.stderr, flush=True)


def advantages_of(outcomes: Sequence[Sequence[Outcome]], config: RlConfig, summed: Summed | None = None) -> list[list[np.ndarray]]:
    """The advantage of every step of every episode, by the configured algorithm."""
    if config.algorithm == "gigpo":
        return gigpo(outcomes, config.advantage_scale, config.gamma, config.step_weight, summed)
    return grpo(outcomes, config.advantage_scale, summed)


def teaches(group: Sequence[Outcome], config: RlConfig) -> bool:
    """Whether any step of a group has an advantage. GiGPO can find one where all returns are equal: one way was shorter."""
    alone = config.model_copy(update={"advantage_scale": "none"})
    return any(bool(advantages.any()) for advantages in advantages_of([group], alone)[0])


def training_rows(episode: Episode, advantages: np.ndarray) -> list[Row]:
    """One row for a growing conversation; one per step where the prompt was rebuilt at every step; none without an action."""
    turns = list(zip(episode.turns, map(float, advantages), strict=True))
    if not episode.grows:
        return [
            Row(turn.prompt_ids, turn.completion_ids, [1] * len(turn.logprobs), turn.logprobs, [value] * len(turn.logprobs))
            for turn, value in turns
        ]
    rows: list[Row] = []
    for turn, value in turns:
        n, read = len(turn.completion_ids), turn.prompt_ids
        if not rows:
            rows, read = [Row(read, [], [], [], [])], []
        rows[0].completion_ids.extend([*read, *turn.completion_ids])
        rows[0].mask.extend([0] * len(read) + [1] * n)
        rows[0].logprobs.extend([0.0] * len(read) + turn.logprobs)
        rows[0].advantages.extend([0.0] * len(read) + [value] * n)
    return rows


def sums(round_: Round) -> dict[str, float]:
    """Counts of a round, to be added over processes; `means` makes the log's figures of them.

    Of all that was played: groups that were kept for being mixed would tell of another success.
    """
    episodes = [episode for episode, _ in round_.played]
    counted = [result.total for _, result in round_.played if result.counted]
    return {
        "episodes": len(episodes),
        "success": sum(e.success for e in episodes),
        "score": sum(e.score for e in episodes),
        "counted": len(counted),
        "reward": sum(counted),
        "actions": sum(len(e.turns) for e in episodes),
        "invalid": sum(sum(not t.valid for t in e.turns) for e in episodes),
        "malformed": sum(sum(not t.well_formed for t in e.turns) for e in episodes),
        "groups": len(round_.groups),
        "zero_variance_groups": round_.zero_variance_groups,
        "replaced_groups": round_.replaced,
        "failed": sum(e.stop_reason == StopReason.FAILURE for e in episodes),
        "cut_by_context": sum(e.stop_reason == StopReason.CONTEXT for e in episodes),
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
        "steps_per_episode": totals["actions"] / episodes,
        "invalid_share": totals["invalid"] / actions,
        "malformed_share": totals["malformed"] / actions,
        # Of all groups played: those replaced were equal too.
        "zero_variance_groups": totals["zero_variance_groups"] / max(1.0, totals["groups"] + totals["replaced_groups"]),
        "replaced_groups": totals["replaced_groups"],
        "failed_episodes": totals["failed"],
        "cut_by_context": totals["cut_by_context"],
        "episodes": totals["episodes"],
        "action_tokens": totals["action_tokens"],
        "row_tokens": totals["row_tokens"],
    }
