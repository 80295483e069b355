"""The result of a training: the value that SFT and RL return."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from gradprism.runtime.usage import Usage

Row = Mapping[str, float]  # numbers of one line of `log.jsonl`; `step` says after which optimizer step


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSummary:
    """A finished training.

    `examples`: trajectories (SFT) or tasks (RL) trained on; `steps`: optimizer steps; `resumed_at`: the step from which the last attempt
    went on. `usage` is that of all attempts, `earlier` the part of it that came before this call: with `reused` all, since the folder
    held the finished training already. `history` has a row per logged step, `evaluations` one per evaluation (held-out loss, or success).
    `evaluation_seconds` is the part of `usage.wall_seconds` that evaluations took. `counts` are figures of one kind of training alone.
    `warnings` are sentences about what a reader would take for success: weights that did not move, text that was cut.
    `stopped` names the alarm that ended RL before its last round, if one did.
    """

    examples: int
    steps: int
    parameters_trained: int
    usage: Usage
    earlier: Usage = field(default_factory=Usage)
    evaluation_seconds: float = 0.0
    resumed_at: int = 0
    counts: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    stopped: str = ""
    history: tuple[Row, ...]
    evaluations: tuple[Row, ...] = ()
    reused: bool = False

    def values(self, name: str) -> list[float]:
        """Figure `name` of every logged step that has it, in order."""
        return [row[name] for row in self.history if name in row]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        accounts = {name: Usage.from_json(record[name]) for name in ("usage", "earlier")}
        rows = {name: tuple(record[name]) for name in ("history", "evaluations", "warnings")}
        return cls(**{**record, **accounts, **rows})
