"""The route folder: a complete probe in, an SFT set and RL tasks out, with the reasons beside them."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradprism import __version__
from gradprism.concentration import METRICS
from gradprism.probing.result import Probe
from gradprism.routing.audit import audit
from gradprism.routing.measures import split_table
from gradprism.routing.policies import get_policy
from gradprism.routing.tasks import measure_tasks
from gradprism.routing.thresholds import choose_threshold
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.files import atomic_write, sha256_file, write_json
from gradprism.runtime.folders import OnExisting, atomic_folder, check_choice


class _Message(msgspec.Struct, omit_defaults=True, gc=False):
    role: str
    content: msgspec.Raw
    train: bool = True


class _Line(msgspec.Struct, gc=False):
    """A line of a probe's corpus; what is only passed on stays the text that it is."""

    id: msgspec.Raw
    messages: list[_Message]
    task: msgspec.Raw = msgspec.Raw(b"{}")


class _Task(msgspec.Struct, gc=False):
    """A line of `rl.jsonl`."""

    id: msgspec.Raw
    prompt: list[_Message]
    task: msgspec.Raw


_decode, _encode = msgspec.json.Decoder(_Line).decode, msgspec.json.Encoder().encode


def route_probe(
    probe: Path,
    out: Path,
    *,
    metric: str = "gini",
    policy: str = "concentration",
    threshold: str | float = "median",
    rl_share: float | None = None,
    normalise: str = "none",
    seed: int = 0,
    pass_rates: Path | None = None,
    on_existing: OnExisting = "fail",
) -> dict[str, Any]:
    """Routes every trajectory of a complete probe folder and writes the route folder, whole or not at all.

    `pass_rates` is an `episodes.jsonl` as `gradprism evaluate` writes it, with at least one episode of each trajectory's task.

    Returns `{"routing", "audit"}`, the contents of `routing.json` and `audit.json`. Raises `ConfigError` for an unknown choice,
    `MissingFileError` or `DataError` for a probe folder that is none, incomplete or holds bad norms, or for such episodes, and
    `FolderInUseError`.
    """
    if metric not in METRICS:
        raise ConfigError(f"metric {metric!r}: choose one of {', '.join(METRICS)}")
    check_choice(on_existing, ("replace", "fail"))
    by_hand = threshold not in ("median", "quantile")
    score_of = get_policy(policy, fixed_threshold=by_hand)
    store = Probe.load(probe)
    measures, task_types = measure_tasks(store, normalise, pass_rates)
    score = score_of(measures, metric, seed)
    cut = choose_threshold(score, threshold, rl_share)
    to_rl = score > cut
    table = split_table(measures, score, cut)
    n_rl = int(to_rl.sum())
    routing = {
        "policy": policy,
        "metric": metric,
        "normalise": normalise,
        "threshold_rule": threshold if rl_share is None else "quantile",
        "threshold": cut,
        "rl_share": rl_share,
        "seed": seed,
        "pass_rates_sha256": None if pass_rates is None else sha256_file(pass_rates),
        "n_trajectories": len(score),
        "n_sft": len(score) - n_rl,
        "n_rl": n_rl,
        "probe": {
            key: getattr(store.manifest, key) for key in ("model", "weights_sha256", "corpus_sha256", "context_length", "dtype")
        },
        "versions": {"gradprism": __version__, "numpy": np.__version__, "polars": pl.__version__},
    }
    with atomic_folder(out, on_existing, "routing.json", "route folder") as folder, ThreadPoolExecutor(1) as pool:
        # Beside the writing, which is most of the work.
        of_share = (0.5 if rl_share is None else rl_share) if not by_hand else None
        auditing = pool.submit(audit, table, metric, policy, seed, task_types=task_types, rl_share=of_share)
        with atomic_write(folder / "routes.parquet", "wb") as file:
            table.write_parquet(file)
        with atomic_write(folder / "sft.jsonl", "wb") as sft, atomic_write(folder / "rl.jsonl", "wb") as rl:
            without = _split(store, to_rl, sft, rl)
        report = auditing.result()
        if without:
            report["warnings"].append(f"{without} of {n_rl} RL trajectories name no task, so no environment can set theirs up")
        write_json(folder / "audit.json", report)
        write_json(folder / "routing.json", routing)
    return {"routing": routing, "audit": report}


def _split(store: Probe, to_rl: NDArray[np.bool_], sft: IO[bytes], rl: IO[bytes]) -> int:
    """Copies each line of the probe's corpus into the SFT set, or makes an RL task of it; returns how many tasks are empty."""
    without = start = 0
    for lines in store.corpus_blocks():
        # Should the corpus have other lines than were probed, it says so itself after the last.
        chosen = to_rl[start : start + len(lines)]
        start += len(lines)
        tasks = [_rl_task(line) for line in itertools.compress(lines, chosen.tolist())]
        # Empty strings at the end of the lists: each line ends with a line feed.
        sft.write(b"\n".join([*itertools.compress(lines, (~chosen).tolist()), b""]))
        rl.write(b"\n".join([*map(_encode, tasks), b""]))
        without += sum(bytes(task.task) == b"{}" for task in tasks)
    return without


def _rl_task(line: bytes) -> _Task:
    """As in `Trajectory.prompt`: what comes before the first turn to be learnt."""
    trajectory = _decode(line)
    prompt = []
    for message in trajectory.messages:
        if message.role == "assistant" and message.train:
            break
        message.train = True  # the default, which is not written
        prompt.append(message)
    return _Task(trajectory.id, prompt, trajectory.task)
