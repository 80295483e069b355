"""Probe folders without a model."""

import numpy as np

from gradprism.probing.store import ProbeRow, ProbeStore
from helpers.tiny import sample_trajectories

N = 14
COUNT = 21


def make_probe(folder, rows=COUNT, change=None, manifest=None):
    """A probe folder without a model: `rows` of `COUNT` trajectories, with random norms that `change` may alter."""
    trajectories = sample_trajectories(COUNT)
    description = {
        "units": [f"layers.{i // 7}.{i % 7}" for i in range(N)],
        "n_parameters": [(i + 1) ** 2 for i in range(N)],
        "weight_norms": [float(i + 1) for i in range(N)],
        **(manifest or {}),
    }
    store = ProbeStore.create(folder, description, trajectories)
    rng = np.random.default_rng(0)
    norms = rng.gamma(2.0, size=(COUNT, N)).astype(np.float32)
    if change is not None:
        change(norms)
    losses, tokens = rng.random(COUNT), rng.integers(20, 90, COUNT)
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
