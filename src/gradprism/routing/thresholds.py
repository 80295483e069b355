"""Where scores are cut: trajectories at or below the threshold go to SFT, those above it to RL."""

import math

import numpy as np
from numpy.typing import NDArray

from gradprism.runtime.errors import ConfigError


def choose_threshold(scores: NDArray[np.float64], rl_share: float = 0.5, threshold: float | None = None) -> float:
    """The threshold for scores `[n]`: the number given, else the median (PRISM, step 3) or, for another share, its quantile.

    Raises `ConfigError` for a share outside 0 to 1, a number that is not finite, and both at once.
    """
    if threshold is None:
        return median_threshold(scores) if rl_share == 0.5 else quantile_threshold(scores, rl_share)
    if rl_share != 0.5:
        raise ConfigError(f"threshold {threshold} and RL share {rl_share} exclude each other; give one")
    if not math.isfinite(threshold):
        raise ConfigError(f"threshold {threshold}: must be a number on the score's scale")
    return float(threshold)


def median_threshold(scores: NDArray[np.float64]) -> float:
    """The median, half-way between the two middle scores of an even number. Ties go to SFT, so the halves may differ."""
    ascending = np.sort(scores).astype(np.float64)
    return _between(ascending[(len(ascending) - 1) // 2], ascending[len(ascending) // 2])


def quantile_threshold(scores: NDArray[np.float64], rl_share: float) -> float:
    """The threshold above which ⌊`rl_share`·n⌋ of n distinct scores lie; ties go to SFT, so with ties fewer may.

    It is half-way between the two scores that it separates, which for a share of 0.5 routes as the median does.
    """
    if not 0 <= rl_share <= 1:
        raise ConfigError(f"RL share {rl_share}: must be between 0 and 1")
    ascending = np.sort(scores).astype(np.float64)
    n_rl = math.floor(rl_share * len(ascending) + 1e-9)  # 0.29·100 is 28.999999999999996
    if n_rl == 0:
        return float(ascending[-1])
    if n_rl == len(ascending):
        return float(np.nextafter(ascending[0], -np.inf))
    return _between(ascending[-n_rl - 1], ascending[-n_rl])


def _between(low: np.float64, high: np.float64) -> float:
    """The middle of two scores, which separates them even where it rounds up to `high`: that one must not become a tie."""
    middle = low + (high - low) / 2
    return float(middle if middle < high else low)
