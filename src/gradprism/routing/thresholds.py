"""Where scores are cut: trajectories at or below the threshold go to SFT, those above it to RL."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradprism.runtime.errors import ConfigError

Scores = NDArray[np.floating[Any]]


def route_by_median(scores: Scores) -> NDArray[np.bool_]:
    """True for RL, false for SFT, bool `[n]`: s ≤ median(S) → SFT (PRISM, step 3). Ties go to SFT, so the halves may differ."""
    return scores > median_threshold(scores)


def median_threshold(scores: Scores) -> float:
    """The median, half-way between the two middle scores of an even number."""
    ascending = np.sort(scores).astype(np.float64)
    return _between(ascending[(len(ascending) - 1) // 2], ascending[len(ascending) // 2])


def quantile_threshold(scores: Scores, rl_share: float) -> float:
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


def choose_threshold(scores: Scores, threshold: str | float = "median", rl_share: float | None = None) -> float:
    """The threshold for `median`, for `quantile` with its `rl_share`, or a given number; raises `ConfigError` for anything else.

    An `rl_share` turns `median` into `quantile`.
    """
    if threshold in ("median", "quantile"):
        if rl_share is not None:
            return quantile_threshold(scores, rl_share)
        if threshold == "quantile":
            raise ConfigError("threshold quantile: needs --rl-share, the share of trajectories that go to RL")
        return median_threshold(scores)
    if rl_share is not None:
        raise ConfigError(f"threshold {threshold} and RL share {rl_share} exclude each other; give one")
    try:
        value = float(threshold)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"threshold {threshold}: choose median, quantile or a number on the score's scale")
    return value


def _between(low: np.float64, high: np.float64) -> float:
    """The middle of two scores, which separates them even where it rounds up to `high`: that one must not become a tie."""
    middle = low + (high - low) / 2
    return float(middle if middle < high else low)
