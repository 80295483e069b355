"""Settings of how episodes are sampled and where they end: declared once, for RL, for evaluation and for pass rates."""

from pydantic import Field

from gradprism.environments.prompts import PromptTemplate
from gradprism.runtime.settings import Settings


class RolloutConfig(Settings):
    """Sampling and the limits of episodes."""

    max_steps: int = Field(default=20, ge=1, description="Actions per episode.")
    max_action_tokens: int = Field(default=16, ge=1, description="Tokens per action.")
    temperature: float = Field(default=1.0, ge=0, description="Sampling temperature; 0 is greedy.")
    context_length: int | None = Field(
        default=None, ge=2, description="Tokens per episode, prompt and answers together; default the model's own limit."
    )
    in_flight: int = Field(default=128, ge=1, description="Episodes played at once by a process.")
    prompt: PromptTemplate = Field(default=PromptTemplate(), description="How steps are shown and actions are read.")
