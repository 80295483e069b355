"""The outcomes that advantages are computed from, and the scaling that they share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Scale = Literal["group", "batch", "none"]
Groups = Sequence[Sequence["Outcome"]]
# Adds each of its numbers over all processes.
Summed = Callable[[list[float]], list[float]]
EPSILON = 1e-6
EQUAL = 1e-9  # values that differ by less are equal: sums of the same rewards in another order


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


def centred(groups: Sequence[NDArray[np.float64]], scale: Scale, summed: Summed | None = None) -> list[NDArray[np.float64]]:
    """(x − mean) / F within each group; F is the group's sample standard deviation + 1e-6, that of all values, or 1.

    A group of one, or of equal values, gives zeros. Where several processes hold the groups, `summed` makes the batch theirs all
    together. Source: GRPO (arXiv 2402.03300), eq. of A_i; F = 1 as in Dr. GRPO (2503.20783).
    """
    whole = _spread(np.concatenate([np.zeros(0), *groups]), summed) if scale == "batch" else 1.0
    results = []
    for values in groups:
        if values.size < 2 or np.ptp(values) < EQUAL:
            results.append(np.zeros(values.size))
        else:
            results.append((values - values.mean()) / (values.std(ddof=1) + EPSILON if scale == "group" else whole))
    return results


def _spread(values: NDArray[np.float64], summed: Summed | None) -> float:
    if summed is None:
        return float(values.std(ddof=1)) + EPSILON if values.size > 1 else 1.0
    n, total = summed([values.size, values.sum()])
    [squares] = summed([float(np.square(values - total / max(1.0, n)).sum())])
    return (squares / (n - 1)) ** 0.5 + EPSILON if n > 1 else 1.0
