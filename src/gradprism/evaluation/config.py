"""The settings of an evaluation."""

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from gradprism.environments.prompts import PromptTemplate


class EvaluationConfig(BaseModel):
    """Settings of an evaluation: which tasks, and how they are played."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    splits: dict[str, PositiveInt] = Field(
        default={"unseen": 96, "seen": 96}, min_length=1, description="Tasks of each split, task types in turn."
    )
    start: int = Field(default=0, ge=0, description="Place of the first task.")
    task_type: str | None = Field(default=None, description="Only tasks of this type.")
    max_steps: int = Field(default=20, ge=1, description="Actions an episode.")
    max_action_tokens: int = Field(default=16, ge=1, description="Tokens an action.")
    temperature: float = Field(default=0.0, ge=0, description="Sampling temperature; 0 is greedy.")
    in_flight: int = Field(default=64, ge=1, description="Episodes played at once, and written at once.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of sampling.")
    prompt: PromptTemplate = Field(default=PromptTemplate(), description="How steps are shown and actions are read.")
