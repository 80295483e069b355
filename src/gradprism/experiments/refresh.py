"""Dynamic routing: what RL has yet to learn is probed again on the model as it has become, and routed again.

The threshold stays the first route's, since concentration is free of scale: what has fallen below it is taught by imitation, and what
is still above it by RL. Each refresh is a folder with a probe, a route and `changes.json`, which says what moved.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from gradprism.environments.protocol import Environment, Task
from gradprism.probing.store import ProbeStore
from gradprism.routing.folder import route_probe
from gradprism.runtime.errors import FolderInUseError
from gradprism.runtime.files import read_json, write_json
from gradprism.trajectories.formats import parse_record
from gradprism.trajectories.record import Trajectory

CHANGES = "changes.json"


def remaining(probe: Path, route: Path) -> list[Trajectory]:
    """The trajectories of a probe that its route sends to RL, in the corpus's order."""
    wanted = set(pl.read_parquet(route / "routes.parquet").filter(pl.col("route") == "rl")["id"].to_list())
    lines = (json.loads(line) for block in ProbeStore(probe).corpus_blocks() for line in block)
    return [parse_record(line, "messages", f"{probe}: corpus", line["id"]) for line in lines if line["id"] in wanted]


def reroute(
    model: Any,
    tokenizer: Any,
    trajectories: Sequence[Trajectory],
    first: Path,
    out: Path,
    *,
    context_length: int,
    batch_tokens: int | None = None,
) -> dict[str, Any]:
    """Probes `trajectories` on `model` and routes them as the route folder `first` was, at its threshold; returns the changes.

    Writes `out/probe`, `out/route` and `out/changes.json`. What was finished by an earlier, interrupted call is not probed again.
    """
    from gradprism.probing.executors.flow import probe_corpus
    from gradprism.probing.executors.local import InProcess
    from gradprism.probing.manifest import Options

    routing = read_json(first / "routing.json")

    def probe(on_existing: Literal["resume", "replace"]) -> dict[str, Any]:
        options = Options(context_length, batch_tokens, on_existing=on_existing)
        return probe_corpus(InProcess(model), tokenizer, iter(trajectories), out / "probe", options)

    try:
        summary = probe("resume")
    except FolderInUseError:  # of weights that a training cut short had, and has not come to again bit for bit
        summary = probe("replace")
    route_probe(
        out / "probe",
        out / "route",
        metric=routing["metric"],
        policy=routing["policy"],
        normalise=routing["normalise"],
        threshold=routing["threshold"],
        seed=routing["seed"],
        on_existing="replace",
    )
    before, after = (
        pl.read_parquet(folder / "routes.parquet", columns=["id", "score", "route"]) for folder in (first, out / "route")
    )
    both = after.join(before, on="id", suffix="_before")
    moved = both.filter(pl.col("route") == "sft")
    changes = {
        "threshold": routing["threshold"],
        "trajectories": len(both),
        "moved_to_sft": len(moved),
        "mean_score_before": both["score_before"].mean(),
        "mean_score": both["score"].mean(),
        "spearman": both.select(pl.corr("score_before", "score", method="spearman")).item() if len(both) > 2 else None,
        "moved": moved.select("id", "score_before", "score").to_dicts(),
        # All attempts at the probe.
        "tokens_forward": summary["tokens_forward"] + summary["earlier"]["tokens"],
        "tokens_backward": summary["tokens_backward"] + summary["earlier"]["tokens"],
    }
    write_json(out / CHANGES, changes)
    return changes


class RefreshEvery:
    """Asked between the rounds of RL: every `every` rounds, the tasks that are still above the threshold, or all where none is."""

    def __init__(
        self,
        every: int,
        trajectories: Sequence[Trajectory],
        environment: Environment,
        tokenizer: Any,
        first: Path,
        out: Path,
        context_length: int,
        batch_tokens: int | None = None,
    ) -> None:
        self.every, self.trajectories, self.environment, self.tokenizer = every, trajectories, environment, tokenizer
        self.first, self.out, self.context_length, self.batch_tokens = first, out, context_length, batch_tokens

    def __call__(self, model: Any, rounds: int) -> list[Task] | None:
        """See `training.rl.Refresh`."""
        if rounds % self.every:
            return None
        folder = self.out / f"refresh-{rounds:05d}"
        changes = reroute(
            model,
            self.tokenizer,
            self.trajectories,
            self.first,
            folder,
            context_length=self.context_length,
            batch_tokens=self.batch_tokens,
        )
        moved = {row["id"] for row in changes["moved"]}
        kept = [t for t in self.trajectories if t.id not in moved] or self.trajectories
        tasks = {task.id: task for task in (self.environment.task(t.task) for t in kept)}
        return list(tasks.values())
