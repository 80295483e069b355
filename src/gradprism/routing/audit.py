"""What a person should know before trusting a split: what the score goes along with, and how firm the threshold is.

`docs/audit.md` says what each figure means.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gradprism.concentration import METRICS

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
DRAWS = 10_000
# Policies that rank by the metric, for which following a plain measure is news.
_BY_METRIC = ("concentration", "inverse", "soft")


def average_ranks(values: NDArray[Any] | pl.Series) -> NDArray[np.float64]:
    """Ranks `[n]` of values `[n]`, from 1, ties ranked by their average."""
    return pl.Series(values).rank("average").to_numpy().astype(np.float64)


def spearman(a: NDArray[Any], b: NDArray[Any]) -> float | None:
    """Spearman's rank correlation of two arrays `[n]`, ties ranked by their average; None where either is constant or n < 2."""
    return _correlation(average_ranks(a), average_ranks(b))


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Correlation of ranks."""
    return None if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0 else float(np.corrcoef(a, b)[0, 1])


def agreement(a: NDArray[np.float64], b: NDArray[np.float64]) -> dict[str, float | None]:
    """How alike two scores `[n]` of the same trajectories route, each cut at its own median.

    `spearman`; `same_side`: share of trajectories that both send the same way; `jaccard`: |both to RL| / |either to RL|, None where
    neither sends any.
    """
    return _rank_agreement(average_ranks(a), average_ranks(b))


def _rank_agreement(a: NDArray[np.float64], b: NDArray[np.float64]) -> dict[str, float | None]:
    # Ranks keep order and ties, so they are split as the scores are.
    return {"spearman": _correlation(a, b), **_overlap(a > np.median(a), b > np.median(b))}


def _overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> dict[str, float | None]:
    either = int((a | b).sum())
    return {"same_side": float((a == b).mean()), "jaccard": int((a & b).sum()) / either if either else None}


def split_by(to_rl: NDArray[np.bool_], values: NDArray[np.float64]) -> dict[str, Any]:
    """How alike a split `[n]` and one by plain values `[n]` that sends as many to RL route, in the direction in which they are more alike.

    `rl`: which values that split sends to RL, `high` or `low` ones, and then `same_side` and `jaccard` as in `agreement`. Where equal
    values stand at its cut, both are of the overlap that drawing among them would give on average.
    """
    n, n_rl = len(to_rl), int(to_rl.sum())
    splits = []
    for rl, ranking in (("high", values), ("low", -values)):
        both = float(_chances_of_rl(ranking, n_rl)[to_rl].sum())
        jaccard = both / (2 * n_rl - both) if n_rl else None
        splits.append({"rl": rl, "same_side": (n - 2 * n_rl + 2 * both) / n, "jaccard": jaccard})
    return max(splits, key=lambda split: split["same_side"])


def _chances_of_rl(values: NDArray[np.float64], n_rl: int) -> NDArray[np.float64]:
    """The probability `[n]` that each is among the `n_rl` highest, where equals are drawn by chance."""
    if n_rl == 0:
        return np.zeros(len(values))
    cut = np.partition(values, -n_rl)[-n_rl]
    above, tied = values > cut, values == cut
    return np.where(above, 1.0, np.where(tied, (n_rl - above.sum()) / tied.sum(), 0.0))


def drawn_by_chance(table: pl.DataFrame) -> int | None:
    """How many that a pass-rate split sends to RL have the rate of one that it sends to SFT, and so were drawn among equals.

    None for a table (`measures.split_table`'s) without pass rates.
    """
    if "pass_rate" not in table.columns:
        return None
    sides = {side: table.filter(pl.col("route") == side)["pass_rate"] for side in ("sft", "rl")}
    return int(sides["rl"].is_in(sides["sft"].unique().implode()).sum())


def correlation_ratio(values: NDArray[np.float64], groups: Sequence[str]) -> float | None:
    """η² of values `[n]` by their groups: the sum of squares between groups over the total one, in [0, 1]; None without spread.

    Groups that have nothing to do with the values are expected to give (groups − 1)/(n − 1), not 0.
    """
    if np.ptp(values) == 0:
        return None
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    codes = np.fromiter(map(number.__getitem__, groups), np.intp, len(groups))
    deviation = values - values.mean()
    between = np.bincount(codes, weights=deviation) ** 2 / np.bincount(codes)
    return float(min(1.0, between.sum() / (deviation**2).sum()))


def threshold_standard_error(scores: NDArray[np.float64], rl_share: float, seed: int) -> float | None:
    """Bootstrap standard error of the threshold above which a share of scores `[n]` lies, from `DRAWS` seeded resamples.

    None where that is none or all of them, which no score bounds on both sides. A resample of n is n uniform draws u, each taking the
    score at ⌊u·n⌋ of the sorted scores, so its k-th smallest value is the score at ⌊u₍ₖ₎·n⌋, and uniform order statistics are Beta
    variates: exact, and a resample costs two draws instead of n.
    """
    ascending, n = np.sort(scores), len(scores)
    k = n - math.floor(rl_share * n + 1e-9)  # the threshold separates the k-th smallest from the next
    if not 0 < k < n:
        return None
    rng = np.random.default_rng(seed)
    lower = rng.beta(k, n + 1 - k, DRAWS)
    # u₍ₖ₊₁₎, given u₍ₖ₎, is the smallest of the n − k draws left above it. The median of an odd number is its middle score.
    upper = lower if n % 2 and rl_share == 0.5 else lower + (1 - lower) * rng.beta(1, n - k, DRAWS)
    picks = (np.minimum((u * n).astype(np.intp), n - 1) for u in (lower, upper))
    return float(np.mean([ascending[pick] for pick in picks], axis=0).std(ddof=1))


def audit(
    table: pl.DataFrame,
    metric: str,
    policy: str,
    seed: int,
    *,
    task_types: Sequence[str] | None = None,
    rl_share: float | None = 0.5,
) -> dict[str, Any]:
    """The audit of one split, as plain values: confounds, firmness of the threshold, agreement of the metrics, and warnings.

    `table` is `measures.split_table`'s; its `pass_rate`, where it has one, is the confound `success`. `task_types`: one a row.
    `rl_share` is the share whose quantile the threshold is, None where that was given as a number, which another corpus would not
    move. The threshold is called unstable where more than `UNSTABLE` of the trajectories lie within one standard error of it: for a
    smooth density that share is about 1/√n at the median, so the corpus has fewer than 100 trajectories, or its scores cluster there.
    """
    score = table["score"].to_numpy()
    to_rl = (table["route"] == "rl").to_numpy()
    names = {**{name: name for name in CONFOUNDS}, **({"success": "pass_rate"} if "pass_rate" in table.columns else {})}
    # Each column is ranked once: with a million rows that is what an audit takes.
    ranked = table.select(pl.col("score", *names.values(), *METRICS).rank("average")).to_dict()
    ranks = {name: column.to_numpy() for name, column in ranked.items()}
    confounds = {name: ranks[column] for name, column in names.items()}
    error = None if rl_share is None else threshold_standard_error(score, rl_share, seed)
    chance = drawn_by_chance(table) if policy == "pass_rate" else None
    result = {
        "spearman": {
            name: _correlation(ranks["score"], column) for name, column in {**confounds, **{m: ranks[m] for m in METRICS}}.items()
        },
        "split_by": {name: split_by(to_rl, column) for name, column in confounds.items()},
        "task_type_eta_squared": None if task_types is None else correlation_ratio(score, task_types),
        "threshold_standard_error": error,
        "share_within_one_standard_error": None if error is None else float((np.abs(table["margin"].to_numpy()) <= error).mean()),
        "rl_by_chance": chance,
        "agreement": {
            "metrics": {f"{a} – {b}": _rank_agreement(ranks[a], ranks[b]) for a, b in itertools.combinations(METRICS, 2)},
        },
    }
    # Soft and pass-rate scores are spread by chance: what they rank by is asked.
    source = {"soft": metric, "pass_rate": "pass_rate"}.get(policy, "score")
    warnings = list(_saturation(table[source].to_numpy(), "pass rates" if source == "pass_rate" else "scores"))
    if not warnings and policy != "random" and error is not None:
        warnings += _unstable(result["share_within_one_standard_error"])
    warnings += _one_sided(to_rl, rl_share is None)
    if chance is not None:
        warnings += _by_chance(chance, int(to_rl.sum()))
    if policy in _BY_METRIC:
        warnings += _follows({name: _correlation(ranks[source], column) for name, column in confounds.items()})
    return {**result, "warnings": warnings}


def probe_pays(probe_seconds: float, saved_seconds: float) -> str | None:
    """A warning where a probe costs at least what its routing saves: wall seconds of the probe, and of RL on everything less those
    of SFT and RL as routed; None where it pays.
    """
    if probe_seconds < saved_seconds:
        return None
    if saved_seconds <= 0:
        return f"training as routed takes {-saved_seconds:.0f} s more than RL on everything: routing saves nothing"
    return f"the probe took {probe_seconds:.0f} s and its routing saves {saved_seconds:.0f} s: it costs more than it saves"


def _saturation(values: NDArray[np.float64], what: str) -> Iterator[str]:
    if np.ptp(values) <= 1e-9 * np.abs(values).max():
        yield f"the {what} have no spread: the split says nothing about the trajectories"
        return
    ascending = np.sort(values)
    most = math.ceil(ALMOST_ALL * len(values))
    width = (ascending[most - 1 :] - ascending[: len(values) - most + 1]).min()
    if width <= NARROW * np.median(np.abs(values)):
        yield f"{ALMOST_ALL:.0%} of the {what} lie within {width:.2g} of each other: they are saturated, and the split says little"


def _unstable(share: float) -> Iterator[str]:
    if share > UNSTABLE:
        yield (
            f"{share:.0%} of the trajectories lie within one standard error of the threshold, which is unstable: probe more of them "
            "(100 or more), or look at scores that cluster there"
        )


def _one_sided(to_rl: NDArray[np.bool_], fixed_threshold: bool) -> Iterator[str]:
    n, n_rl = len(to_rl), int(to_rl.sum())
    stage, most = ("RL", n_rl) if 2 * n_rl > n else ("SFT", n - n_rl)
    if most == n:
        yield f"all {n} trajectories go to {stage}: the other stage has nothing to train on"
    elif fixed_threshold and most >= ALMOST_ALL * n:
        yield f"{most} of {n} trajectories go to {stage} at this threshold: choose another, or the median"


def _by_chance(chance: int, n_rl: int) -> Iterator[str]:
    if chance > BY_CHANCE * n_rl:
        yield (
            f"{chance} of the {n_rl} trajectories that go to RL were drawn by chance among equal pass rates: play more episodes a task, "
            "or give a --threshold: what has a higher rate goes to RL"
        )


def _follows(correlations: dict[str, float | None]) -> Iterator[str]:
    for name, rho in correlations.items():
        if rho is not None and abs(rho) > STRONG:
            yield f"the score follows {name} (Spearman {rho:.2f}): compare with a split by that measure"
