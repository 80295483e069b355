"""Probe folders without a model."""

import numpy as np
import polars as pl

from gradprism.probing.store import ProbeRow, ProbeStore
from helpers.tiny import sample_trajectories

N = 14
COUNT = 21


def make_probe(folder, rows=None, change=None, manifest=None, trajectories=None):
    """A probe folder without a model: `rows` (default all) of `COUNT` or the given trajectories, with random norms that `change` may
    alter; gives the norms.
    """
    trajectories = trajectories or sample_trajectories(COUNT)
    count = len(trajectories)
    rows = count if rows is None else rows
    description = {
        "units": [f"layers.{i // 7}.{i % 7}" for i in range(N)],
        "dtype": "float32",
        "n_parameters": [(i + 1) ** 2 for i in range(N)],
        "weight_norms": [float(i + 1) for i in range(N)],
        **(manifest or {}),
    }
    store = ProbeStore.create(folder, description, trajectories)
    rng = np.random.default_rng(0)
    norms = rng.gamma(2.0, size=(count, store.n_units)).astype(np.float32)
    if change is not None:
        change(norms)
    losses, tokens = rng.random(count), rng.integers(20, 90, count)
    l2 = np.linalg.norm(norms.astype(np.float64), axis=1)
    for part in (range(0, rows, 2), range(1, rows, 2)):  # two shards, neither in the corpus's order
        store.append(
            [
                ProbeRow(
                    index=i,
                    id=trajectories[i].id,
                    turn=-1,
                    n_tokens=int(tokens[i]),
                    n_response_tokens=int(tokens[i] // 4),
                    n_turns=3,
                    loss=float(losses[i]),
                    l2=float(l2[i]),
                    norms=norms[i],
                )
                for i in part
            ]
        )
    return norms.astype(np.float64)


def measures_table(n=50, seed=0, **columns):
    """What `routing.measures.measure` gives, of `n` random rows; `columns` take the place of its own or come on top."""
    rng = np.random.default_rng(seed)
    names = ("gini", "cv", "kurtosis", "l2", "loss", "n_tokens", "n_response_tokens", "n_turns")
    table = pl.DataFrame({"id": [f"t{i}" for i in range(n)], **{name: rng.random(n) for name in names}})
    return table.with_columns(**{name: pl.Series(values) for name, values in columns.items()})
