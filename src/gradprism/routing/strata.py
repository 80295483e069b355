"""Scores ranked among trajectories of their kind alone: a split by them takes no kind rather than another."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradprism.runtime.errors import ConfigError, DataError

Stratum = Literal["length", "task_type"]
STRATA: tuple[Stratum, ...] = get_args(Stratum)
LENGTH_BINS = 5


def check_strata(within: Sequence[str]) -> None:
    """Raises `ConfigError` for unknown strata, and for one twice."""
    for name in within:
        if name not in STRATA:
            raise ConfigError(f"within {name!r}: choose from {', '.join(STRATA)}")
        if list(within).count(name) > 1:
            raise ConfigError(f"within {name}: is given twice")


def strata(within: Sequence[str], measures: pl.DataFrame, tasks: pl.DataFrame) -> pl.DataFrame:
    """The stratum of each trajectory, `[n, within]`: `length` is the fifth of the response's tokens that it lies in (0 to 4; equal lengths
    lie in one), `task_type` its task's.

    `measures` has `id` and `n_response_tokens`, `tasks` is `tasks.read_tasks`'. Raises `DataError` naming the first trajectory without a
    task type.
    """
    columns = {}
    for name in within:
        if name == "length":
            place = (measures["n_response_tokens"].rank("average") - 0.5) / len(measures)
            columns[name] = (place * LENGTH_BINS).floor().cast(pl.Int64)
        else:
            columns[name] = tasks["task_type"]
            if columns[name].null_count():
                id = measures["id"][int(columns[name].is_null().arg_max() or 0)]
                raise DataError(
                    f"trajectory {id!r}: its task names no type; rank within length alone, or give every task its task_type"
                )
    return pl.DataFrame(columns)


def rank_within(scores: NDArray[np.float64], kinds: pl.DataFrame) -> NDArray[np.float64]:
    """Each score's rank within its stratum as a fraction of that, (rank − 1/2)/size with ranks from 1, in (0, 1); equals have their mean.

    Cut at their median, each stratum of distinct scores is halved, up to one trajectory of an odd number, which goes to SFT.
    """
    score, names = pl.col("score"), kinds.columns
    fraction = (score.rank("average").over(names) - 0.5) / pl.len().over(names)
    return kinds.with_columns(score=pl.Series(scores)).select(fraction).to_series().to_numpy()
