"""Tokens, environment steps and time that something has used: one value for every command's account."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Usage:
    """Account of what was used; `+` adds two accounts of work that was done one after the other.

    `tokens_forward` were read by a forward pass, `tokens_backward` also by a backward pass, `tokens_generated` were sampled (and are in
    `tokens_forward` too, but an answer's last). Seconds are this machine's: `wall_seconds` of the clock, `cpu_seconds` of all its cores.
    """

    tokens_forward: int = 0
    tokens_backward: int = 0
    tokens_generated: int = 0
    environment_steps: int = 0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def to_json(self) -> dict[str, float]:
        """All figures by their names."""
        return asdict(self)

    @classmethod
    def from_json(cls, figures: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; a missing figure is 0, and other keys are passed over."""
        return cls(**{field.name: figures[field.name] for field in fields(cls) if field.name in figures})
