"""What the audit of a probe says of one score: whether a route by it would be by something of its own that stays the same."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from gradprism.probing.result import Probe
from gradprism.routing.audit import UNSTABLE
from gradprism.routing.scoreboard import FEWEST, OWN, STABLE
from gradprism.routing.split import Value, metrics_with
from gradprism.routing.stability import audit


class ScoreFacts(Value):
    """Facts of `metric` over n trajectories, of which it is not defined for `undefined`: then nothing else is known.

    `equal` says that all trajectories have the same score. `own` is the share of its ranks' variance that length and loss leave, `near`
    the share of trajectories within one standard error of the median, `stability` Spearman's correlation with itself in each other probe,
    `alike` the scores that rank as it does, `warnings` the audit's. None where a figure is not known.
    """

    metric: str
    n: int
    undefined: int
    first_undefined: str | None = None
    equal: bool = False
    own: float | None = None
    near: float | None = None
    stability: Mapping[str, float | None] = {}
    alike: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def doubts(self) -> tuple[str, ...]:
        """Reasons not to route by it here, from its own figures; a few trajectories give next to none."""
        return tuple(self._doubts())

    def _doubts(self) -> Iterator[str]:
        if self.undefined:
            yield f"not defined for {self.undefined} of {self.n} trajectories, the first {self.first_undefined!r}; leave them out"
            return
        if self.equal:
            yield f"the same for all {self.n} trajectories, so that it splits nothing"
        if self.own is not None and self.own < OWN and self.n >= FEWEST:
            yield f"mostly length and loss here ({100 * (1 - self.own):.0f} % of its ranks' variance)"
        if self.near is not None and self.near > UNSTABLE:
            yield f"an uncertain cut: {100 * self.near:.0f} % of the trajectories lie within one standard error of it"
        moved = [f"{name} (ρ {rho:.2f})" for name, rho in self.stability.items() if rho is not None and rho < STABLE]
        if moved:
            yield f"not the same in {', '.join(moved)}"


def score_facts(
    probe: Probe,
    metric: str,
    normalise: str,
    pass_rates: str | Path | Mapping[str, float] | None,
    compare: Sequence[Probe | str | Path],
) -> ScoreFacts:
    """The facts of a score, from `audit`; raises what that does, but for scores that are not defined for some trajectories."""
    table = probe.measures(normalise, metrics_with(metric), strict=False)
    undefined = table.filter(pl.any_horizontal(pl.col(metrics_with(metric)).is_nan()))
    if len(undefined):
        return ScoreFacts(metric=metric, n=len(table), undefined=len(undefined), first_undefined=undefined["id"][0])
    found = audit(probe, metric, normalise=normalise, pass_rates=pass_rates, compare=compare)
    assert found.scores is not None  # all are compared
    facts = found.scores.scores.get(metric)
    return ScoreFacts(
        metric=metric,
        n=len(table),
        undefined=0,
        equal=table[metric].n_unique() == 1,
        own=facts and facts.own,
        near=found.share_within_one_standard_error,
        stability={name: agreed.spearman for name, agreed in found.agreement.probes.items()},
        alike=tuple(name for group in found.scores.groups or () if metric in group for name in group if name != metric),
        warnings=found.warnings,
    )
