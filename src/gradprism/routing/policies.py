"""Policies, by which trajectories are ranked. A policy maps a table of measures to scores `[n]`: high scores go to RL.

`concentration` is PRISM, and `soft` its version by chance. The others are its controls: whatever gain it has must be more than that of
a random split, of the reversed one, of the plain measures that concentration might merely stand for, and of other people's measures.
`docs/extending.md` has one of a user's own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradprism.probing.scores import finite_scores
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.registry import Registry

# The stream of chance by which equal pass rates are ordered: not that of the random policy, or one split would be the other's reverse.
TIES = 1


@dataclass(frozen=True, slots=True)
class PolicyContext:
    """Question to a policy: the name of the concentration `metric`, a `seed`, and whether scores are cut at a number that was given.

    At a `fixed_threshold` equal scores need no order, and none may be drawn to the other side.
    """

    metric: str = "gini"
    seed: int = 0
    fixed_threshold: bool = False


# The table has a row per trajectory: `id`, `n_tokens`, `n_response_tokens`, `n_turns`, `loss` (nats), `l2` (of the gradient), a column
# per built-in metric and the one chosen, and, where they were asked for, `pass_rate` (0 to 1), `target_cosine` and figures of single
# turns. The scores are float64 `[n]`.
Policy = Callable[[pl.DataFrame, PolicyContext], NDArray[np.float64]]
POLICIES: Registry[Policy] = Registry("policy")
register_policy = POLICIES.register


def policy_scores(policy: str, table: pl.DataFrame, context: PolicyContext) -> NDArray[np.float64]:
    """The scores of a registered policy, float64 `[n]`.

    Raises `ConfigError` where there is no such policy, or it raises, and `DataError` where one gives anything but a finite number per row.
    """
    return finite_scores(POLICIES.call(policy, table, context), len(table), f"policy {policy!r}")


@register_policy("concentration")
def concentration(table: pl.DataFrame, context: PolicyContext) -> NDArray[np.float64]:
    """The metric itself: concentrated gradients go to RL."""
    return table[context.metric].to_numpy()


@register_policy("inverse")
def inverse(table: pl.DataFrame, context: PolicyContext) -> NDArray[np.float64]:
    """The metric's negative: concentrated gradients go to SFT."""
    return -table[context.metric].to_numpy()


@register_policy("soft")
def soft(table: pl.DataFrame, context: PolicyContext) -> NDArray[np.float64]:
    """Routing by chance: the metric's rank as a fraction of n, in (0, 1), minus a seeded uniform draw.

    The median of such differences is near 0, so after the median cut a trajectory at rank fraction r goes to RL with probability r,
    and half of all do.
    """
    n = len(table)
    fraction = (table[context.metric].rank("average").to_numpy() - 0.5) / max(1, n)
    return fraction - np.random.default_rng(context.seed).random(n)


@register_policy("random")
def random(table: pl.DataFrame, context: PolicyContext) -> NDArray[np.float64]:
    """A seeded random order, evenly spaced in [0, 1)."""
    n = len(table)
    return np.random.default_rng(context.seed).permutation(n) / max(1, n)


@register_policy("magnitude")
def magnitude(table: pl.DataFrame, context: PolicyContext) -> NDArray[np.float64]:
    """The L2 norm of the gradient over all units: large gradients go to RL."""
    return table["l2"].to_numpy()


@register_policy("loss")
def loss(table: pl.DataFrame, context: PolicyContext) -> NDArray[np.float64]:
    """The mean cross-entropy of the response: what the model finds unlikely goes to RL."""
    return table["loss"].to_numpy()


@register_policy("length")
def length(table: pl.DataFrame, context: PolicyContext) -> NDArray[np.float64]:
    """The number of response tokens: long responses go to RL."""
    return table["n_response_tokens"].to_numpy()


@register_policy("uncertainty")
def uncertainty(table: pl.DataFrame, context: PolicyContext) -> NDArray[np.float64]:
    """1 − (p − μ)² with p = exp(mean log-probability of the response) and μ its mean: the moderately hard go to RL.

    The measure of UFO-RL (arXiv 2505.12457), which needs a forward pass alone; p is the gold response's, exp(−loss).
    """
    p = np.exp(-table["loss"].to_numpy())
    return 1 - (p - p.mean()) ** 2


@register_policy("pass_rate")
def pass_rate(table: pl.DataFrame, context: PolicyContext) -> NDArray[np.float64]:
    """The share of a task's episodes that the base model wins, as HPT gates by: what it fails goes to SFT.

    Equal rates stand in a seeded random order, by subtracting less than the smallest gap between rates, so that any share can be cut
    exactly; at a fixed threshold the rates are the scores. Raises `ConfigError` where the table has no `pass_rate`.
    """
    return _among_equals(of_pass_rates("pass_rate", table), context)


@register_policy("learnability")
def learnability(table: pl.DataFrame, context: PolicyContext) -> NDArray[np.float64]:
    """p(1 − p) of the pass rate p, the variance of a win: tasks that are won half of the time go to RL (arXiv 2502.12272).

    Equals stand in a seeded random order, and errors are raised, as with `pass_rate`.
    """
    return _among_equals(of_pass_rates("learnability", table), context)


@register_policy("target")
def target(table: pl.DataFrame, context: PolicyContext) -> NDArray[np.float64]:
    """The cosine of the gradient to a target set's mean gradient: what moves the model as the target would goes to RL.

    As LESS (arXiv 2402.04333) and GradAlign (arXiv 2602.21492) choose data. Raises `ConfigError` where the table has no `target_cosine`.
    """
    if "target_cosine" not in table.columns:
        raise ConfigError("policy target: needs a target; give --target, a probe of target trajectories with --scores sketch")
    return table["target_cosine"].to_numpy()


# Policies that rank by pass rates, and by nothing of the probe: what they make of rates `[n]`. p(1 − p), at most 1/4, is rounded, so that
# p and 1 − p are equals.
FROM_PASS_RATES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "pass_rate": lambda rates: rates,
    "learnability": lambda rates: np.round(rates * (1 - rates), 12),
}


def of_pass_rates(policy: str, table: pl.DataFrame) -> NDArray[np.float64]:
    """What a policy of `FROM_PASS_RATES` ranks by, `[n]`, with equals; raises `ConfigError` where the table has no `pass_rate`."""
    if "pass_rate" not in table.columns:
        raise ConfigError(
            f"policy {policy}: needs pass rates; give --pass-rates, the episodes.jsonl of a `gradprism evaluate` of the base model"
        )
    return FROM_PASS_RATES[policy](table["pass_rate"].to_numpy().astype(np.float64))


def _among_equals(values: NDArray[np.float64], context: PolicyContext) -> NDArray[np.float64]:
    """The values `[n]` ≥ 0, equal ones in a seeded random order unless they are cut at a number that was given."""
    if context.fixed_threshold:
        return values
    gap = np.diff(np.unique(np.append(values, 0.0))).min(initial=1.0)  # also to 0: what was won once scores above it
    n = len(values)
    return values - gap * np.random.default_rng([context.seed, TIES]).permutation(n) / max(1, n)
