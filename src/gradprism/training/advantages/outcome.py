"""What advantages are computed from, and the scaling that they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Scale = Literal["group", "batch", "none"]
Groups = Sequence[Sequence["Outcome"]]
EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Outcome:
    """One episode: the shaped reward of each step, and the observation that each step started from.

    One that is not `counted` (its engine failed, its reward is no number) gets advantage 0 and takes no part in its group's mean.
    """

    rewards: tuple[float, ...]
    anchors: tuple[str, ...] = ()
    counted: bool = True

    @property
    def total(self) -> float:
        """R, the episode's return."""
        return float(sum(self.rewards))


def centred(groups: Sequence[NDArray[np.float64]], scale: Scale) -> list[NDArray[np.float64]]:
    """(x − mean) / F within each group; F is the group's sample standard deviation + 1e-6, that of all values, or 1.

    A group of one, or of equal values, gives zeros. Source: GRPO (arXiv 2402.03300), eq. of A_i; F = 1 as in Dr. GRPO (2503.20783).
    """
    every = np.concatenate(groups) if groups else np.zeros(0)
    whole = every.std(ddof=1) + EPSILON if scale == "batch" and every.size > 1 else 1.0
    results = []
    for values in groups:
        spread = values.std(ddof=1) + EPSILON if scale == "group" and values.size > 1 else whole
        results.append((values - values.mean()) / spread if values.size > 1 else np.zeros(values.size))
    return results
