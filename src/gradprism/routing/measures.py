"""The table of a split."""

import numpy as np
import polars as pl
from numpy.typing import NDArray


def split_table(measures: pl.DataFrame, score: NDArray[np.float64], cut: float) -> pl.DataFrame:
    """The table of a split: `id`, `score`, `rank` (from 1), `margin` (score − cut), `route` (rl above the cut), and the measures."""
    rank = np.empty(len(score), dtype=np.int64)
    rank[np.argsort(score, kind="stable")] = np.arange(1, len(score) + 1)
    return measures.select("id").with_columns(
        *(pl.Series(name, values) for name, values in (("score", score), ("rank", rank), ("margin", score - cut))),
        pl.Series("route", np.where(score > cut, "rl", "sft").tolist()),
        *(measures[name] for name in measures.columns if name not in ("id", "index")),
    )
