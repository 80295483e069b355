"""The settings of an evaluation."""

from typing import ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from gradprism.rollouts.config import RolloutConfig
from gradprism.runtime.errors import ConfigError


class PlayConfig(RolloutConfig):
    """Settings of an evaluation by whatever agent: which tasks, and how they are played."""

    added: ClassVar[frozenset[str]] = frozenset(("attempts",))  # since there are results, which its default does not change

    splits: dict[str, PositiveInt] = Field(
        default={"unseen": 96, "seen": 96}, min_length=1, description="Tasks per split, task types in turn."
    )
    start: int = Field(default=0, ge=0, description="Place of the first task.")
    task_type: str | None = Field(default=None, description="Only tasks of this type.")
    attempts: int = Field(default=1, ge=1, description="Episodes per task; with several, pass@k says who solves it in any of them.")
    temperature: float = Field(default=0.0, ge=0, description="Sampling temperature; 0 is greedy.")
    in_flight: int = Field(default=64, ge=1, description="Episodes played at once, and written at once.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of sampling.")

    def check_attempts(self, player: str = "model") -> None:
        """Raises `ConfigError` where all attempts of a player, `expert`, `random` or another, would be the same."""
        if self.attempts > 1 and player == "expert":
            raise ConfigError(f"attempts {self.attempts}: the expert plays all of them the same; leave attempts at 1")
        if self.attempts > 1 and player != "random" and not self.temperature:
            raise ConfigError(f"attempts {self.attempts}: greedily all are the same; set a temperature")


class EvaluationConfig(PlayConfig):
    """Settings of an evaluation of a model, which several attempts need a temperature for; `PlayConfig` asks for none."""

    @model_validator(mode="after")
    def _attempts_differ(self) -> Self:
        self.check_attempts()
        return self
