"""Dynamic routing: what RL has yet to learn is probed again on the model as it has become, and routed again.

The threshold stays the first route's, since concentration is free of scale: what has fallen below it is taught by imitation, and what
is still above it by RL. Each refresh is a folder with a probe, a route and `changes.json`, which says what moved.
"""

from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import polars as pl

from gradprism.environments.protocol import Environment, Task
from gradprism.probing.result import Probe, ProbeRun
from gradprism.routing.routes import Routes, route
from gradprism.runtime.errors import FolderInUseError
from gradprism.runtime.files import write_json
from gradprism.trajectories.record import Trajectory

CHANGES = "changes.json"


def remaining(probe: Path, route: Path) -> list[Trajectory]:
    """The trajectories of a probe that its route sends to RL, in the corpus's order."""
    to_rl = Routes.load(route).frame["route"] == "rl"
    return list(compress(Probe.load(probe).trajectories, to_rl))


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
    from gradprism.probing.api import probe as probe_corpus

    before = Routes.load(first)
    routing = before.routing

    def probe(on_existing: Literal["resume", "replace"]) -> ProbeRun:
        run = probe_corpus(
            model,
            tokenizer,
            iter(trajectories),
            out=out / "probe",
            context_length=context_length,
            batch_tokens=batch_tokens,
            on_existing=on_existing,
            launcher="here",
        ).run
        assert run is not None
        return run

    try:
        run = probe("resume")
    except FolderInUseError:  # of weights that a training cut short had, and has not come to again bit for bit
        run = probe("replace")
    after = route(
        out / "probe",
        routing.metric,
        policy=routing.policy,
        normalise=routing.normalise,
        threshold=routing.threshold,
        seed=routing.seed,
    )
    after.save(out / "route", "replace")
    columns = "id", "score", "route"
    both = after.frame.select(columns).join(before.frame.select(columns), on="id", suffix="_before")
    moved = both.filter(pl.col("route") == "sft")
    changes = {
        "threshold": routing.threshold,
        "trajectories": len(both),
        "moved_to_sft": len(moved),
        "mean_score_before": both["score_before"].mean(),
        "mean_score": both["score"].mean(),
        "spearman": both.select(pl.corr("score_before", "score", method="spearman")).item() if len(both) > 2 else None,
        "moved": moved.select("id", "score_before", "score").to_dicts(),
        # All attempts at the probe.
        "tokens_forward": (run.usage + run.earlier).tokens_forward,
        "tokens_backward": (run.usage + run.earlier).tokens_backward,
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
