"""The route folder: a complete probe in, an SFT set and RL tasks out, with the reasons beside them."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from gradprism import __version__
from gradprism.concentration import METRICS
from gradprism.errors import ConfigError, DataError, FolderInUseError
from gradprism.files import atomic_write, claim_output_folder, write_json, write_jsonl
from gradprism.probing.store import ProbeStore, ProbeTable
from gradprism.routing.audit import audit
from gradprism.routing.policies import get_policy
from gradprism.routing.thresholds import choose_threshold
from gradprism.trajectories.readers import write_messages_jsonl

OnExisting = Literal["replace", "fail"]


def measure(probe: ProbeTable) -> pl.DataFrame:
    """The probe's columns with every metric and `l2`, the gradient's norm over all units; raises `DataError` naming a bad row."""
    names = [f"trajectory {id!r}" for id in probe.ids]
    bad = np.flatnonzero(~np.isfinite(probe.columns["loss"].to_numpy()))
    if bad.size:
        raise DataError(f"{names[bad[0]]}: its loss is {probe.columns['loss'][int(bad[0])]}; probe it again")
    norms = probe.norms.astype(np.float64)
    metrics = {name: metric(norms, names) for name, metric in METRICS.items()}
    return probe.columns.drop("index").with_columns(**metrics, l2=np.linalg.norm(norms, axis=1))


def route_probe(
    probe: Path,
    out: Path,
    *,
    metric: str = "gini",
    policy: str = "concentration",
    threshold: str | float = "median",
    rl_share: float | None = None,
    seed: int = 0,
    on_existing: OnExisting = "fail",
) -> dict[str, Any]:
    """Routes every trajectory of a complete probe folder and writes the route folder, whole or not at all.

    Returns `{"routing", "audit"}`, the contents of `routing.json` and `audit.json`. Raises `ConfigError` for an unknown choice,
    `MissingFileError` or `DataError` for a probe folder that is none, incomplete or holds bad norms, and `FolderInUseError`.
    """
    if metric not in METRICS:
        raise ConfigError(f"metric {metric!r}: choose one of {', '.join(METRICS)}")
    if on_existing not in ("replace", "fail"):
        raise ConfigError(f"--on-existing {on_existing}: choose replace or fail")
    score_of = get_policy(policy)
    store = ProbeStore(probe)
    measures = measure(store.read())
    trajectories = store.corpus()

    score = score_of(measures, metric, seed)
    cut = choose_threshold(score, threshold, rl_share)
    to_rl = score > cut
    rank = np.empty(len(score), dtype=np.int64)
    rank[np.argsort(score, kind="stable")] = np.arange(1, len(score) + 1)
    table = measures.select("id").with_columns(
        *(pl.Series(name, values) for name, values in (("score", score), ("rank", rank), ("margin", score - cut))),
        pl.Series("route", np.where(to_rl, "rl", "sft").tolist()),
        *(measures[name] for name in measures.columns if name != "id"),
    )
    rl = [t for t, chosen in zip(trajectories, to_rl, strict=True) if chosen]
    routing = {
        "policy": policy,
        "metric": metric,
        "threshold_rule": threshold if rl_share is None else "quantile",
        "threshold": cut,
        "rl_share": rl_share,
        "seed": seed,
        "n_trajectories": len(trajectories),
        "n_sft": len(trajectories) - len(rl),
        "n_rl": len(rl),
        "probe": {key: store.manifest.get(key) for key in ("model", "weights_sha256", "corpus_sha256", "context_length", "dtype")},
        "versions": {"gradprism": __version__, "numpy": np.__version__, "polars": pl.__version__},
    }
    report = audit(table, list(METRICS), policy, seed)
    if without := sum(not t.task for t in rl):
        report["warnings"].append(f"{without} of {len(rl)} RL trajectories name no task, so no environment can set theirs up")

    with _whole_folder(out, on_existing) as folder:
        with atomic_write(folder / "routes.parquet", "wb") as file:
            table.write_parquet(file)
        write_messages_jsonl(folder / "sft.jsonl", [t for t, chosen in zip(trajectories, to_rl, strict=True) if not chosen])
        write_jsonl(folder / "rl.jsonl", ({"id": t.id, "prompt": t.prompt(), "task": t.task} for t in rl))
        write_json(folder / "audit.json", report)
        write_json(folder / "routing.json", routing)
    return {"routing": routing, "audit": report}


@contextlib.contextmanager
def _whole_folder(out: Path, on_existing: OnExisting) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well, and is deleted when it does not."""
    out = Path(out)
    replaces = on_existing == "replace" and (out / "routing.json").is_file()
    if not replaces:
        if on_existing == "replace" and out.is_dir() and any(out.iterdir()):
            raise FolderInUseError(f"{out}: is in use and no route folder (no routing.json); choose another --out")
        claim_output_folder(out)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp"))
    try:
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        if replaces:
            old = temporary.with_suffix(".old")
            out.rename(old)
            temporary.rename(out)
            shutil.rmtree(old)
        else:
            temporary.rename(out)  # over the empty folder that was claimed
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if not replaces:
            with contextlib.suppress(OSError):
                out.rmdir()
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
