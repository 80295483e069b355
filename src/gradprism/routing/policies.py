"""What trajectories are ranked by. A policy maps a table of measures to scores `[n]`: high scores go to RL.

`concentration` is PRISM, and `soft` its version by chance. The others are its controls: whatever gain it has must be more than that of
a random split, of the reversed one, of the plain measures that concentration might merely stand for, and of other people's measures.
"""

from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradprism.runtime.errors import ConfigError

# The stream of chance by which equal pass rates are ordered: not that of the random policy, or one split would be the other's reverse.
TIES = 1
# (table with the columns that `routing.measures.measure` makes, `pass_rate` where rates were given, metric, seed) -> scores
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


def soft(table: pl.DataFrame, metric: str, seed: int) -> NDArray[np.float64]:
    """Routing by chance: the metric's rank as a fraction of n, in (0, 1), minus a seeded uniform draw.

    The median of such differences is near 0, so after the median cut a trajectory at rank fraction r goes to RL with probability r,
    and half of all do.
    """
    n = len(table)
    fraction = (table[metric].rank("average").to_numpy() - 0.5) / max(1, n)
    return fraction - np.random.default_rng(seed).random(n)


def uncertainty(table: pl.DataFrame, metric: str, seed: int) -> NDArray[np.float64]:
    """1 − (p − μ)² with p = exp(mean log-probability of the response) and μ its mean: the moderately hard go to RL.

    The measure of UFO-RL (arXiv 2505.12457), which needs a forward pass alone; p is the gold response's, exp(−loss).
    """
    p = np.exp(-loss(table, metric, seed))
    return 1 - (p - p.mean()) ** 2


def _plain_rates(table: pl.DataFrame, metric: str, seed: int) -> NDArray[np.float64]:
    if "pass_rate" not in table.columns:
        raise ConfigError(
            "policy pass_rate: needs pass rates; give --pass-rates, the episodes.jsonl of a `gradprism evaluate` of the base model"
        )
    return table["pass_rate"].to_numpy().astype(np.float64)


def pass_rate(table: pl.DataFrame, metric: str, seed: int) -> NDArray[np.float64]:
    """The share of a task's episodes that the base model wins, as HPT gates by: what it fails goes to SFT.

    Equal rates stand in a seeded random order, by subtracting less than the smallest gap between rates, so that any share can be cut
    exactly. Raises `ConfigError` where the table has no `pass_rate`.
    """
    rates = _plain_rates(table, metric, seed)
    gap = np.diff(np.unique(np.append(rates, 0.0))).min(initial=1.0)  # also to 0: what was won once scores above it
    n = len(table)
    return rates - gap * np.random.default_rng([seed, TIES]).permutation(n) / max(1, n)


POLICIES: dict[str, Policy] = {
    policy.__name__: policy for policy in (concentration, inverse, soft, random, magnitude, loss, length, uncertainty, pass_rate)
}


def get_policy(name: str, *, fixed_threshold: bool = False) -> Policy:
    """The policy of that name; raises `ConfigError` where there is none.

    With a `fixed_threshold`, a number that was given, pass rates are themselves the score: equals need no order, and none may be drawn to
    the other side.
    """
    if name not in POLICIES:
        raise ConfigError(f"policy {name!r}: choose one of {', '.join(POLICIES)}")
    return _plain_rates if fixed_threshold and name == "pass_rate" else POLICIES[name]
