"""Probe folders without a model."""

import hashlib

import numpy as np
import polars as pl

from gradprism.probing.folder import CORPUS, PROBE, ProbeFolder, ProbeRow
from gradprism.probing.manifest import ProbeManifest
from gradprism.runtime.folders import OnExisting
from gradprism.trajectories.corpus import canonical_line
from helpers.tiny import sample_trajectories

N = 14
COUNT = 21


def create_folder(folder, description, trajectories, on_existing: OnExisting = "resume", **totals):
    """A probe folder without rows and without a rendered corpus; `description` is its manifest without the corpus."""
    lines = [canonical_line(trajectory) for trajectory in trajectories]
    of_corpus = {"corpus_sha256": hashlib.sha256(b"".join(lines)).hexdigest(), "n_trajectories": len(lines), "totals": totals}
    PROBE.claim(folder, ProbeManifest.from_json({**description, **of_corpus}, "a test").to_json(), on_existing)
    (folder / CORPUS).write_bytes(b"".join(lines))
    return ProbeFolder(folder)


def make_probe(folder, rows=None, change=None, manifest=None, trajectories=None, turns=None, scores=None):
    """A probe folder without a model: `rows` (default all) of `COUNT` or the given trajectories, with random norms that `change` may
    alter, and norms of single `turns` by index and turn; `scores` of the pass by name, a row per trajectory; gives the norms.
    """
    trajectories = trajectories or sample_trajectories(COUNT)
    count = len(trajectories)
    rows = count if rows is None else rows
    description = {
        "units": [f"layers.{i // 7}.{i % 7}" for i in range(N)],
        "dtype": "float32",
        "n_parameters": [(i + 1) ** 2 for i in range(N)],
        "weight_norms": [float(i + 1) for i in range(N)],
        **({"scores": list(scores)} if scores else {}),
        **(manifest or {}),
    }
    store = create_folder(folder, description, trajectories, turns=len(turns or ()))
    rng = np.random.default_rng(0)
    norms = rng.gamma(2.0, size=(count, len(store.manifest.units))).astype(np.float32)
    if change is not None:
        change(norms)
    losses, tokens = rng.random(count), rng.integers(20, 90, count)
    l2 = np.linalg.norm(norms.astype(np.float64), axis=1)
    for part in filter(None, (range(0, rows, 2), range(1, rows, 2))):  # two shards, neither in the corpus's order
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
                    scores={name: values[i] for name, values in (scores or {}).items()},
                )
                for i in part
            ]
        )
    if turns:
        store.append([ProbeRow(i, trajectories[i].id, turn, 9, 3, 1, 1.0, 1.0, one) for (i, turn), one in turns.items()])
    return norms.astype(np.float64)


def measures_table(n=50, seed=0, **columns):
    """What `routing.measures.measure` gives, of `n` random rows; `columns` take the place of its own or come on top."""
    rng = np.random.default_rng(seed)
    names = ("gini", "cv", "kurtosis", "l2", "loss", "n_tokens", "n_response_tokens", "n_turns")
    table = pl.DataFrame({"id": [f"t{i}" for i in range(n)], **{name: rng.random(n) for name in names}})
    return table.with_columns(**{name: pl.Series(values) for name, values in columns.items()})
