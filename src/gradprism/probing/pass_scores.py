"""Scores that a probe's own pass gives beside the norms, where they are asked for: what each is, without torch.

They are measured of the gradient G of each unit's matrix (output × input features), or of the response's tokens. High is not always
concentrated here: `high` says what it is. `probing.matrices` computes them, and `docs/audit.md` has the formulas.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gradprism.runtime.errors import ConfigError

# What one score stores of an item: a number per unit, one number, or a vector that is compared with others.
Stores = Literal["units", "number", "sketch"]
# The sketch of a matrix's gradient has so many rows and columns.
SKETCH_SIDE = 32


@dataclass(frozen=True, slots=True)
class PassScore:
    """A score of the pass: its formula, where it is from, what a high value says, and what is stored of each item."""

    formula: str
    source: str
    high: str
    stores: Stores = "units"

    def width(self, n_units: int) -> int | None:
        """How many numbers are stored of an item; None for one that is no list."""
        return {"units": n_units, "number": None, "sketch": SKETCH_SIDE**2}[self.stores]


PASS_SCORES = {
    "effective_rank": PassScore(
        "exp(−Σp·ln p), p = σ/Σσ of G's singular values σ; mean over matrices",
        "Roy and Vetterli, EUSIPCO 2007; of gradients arXiv 2504.10766",
        "the gradient of a matrix points in many directions",
    ),
    "nuclear_norm": PassScore("Σσ of G; mean over matrices", "arXiv 2504.10766", "the gradient is large, and in many directions"),
    "gini_rows": PassScore(
        "Gini coefficient of the norms of G's rows; mean over matrices",
        "as `gini`",
        "few output features have most of the gradient",
    ),
    "gini_columns": PassScore(
        "Gini coefficient of the norms of G's columns; mean over matrices",
        "as `gini`",
        "few input features have most of the gradient",
    ),
    "token_variance": PassScore(
        "mean of p(1 − p) over the response's tokens, p the probability of the token",
        "CHORD, arXiv 2508.11408",
        "the model is undecided about its tokens",
        "number",
    ),
    "sketch": PassScore(
        "Σ P·G·Q over matrices, P and Q random signs",
        "LESS, arXiv 2402.04333, and TRAK, arXiv 2303.14186, project so",
        "a direction, which `--target` and the diversity of sets compare",
        "sketch",
    ),
}
# Those that rank trajectories by themselves, as metrics of the norms do.
RANKING = tuple(name for name, score in PASS_SCORES.items() if score.stores != "sketch")


def check_pass_scores(names: Iterable[str]) -> tuple[str, ...]:
    """The names in the order in which they are stored, each once, `all` for all; raises `ConfigError` for an unknown one."""
    asked = set(names)
    if unknown := sorted(asked.difference(PASS_SCORES, ("all",))):
        raise ConfigError(
            f"score {unknown[0]!r}: choose from {', '.join(PASS_SCORES)}, or all; metrics of norms need not be asked for"
        )
    return tuple(name for name in PASS_SCORES if "all" in asked or name in asked)


def ranked_by(name: str, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """What a score of `RANKING` gives for stored values `[n, units]` or `[n]`, float64 `[n]`: the mean over units where there is one.

    A matrix without a gradient has no rank and no concentration, and is left out; NaN where that leaves none.
    """
    if PASS_SCORES[name].stores == "number":
        return values.astype(np.float64)
    wide = values.astype(np.float64)
    there = ~np.isnan(wide)
    counts = there.sum(axis=1)
    return np.divide(np.where(there, wide, 0.0).sum(axis=1), counts, out=np.full(len(wide), np.nan), where=counts > 0)
