"""One played episode: its turns, how it ended and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from gradprism.environments.protocol import Step, Task


class StopReason(StrEnum):
    """Reason of an episode's end: the environment ended it, a limit was met, its engine failed, or an expert knew no way on."""

    SUCCESS = "success"
    ENVIRONMENT = "environment"
    STEPS = "steps"
    CONTEXT = "context"
    FAILURE = "failure"
    GAVE_UP = "gave_up"


@dataclass(slots=True)
class Turn:
    """An observation and the action that it was answered with.

    `prompt_ids` are the tokens read before the action: in a growing conversation those that came since the action before it, else the
    whole rebuilt prompt. `completion_ids` are the answer's tokens, with the end token where it was reached, and `logprobs` their
    log-probabilities under the distribution they were drawn from. All three are empty for an agent that is no language model.
    `valid`: the environment took the action; `well_formed`: the answer had the prompt's form; `reward`: the environment's, for this step.
    """

    observation: str
    action: str
    prompt_ids: list[int] = field(default_factory=list)
    completion_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    well_formed: bool = True
    valid: bool = True
    reward: float = 0.0


@dataclass(slots=True)
class Episode:
    """A task, its turns in order, and how it stands after them.

    `observation` is the last one, which no action answers. `grows`: the turns' tokens, one after the other, are one conversation; else
    each turn has a prompt of its own. `score` is in [0, 1], as are its named `parts`. `failure` says what went wrong in the engine.
    `details` is the environment's own account of the end.
    """

    task: Task
    turns: list[Turn] = field(default_factory=list)
    observation: str = ""
    grows: bool = True
    success: bool = False
    score: float = 0.0
    stop_reason: StopReason = StopReason.STEPS
    failure: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def reward(self) -> float:
        """The sum of the environment's rewards."""
        return sum(turn.reward for turn in self.turns)

    @property
    def actions(self) -> list[str]:
        """The texts of the answers."""
        return [turn.action for turn in self.turns]

    @property
    def observations(self) -> list[str]:
        """All observations, the last one too: one more than there are actions."""
        return [*(turn.observation for turn in self.turns), self.observation]

    def take(self, step: Step) -> None:
        """Adds what the last turn's action led to; with no turn yet, what the episode begins with."""
        if self.turns:
            self.turns[-1].valid, self.turns[-1].reward = step.info.valid, step.reward
        self.observation = step.observation
        self.success, self.score, self.parts = step.info.success, step.info.score, step.info.parts
        self.details = step.info.details
        if step.done:
            self.failure = step.info.failure
            ended = StopReason.SUCCESS if self.success else StopReason.ENVIRONMENT
            self.stop_reason = StopReason.FAILURE if self.failure else ended

    def to_json(self) -> dict[str, Any]:
        """The transcript, without tokens: a line of `episodes.jsonl`."""
        return {
            **self.task.reference(),
            "success": self.success,
            "score": self.score,
            "reward": self.reward,
            "steps": len(self.turns),
            "invalid": sum(not turn.valid for turn in self.turns),
            "tokens": sum(len(turn.completion_ids) for turn in self.turns),
            "stop_reason": self.stop_reason.value,
            **({"failure": self.failure} if self.failure else {}),
            **({"parts": dict(self.parts)} if self.parts else {}),
            **({"details": self.details} if self.details else {}),
            "observations": self.observations,
            "actions": self.actions,
            "valid": [turn.valid for turn in self.turns],
            "rewards": [turn.reward for turn in self.turns],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The episode of a transcript, whose turns have no tokens. Raises `KeyError` or `ValueError` for what is none."""
        turns = zip(record["observations"][:-1], record["actions"], record["valid"], record["rewards"], strict=True)
        return cls(
            Task(*(record[name] for name in ("env", "id", "task_type", "split"))),
            [Turn(observation, action, valid=valid, reward=reward) for observation, action, valid, reward in turns],
            record["observations"][-1],
            success=record["success"],
            score=record["score"],
            stop_reason=StopReason(record["stop_reason"]),
            failure=record.get("failure", ""),
            details=record.get("details", {}),
            parts=record.get("parts", {}),
        )
