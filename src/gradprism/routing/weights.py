"""Weights in place of sides: how much of each trajectory SFT takes, and how much RL."""

import math
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradprism.runtime.errors import ConfigError

Form = Literal["linear", "logistic"]
FORMS: tuple[Form, ...] = get_args(Form)
TEMPERATURE = 0.1


@dataclass(frozen=True, slots=True)
class Weighting:
    """RL's weight of a score by its rank r, (rank − 1/2)/n with ranks from 1 and the mean of equals: r (`linear`), or
    1/(1 + exp((1/2 − r)/temperature)) (`logistic`), which for a small temperature is the median's split. SFT's is one less that."""

    form: Form
    temperature: float | None = None

    @classmethod
    def of(cls, form: str | None, temperature: float | None) -> Self | None:
        """None without a form; raises `ConfigError` for an unknown one, and for a temperature that is none or has nothing to do."""
        if temperature is not None and form != "logistic":
            raise ConfigError(
                f"temperature {temperature}: is that of logistic weights; give weights logistic as well, or leave it out"
            )
        if form is None:
            return None
        if form not in FORMS:
            raise ConfigError(f"weights {form!r}: choose from {', '.join(FORMS)}")
        if form == "logistic" and temperature is None:
            temperature = TEMPERATURE
        if temperature is not None and not 0 < temperature < math.inf:
            raise ConfigError(f"temperature {temperature}: must be a number above 0")
        return cls(form, temperature)

    def __str__(self) -> str:
        return f"{self.form} weights" + ("" if self.temperature is None else f" of temperature {self.temperature:g}")

    def of_rl(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """RL's weights of scores `[n]`, 0 to 1."""
        rank = (pl.Series(scores).rank("average").to_numpy() - 0.5) / max(1, len(scores))
        return rank if self.temperature is None else (1 + np.tanh((rank - 0.5) / (2 * self.temperature))) / 2


def sides_of(sft: NDArray[np.float64], rl: NDArray[np.float64]) -> list[str]:
    """Where weights send trajectories: to both, or where one of them is 0 to the other."""
    return np.array(["none", "sft", "rl", "both"])[(sft > 0) + 2 * (rl > 0)].tolist()
