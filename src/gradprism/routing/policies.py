"""What trajectories are ranked by. A policy maps a table of measures to scores `[n]`: high scores go to RL.

`concentration` is PRISM. The others are its controls: whatever gain it has must be more than that of a random split, of the
reversed one, and of the plain measures that concentration might merely stand for.
"""

from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradprism.errors import ConfigError

# (table with the columns that `routing.folder.measure` makes, metric, seed) -> scores
Policy = Callable[[pl.DataFrame, str, int], NDArray[np.float64]]


def concentration(table: pl.DataFrame, metric: str, seed: int) -> NDArray[np.float64]:
    """The metric itself: concentrated gradients go to RL."""
    return table[metric].to_numpy().astype(np.float64)


def inverse(table: pl.DataFrame, metric: str, seed: int) -> NDArray[np.float64]:
    """The metric's negative: concentrated gradients go to SFT."""
    return -concentration(table, metric, seed)


def random(table: pl.DataFrame, metric: str, seed: int) -> NDArray[np.float64]:
    """A seeded random order, evenly spaced in [0, 1)."""
    n = len(table)
    return np.random.default_rng(seed).permutation(n) / max(1, n)


def magnitude(table: pl.DataFrame, metric: str, seed: int) -> NDArray[np.float64]:
    """The L2 norm of the gradient over all units: large gradients go to RL."""
    return table["l2"].to_numpy().astype(np.float64)


def loss(table: pl.DataFrame, metric: str, seed: int) -> NDArray[np.float64]:
    """The mean cross-entropy of the response: what the model finds unlikely goes to RL."""
    return table["loss"].to_numpy().astype(np.float64)


def length(table: pl.DataFrame, metric: str, seed: int) -> NDArray[np.float64]:
    """The number of response tokens: long responses go to RL."""
    return table["n_response_tokens"].to_numpy().astype(np.float64)


POLICIES: dict[str, Policy] = {policy.__name__: policy for policy in (concentration, inverse, random, magnitude, loss, length)}


def get_policy(name: str) -> Policy:
    """The policy of that name; raises `ConfigError` where there is none."""
    if name not in POLICIES:
        raise ConfigError(f"policy {name!r}: choose one of {', '.join(POLICIES)}")
    return POLICIES[name]
