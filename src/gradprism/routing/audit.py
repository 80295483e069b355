"""Facts to know before trusting a split: what its score correlates with, and how firm the threshold is.

`docs/audit.md` says what each figure means.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradprism.routing.agreement import (
    Agreement,
    SplitBy,
    correlation,
    correlation_ratio,
    rank_agreement,
    split_by,
    threshold_standard_error,
)
from gradprism.routing.policies import FROM_PASS_RATES, of_pass_rates
from gradprism.routing.scoreboard import ScoreComparison
from gradprism.routing.split import Routing, Value, metrics_with, to_side
from gradprism.routing.text import number, table

CONFOUNDS = ("loss", "l2", "n_tokens", "n_response_tokens", "n_turns")
# |ρ| above which a score is said to follow a plain measure.
STRONG = 0.7
# Share of trajectories from which on a split is one-sided or its scores are saturated, and the width that saturated scores lie within,
# as a fraction of their median size.
ALMOST_ALL, NARROW = 0.95, 1e-3
# Share within one standard error of the threshold above which that is said to be unstable.
UNSTABLE = 0.1
# Share of the RL set above which a pass-rate split is said to be drawn by chance.
BY_CHANCE = 0.1
# Policies that rank by the metric, for which following a plain measure is news.
BY_METRIC = ("concentration", "inverse", "soft")


class ProbeAgreement(Agreement):
    """Agreement with another probe over the trajectories of both, and in what the probes differ: `(here, there)`."""

    shared: int
    differs: Mapping[str, tuple[Any, Any]]


class Agreements(Value):
    """Agreement of each pair, by the names of both: of metrics and, where they were asked for, of normalisations of the norms, of parts
    of the layers, and with other probes, by their folders' names."""

    metrics: Mapping[str, Agreement]
    normalisations: Mapping[str, Agreement] = {}
    layers: Mapping[str, Agreement] = {}
    probes: Mapping[str, ProbeAgreement] = {}


class Cost(Value):
    """Wall seconds that a probe took, and that its routing saves of RL on everything."""

    probe_seconds: float
    saved_seconds: float

    @property
    def warning(self) -> str | None:
        """A line where the probe costs at least what its routing saves."""
        probe, saved = self.probe_seconds, self.saved_seconds
        if probe < saved:
            return None
        if saved <= 0:
            return f"training as routed takes {-saved:.0f} s more than RL on everything: routing saves nothing"
        return f"the probe took {probe:.0f} s and its routing saves {saved:.0f} s: it costs more than it saves"


class Audit(Value):
    """The audit of a split; `str` gives it as a person reads it, `to_json` as plain values.

    `spearman` and `split_by` compare the score and its split with plain measures (`success`: the pass rate); `scores` compares all
    scores of the probe, `diversity` has the Vendi scores of all gradients and of each side's, and `notes` say what could not be
    computed. Figures that do not apply are None.
    """

    routing: Routing
    spearman: Mapping[str, float | None]
    split_by: Mapping[str, SplitBy]
    task_type_eta_squared: float | None
    threshold_standard_error: float | None
    share_within_one_standard_error: float | None
    rl_by_chance: int | None
    agreement: Agreements
    cost: Cost | None = None
    scores: ScoreComparison | None = None
    diversity: Mapping[str, float | None] = {}
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The audit as JSON values."""
        return self.model_dump(mode="json")

    def __str__(self) -> str:
        return "\n".join(line for line, _ in itertools.groupby(self._lines()))  # of two empty lines, one

    def _lines(self) -> Iterator[str]:
        """Tables, single figures, notes and warnings as plain text."""
        made = self.routing
        cut = {"median": "median split", "quantile": f"{made.rl_share} to RL", "fixed": f"cut at {made.threshold:.6g}"}
        within = f" within {' and '.join(made.within)}" if made.within else ""
        yield f"{made.n_trajectories} trajectories, {made.policy} of {made.metric}{within}, {cut.get(made.threshold_rule, made.cut_text)}"
        # Where all scores are compared, the metrics are among them.
        named = [name for name in self.spearman if self.scores is None or name in self.split_by]
        rows = [(name, number(self.spearman[name]), *self._split(name)) for name in named]
        yield from table(("The score against", "Spearman", "its split: RL", "same side", "Jaccard"), rows)
        if self.task_type_eta_squared is not None:
            yield f"Share of the score's variance that task types explain (η²): {self.task_type_eta_squared:.3f}"
        error, share = self.threshold_standard_error, self.share_within_one_standard_error
        if error is not None and share is not None:
            yield f"Standard error of the threshold: {error:.4g}; within one of it: {share:.1%} of the trajectories"
        for kind in Agreements.model_fields:
            pairs = getattr(self.agreement, kind)
            if pairs and not (kind == "metrics" and self.scores):
                rows = [(name, number(pair.spearman), *_overlap(pair)) for name, pair in pairs.items()]
                yield from table((f"Agreement between {kind}", "Spearman", "same side", "Jaccard"), rows)
        for name, pair in self.agreement.probes.items():
            changes = "; ".join(f"{key}: {_short(here)} → {_short(there)}" for key, (here, there) in pair.differs.items())
            yield f"{name}: {pair.shared} shared trajectories; {changes or 'taken in the same way'}"
        if self.scores:
            yield from self.scores.lines(made.metric)
        if self.diversity:
            parts = (f"{name} {'–' if value is None else f'{value:.1f}'}" for name, value in self.diversity.items())
            yield f"Directions that gradients are spread over (Vendi score): {', '.join(parts)}"
        if self.cost:
            yield f"The probe took {self.cost.probe_seconds:.0f} s; routing saves {self.cost.saved_seconds:.0f} s"
        yield from (f"note: {note}" for note in self.notes)
        yield from (f"warning: {warning}" for warning in self.warnings)

    def _split(self, name: str) -> tuple[str, str, str]:
        split = self.split_by.get(name)
        return ("", "", "") if split is None else (split.rl, *_overlap(split))


def audit_split(table: pl.DataFrame, routing: Routing, tasks: pl.DataFrame | None = None) -> Audit:
    """The audit of one split: confounds, firmness of the threshold, agreement of the metrics, and warnings.

    `table` is `split.split_table`'s; its `pass_rate`, where it has one, is the confound `success`. A threshold that was given has no
    standard error, since another corpus would not move it. One is called unstable where more than `UNSTABLE` of the trajectories lie
    within one standard error of it: for a smooth density that share is about 1/√n at the median, so the corpus has fewer than 100
    trajectories, or its scores cluster there. `tasks` is `tasks.read_tasks`'; task types count where all trajectories have one.
    """
    score = table["score"].to_numpy()
    # Weights divide nothing: what is asked is the split that they soften.
    to_rl = score > routing.threshold if routing.weights else to_side(table["route"], "rl")
    metrics = metrics_with(routing.metric)
    names = {**{name: name for name in CONFOUNDS}, **({"success": "pass_rate"} if "pass_rate" in table.columns else {})}
    # Each column is ranked once: with a million rows that is what an audit takes.
    ranked = table.select(pl.col("score", *names.values(), *metrics).rank("average")).to_dict()
    ranks = {name: column.to_numpy() for name, column in ranked.items()}
    confounds = {name: ranks[column] for name, column in names.items()}
    share = {"median": 0.5, "quantile": routing.rl_share}.get(routing.threshold_rule)
    error = None if share is None else threshold_standard_error(score, share, routing.seed)
    from_rates = routing.policy in FROM_PASS_RATES
    types = None if tasks is None or tasks["task_type"].null_count() else tasks["task_type"]
    found = Audit(
        routing=routing,
        spearman={
            name: correlation(ranks["score"], column)
            for name, column in {**confounds, **{metric: ranks[metric] for metric in metrics}}.items()
        },
        split_by={name: split_by(to_rl, column) for name, column in confounds.items()},
        task_type_eta_squared=None if types is None else correlation_ratio(score, types),
        threshold_standard_error=error,
        share_within_one_standard_error=None if error is None else float((np.abs(table["margin"].to_numpy()) <= error).mean()),
        rl_by_chance=drawn_by_chance(table, routing.policy),
        agreement=Agreements(
            metrics={f"{a} – {b}": rank_agreement(ranks[a], ranks[b]) for a, b in itertools.combinations(metrics, 2)}
        ),
        warnings=(),
    )
    # Soft and pass-rate scores are spread by chance, and ranks within strata evenly: what they rank by is asked.
    by_metric = routing.policy in BY_METRIC and (routing.within or routing.policy == "soft")
    source = routing.metric if by_metric else "score"
    values = of_pass_rates(routing.policy, table) if from_rates else table[source].to_numpy()
    warnings = [*_saturation(values, "pass rates" if from_rates else "scores")]
    if not warnings and routing.policy != "random":
        warnings += _unstable(found.share_within_one_standard_error)
    warnings += [*_one_sided(routing), *_by_chance(found.rl_by_chance, routing.n_rl)]
    if routing.policy in BY_METRIC:
        # Within strata it is the rank there that routes, and that is to follow nothing.
        asked = ranks["score" if routing.within and routing.policy != "soft" else source]
        warnings += _follows({name: correlation(asked, column) for name, column in confounds.items()})
    if unnamed := 0 if tasks is None else int((to_rl & ~tasks["named"].to_numpy()).sum()):
        warnings.append(f"{unnamed} of {routing.n_rl} RL trajectories name no task, so no environment can set theirs up")
    return found.model_copy(update={"warnings": tuple(warnings)})


def drawn_by_chance(table: pl.DataFrame, policy: str) -> int | None:
    """Number of trajectories that a split by pass rates sends to RL though an equal goes to SFT: they were drawn among equals.

    None for a policy that ranks by anything else. `table` is `split.split_table`'s.
    """
    if policy not in FROM_PASS_RATES:
        return None
    values, to_rl = of_pass_rates(policy, table), to_side(table["route"], "rl")
    return int(np.isin(values[to_rl], values[(table["route"] == "sft").to_numpy()]).sum())


def _saturation(values: NDArray[np.float64], what: str) -> Iterator[str]:
    if np.ptp(values) <= 1e-9 * np.abs(values).max():
        yield f"the {what} are all equal: the split says nothing about the trajectories"
        return
    ascending = np.sort(values)
    most = math.ceil(ALMOST_ALL * len(values))
    width = (ascending[most - 1 :] - ascending[: len(values) - most + 1]).min()
    if width <= NARROW * np.median(np.abs(values)):
        yield f"{ALMOST_ALL:.0%} of the {what} lie within {width:.2g} of each other: they are saturated, and the split says little"


def _unstable(share: float | None) -> Iterator[str]:
    if share is not None and share > UNSTABLE:
        yield (
            f"{share:.0%} of the trajectories lie within one standard error of the threshold, which is unstable: probe more of them "
            "(100 or more), or look at scores that cluster there"
        )


def _one_sided(routing: Routing) -> Iterator[str]:
    if routing.weights:
        return
    n, both = routing.n_trajectories, routing.n_both
    most, stage = max((routing.n_sft - both, "SFT"), (routing.n_none, "neither"), (routing.n_rl - both, "RL"), (both, "both"))
    if most == n:
        other = "the other stage has nothing to train on"
        left = {"neither": "there is nothing to train on", "both": "nothing is routed"}.get(stage, other)
        yield f"all {n} trajectories go to {stage}: {left}"
    elif routing.sides and not (routing.n_sft and routing.n_rl):
        yield f"of {n} trajectories none goes to {'RL' if routing.n_sft else 'SFT'}: it has nothing to train on"
    elif routing.threshold_rule in ("fixed", "cuts") and most >= ALMOST_ALL * n:
        yield f"{most} of {n} trajectories go to {stage} at this threshold: choose another, or the median"


def _by_chance(chance: int | None, n_rl: int) -> Iterator[str]:
    if chance is not None and chance > BY_CHANCE * n_rl:
        yield (
            f"{chance} of the {n_rl} trajectories that go to RL were drawn by chance among equal pass rates: play more episodes per "
            "task, or give a --threshold: what has a higher rate goes to RL"
        )


def _follows(correlations: Mapping[str, float | None]) -> Iterator[str]:
    for name, rho in correlations.items():
        if rho is not None and abs(rho) > STRONG:
            yield f"the score follows {name} (Spearman {rho:.2f}): compare with a split by that measure"


def _overlap(pair: Agreement | SplitBy) -> tuple[str, str]:
    return f"{pair.same_side:.1%}", number(pair.jaccard)


def _short(value: Any) -> str:
    """A manifest's value; of a hash its beginning."""
    text = str(value)
    return text[:12] if len(text) == 64 else text
