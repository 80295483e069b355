"""Dynamic routing: what is left for RL is probed again on the model as it has become, and routed again.

The threshold stays the first route's, since concentration is free of scale: what has fallen below it is trained on by SFT, and what is
still above it is played by RL. Each refresh is a folder with a probe, a route and `changes.json`, which says what moved.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import polars as pl

from gradprism.environments.protocol import Environment, Task
from gradprism.experiments.stages import PROBE, ROUTE
from gradprism.probing.api import probe
from gradprism.probing.pass_scores import PASS_SCORES
from gradprism.probing.result import Probe
from gradprism.routing.routes import Routes, route
from gradprism.routing.split import to_side
from gradprism.runtime.errors import FolderInUseError
from gradprism.runtime.files import read_json, write_json
from gradprism.runtime.usage import Usage
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import Renderer

CHANGES = "changes.json"


def remaining(folder: Path, routes: Routes) -> list[Trajectory]:
    """The trajectories of a probe that its route sends to RL, in the corpus's order."""
    return list(compress(Probe.load(folder).trajectories, to_side(routes.frame["route"], "rl")))


def reroute(
    model: Any, renderer: Renderer, trajectories: Sequence[Trajectory], first: Routes, out: Path, batch_tokens: int | None
) -> tuple[Probe, frozenset[str]]:
    """Probes `trajectories` on `model` and routes them as `first` was, at its threshold; the probe, and the ids of what moved to SFT.

    Writes `out/probe`, `out/route` and `out/changes.json`. What was finished by an earlier, interrupted call is not probed again.
    """

    def probed(**more: Any) -> Probe:
        settings = {"out": out / PROBE, "context_length": renderer.context_length, "batch_tokens": batch_tokens}
        settings["scores"] = [name for name in PASS_SCORES if name == first.routing.metric]
        return probe(model, renderer.tokenizer, trajectories, **settings, launcher="here", **more)

    try:
        made = probed()
    except FolderInUseError:  # of weights that a training cut short had, and has not come to again bit for bit
        made = probed(on_existing="replace")
    rule = first.routing
    after = route(made, rule.metric, policy=rule.policy, normalise=rule.normalise, threshold=rule.threshold, seed=rule.seed)
    after.save(out / ROUTE, "replace")
    columns = ["id", "score", "route"]
    both = after.frame.select(columns).join(first.frame.select(columns), on="id", suffix="_before")
    moved = both.filter(pl.col("route") == "sft")
    changes = {
        "threshold": rule.threshold,
        "trajectories": len(both),
        "moved_to_sft": len(moved),
        "mean_score_before": both["score_before"].mean(),
        "mean_score": both["score"].mean(),
        "spearman": both.select(pl.corr("score_before", "score", method="spearman")).item() if len(both) > 2 else None,
        "moved": moved.select("id", "score_before", "score").to_dicts(),
        "usage": made.usage.to_json(),
    }
    write_json(out / CHANGES, changes)
    return made, frozenset(moved["id"])


@dataclass
class RefreshEvery:
    """Asked between the rounds of RL: every `every` rounds, the tasks that are still above the threshold, or all where none is."""

    every: int
    trajectories: Sequence[Trajectory]
    environment: Environment
    renderer: Renderer
    first: Routes
    out: Path
    batch_tokens: int | None = None

    def __call__(self, model: Any, rounds: int) -> list[Task] | None:
        """See `training.rl.Refresh`."""
        if rounds % self.every:
            return None
        folder = self.out / f"refresh-{rounds:05d}"
        _, moved = reroute(model, self.renderer, self.trajectories, self.first, folder, self.batch_tokens)
        kept = [t for t in self.trajectories if t.id not in moved] or self.trajectories
        return list({task.id: task for task in (self.environment.task(t.task) for t in kept)}.values())

    def usage(self, training: Usage) -> Usage:
        """The usage of the training with the tokens of all probes on the way, those of earlier attempts among them."""
        probes = [Usage.from_json(read_json(path)["usage"]) for path in sorted(self.out.glob(f"*/{CHANGES}"))]
        return sum((Usage(probe.tokens_forward, probe.tokens_backward) for probe in probes), training)
