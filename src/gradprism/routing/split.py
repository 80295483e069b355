"""A split of scored trajectories: how it was made, where scores are cut, and its table.

Trajectories at or below the threshold go to SFT, those above it to RL.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from gradprism.concentration import BUILTIN
from gradprism.runtime.errors import ConfigError, DataError, one_line
from gradprism.runtime.files import read_json


class Value(BaseModel):
    """A typed value that is also a file's JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls, path: Path, **more: BaseModel) -> Self:
        """The value of a JSON file, with fields that the file leaves out; raises `DataError` for anything else."""
        try:
            return cls.model_validate({**read_json(path), **more})
        except (ValidationError, TypeError) as error:
            raise DataError(f"{path}: is not of a route folder ({one_line(error, 120)}); route again") from None


class ProbeOrigin(Value):
    """The model and corpus that were probed, of the probe's manifest."""

    model: str = ""
    weights_sha256: str = ""
    corpus_sha256: str = ""
    context_length: int | None = None
    dtype: str = ""


class Routing(Value):
    """The making of a route, and the numbers of trajectories that went where: the contents of `routing.json`.

    Scores above `threshold` went to RL. `threshold_rule` says where that is from: the scores' median, the quantile of an `rl_share`
    (None for the other two), or a number that was given (`fixed`). `n_undefined_turns` is None where turns were not asked for.
    """

    policy: str = "concentration"
    metric: str = "gini"
    normalise: str = "none"
    threshold_rule: Literal["median", "quantile", "fixed"] = "median"
    threshold: float
    rl_share: float | None = None
    seed: int = 0
    pass_rates_sha256: str | None = None
    n_trajectories: int
    n_sft: int
    n_rl: int
    n_undefined_turns: int | None = None
    probe: ProbeOrigin = ProbeOrigin()
    versions: Mapping[str, str] = {}

    def __str__(self) -> str:
        return f"{self.n_sft} to SFT, {self.n_rl} to RL; {self.policy} of {self.metric}, threshold {self.threshold:.6g}"


def metrics_with(*chosen: str) -> list[str]:
    """The built-in metrics and those chosen; others that are registered may be slow or broken, and are left alone."""
    return list(dict.fromkeys((*BUILTIN, *chosen)))


def turn_statistics(turns: pl.DataFrame, n: int) -> pl.DataFrame:
    """`[n, 5]`: of the scores of each trajectory's own turns (`Probe.turn_scores`) mean, std (population), min and max, and which turn
    has the last, the first of equals; null where none has a score."""
    score = pl.col("score")
    figures = {"mean": score.mean(), "std": score.std(ddof=0), "min": score.min(), "max": score.max()}
    found = (
        turns.drop_nulls()
        .group_by("index")
        .agg(**{f"turn_score_{name}": figure for name, figure in figures.items()}, turn_of_max=pl.col("turn").get(score.arg_max()))
    )
    return pl.select(index=pl.int_range(n)).join(found, on="index", how="left", maintain_order="left").drop("index")


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


def split_table(measures: pl.DataFrame, score: NDArray[np.float64], threshold: float) -> pl.DataFrame:
    """The table of a split: `id`, `score`, `rank` (from 1), `margin` (score − threshold), `route` (rl above it), and the measures."""
    rank = np.empty(len(score), dtype=np.int64)
    rank[np.argsort(score, kind="stable")] = np.arange(1, len(score) + 1)
    route = np.where(score > threshold, "rl", "sft").tolist()
    decision = pl.DataFrame({"id": measures["id"], "score": score, "rank": rank, "margin": score - threshold, "route": route})
    return decision.hstack(measures.drop("id", "index", strict=False))
