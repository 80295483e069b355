"""Prompts that show steps to an agent, and the reading of its answers as actions. The same for every environment.

A conversation either grows turn by turn, or is rebuilt at each step as one user message with the last few steps (verl-agent's way).
"""

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from gradprism.environments.protocol import Step
from gradprism.runtime.settings import Settings

_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL)
TAGS = (
    "First reason step by step about the situation between <think> and </think>, "
    "then give one action between <action> and </action>."
)


class PromptTemplate(Settings):
    """The way in which steps are shown and actions are read; the defaults show bare observations and take bare actions."""

    system: str = Field(default="", description="System message; none if empty.")
    history: int | None = Field(
        default=None, ge=1, description="Steps shown in a message that is rebuilt at every step; default one growing conversation."
    )
    admissible: bool = Field(default=False, description="List the admissible actions below every observation.")
    form: Literal["bare", "tags"] = Field(
        default="bare", description="bare: the answer is the action. tags: <think>…</think><action>…</action>."
    )

    def messages(self, observations: Sequence[str], actions: Sequence[str], step: Step) -> list[dict[str, str]]:
        """The conversation before the next action.

        `observations` are those so far with the current one last, `actions` those between them; `step` is the current one.
        """
        if self.history is None:
            raise ValueError("a growing conversation is made of first() and following()")
        lines = [observations[0]]
        if actions:
            shown = min(self.history, len(actions))
            what = "last and what it led to" if shown == 1 else f"last {shown} and what they led to"
            lines += ["", f"Actions taken so far: {len(actions)}. The {what}:"]
            for number in range(len(actions) - shown, len(actions)):
                lines += [f"> {actions[number]}", observations[number + 1]]
        return [*self._opening(), {"role": "user", "content": self._ask("\n".join(lines), step)}]

    def first(self, step: Step) -> list[dict[str, str]]:
        """The conversation before the first action."""
        return [*self._opening(), {"role": "user", "content": self._ask(step.observation, step)}]

    def following(self, step: Step) -> str:
        """The user's turn after an action, in a growing conversation."""
        return self._ask(step.observation, step, instruct=False)

    def parse(self, answer: str) -> tuple[str, bool]:
        """The action in an answer, and whether the answer has the right form.

        An answer of the wrong form gives the empty action, which every environment refuses: guessing at it would reward the form that
        it lacks.
        """
        if self.form == "bare":
            return answer, True
        found = _ACTION.findall(answer)
        thought = answer.count("<think>") == answer.count("</think>") == 1 and answer.index("<think>") < answer.index("</think>")
        return (found[0].strip(), True) if len(found) == 1 and thought else ("", False)

    def _opening(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _ask(self, text: str, step: Step, instruct: bool = True) -> str:
        if self.admissible:
            text += "\n\nAdmissible actions: " + ", ".join(step.info.admissible)
        if self.form == "tags" and (instruct or self.history is not None):
            text += "\n\n" + TAGS
        return text
