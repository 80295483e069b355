"""A split of scored trajectories: how it was made, where scores are cut, and its table.

Trajectories at or below the threshold go to SFT, those above it to RL. More generally several cuts part the scores into ranges, each with a
side of its own: SFT, RL, neither or both. An override sends a trajectory elsewhere than its score does, for a reason that is kept.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from gradprism.concentration import BUILTIN
from gradprism.probing.manifest import ProbeManifest
from gradprism.routing.weights import Form, Weighting, sides_of
from gradprism.runtime.errors import ConfigError, DataError, one_line
from gradprism.runtime.files import read_json

Side = Literal["sft", "none", "rl", "both"]
SIDES: tuple[Side, ...] = get_args(Side)
Order = Literal["ascending", "descending"]


@dataclass(frozen=True, slots=True)
class Cut:
    """Numbers at which scores are cut, ascending, and the side of each range between them, one more: a score belongs to the range above
    a number where it is greater."""

    at: tuple[float, ...]
    sides: tuple[Side, ...] = ("sft", "rl")

    @classmethod
    def of(cls, at: Sequence[float], sides: Sequence[str]) -> Self:
        """Raises `ConfigError` for anything that is no cut."""
        if not at or not all(map(math.isfinite, at)) or any(a >= b for a, b in itertools.pairwise(at)):
            raise ConfigError(f"cuts {', '.join(map(str, at)) or 'none'}: give numbers on the score's scale, ascending")
        _check_sides(sides)
        if len(sides) != len(at) + 1:
            raise ConfigError(
                f"sides: {len(sides)} given for {len(at)} cuts; name one for each of the {len(at) + 1} ranges, lowest first"
            )
        return cls(tuple(map(float, at)), tuple(sides))  # pyright: ignore[reportArgumentType] # each is one of SIDES

    @classmethod
    def of_shares(cls, scores: NDArray[np.float64], shares: Sequence[float], sides: Sequence[str]) -> Self:
        """The cut of scores `[n]` into ranges with these `shares` of them, lowest first, each range as `quantile_threshold` cuts it.

        Equal scores stay together, so with ties a range may have fewer. Raises `ConfigError` for what `check_shares` refuses.
        """
        check_shares(shares, sides)
        above = [math.fsum(shares[i:]) for i in range(1, len(shares))]
        return cls(tuple(quantile_threshold(scores, min(1.0, share)) for share in above), tuple(sides))  # pyright: ignore[reportArgumentType]

    def route(self, scores: NDArray[np.float64]) -> NDArray[np.str_]:
        """The side of each score, `[n]`."""
        return np.array(self.sides)[np.searchsorted(self.at, scores, side="left")]

    def margins(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Each score less the number that is nearest to it, `[n]`."""
        distances = scores[:, None] - np.array(self.at)
        return np.take_along_axis(distances, np.abs(distances).argmin(1, keepdims=True), 1)[:, 0]


def check_shares(shares: Sequence[float], sides: Sequence[str]) -> None:
    """Raises `ConfigError` for shares that are not one per side, of 0 to 1, with the sum 1."""
    told = f"shares {', '.join(map(str, shares)) or 'none'}"
    if not all(0 <= share <= 1 for share in shares) or abs(math.fsum(shares) - 1) > 1e-6:
        raise ConfigError(f"{told}: give one per side, lowest first, with the sum 1")
    _check_sides(sides)
    if len(sides) != len(shares):
        raise ConfigError(f"sides: {len(sides)} given for {len(shares)} shares; name one for each, lowest first")


def check_division(
    rl_share: float, threshold: float | None, cuts: Sequence[float], shares: Sequence[float], sides: Sequence[str]
) -> Cut | None:
    """The cut at `cuts`, where these are given; raises `ConfigError` for ways to divide scores that contradict each other."""
    one = threshold is not None or rl_share != 0.5
    if cuts and shares:
        raise ConfigError("give either cuts or shares: shares are of the trajectories, cuts are numbers on the score's scale")
    if (cuts or shares or sides) and one:
        raise ConfigError("give either cuts or shares, or rl_share or threshold: they exclude each other")
    if threshold is not None and rl_share != 0.5:
        raise ConfigError("give either rl_share or threshold: they exclude each other")
    if shares:
        check_shares(shares, sides)
        return None
    return Cut.of(cuts, sides) if cuts or sides else None


def check_weights(
    weights: str | None,
    temperature: float | None,
    rl_share: float,
    threshold: float | None,
    division: Sequence[object],
    order: str | None,
) -> Weighting | None:
    """The weighting; raises `ConfigError` for what is none, and for what it contradicts."""
    weighting = Weighting.of(weights, temperature)
    if weighting and (division or threshold is not None or rl_share != 0.5):
        raise ConfigError(f"weights {weights}: take the place of sides; leave cuts, shares, sides, threshold and rl_share out")
    if weighting and order:
        raise ConfigError(f"weights {weights}: RL draws tasks by them, which leaves no order; give weights or an order")
    return weighting


def check_order(order: str | None) -> Order | None:
    """The order itself; raises `ConfigError` for an unknown one."""
    if order is not None and order not in get_args(Order):
        raise ConfigError(f"order {order!r}: choose from {', '.join(get_args(Order))}")
    return order  # pyright: ignore[reportReturnType] # it is one


def _check_sides(sides: Sequence[str]) -> None:
    if unknown := [side for side in sides if side not in SIDES]:
        raise ConfigError(f"sides {unknown[0]!r}: choose from {', '.join(SIDES)}")


class Value(BaseModel):
    """A typed value that is also a file's JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls, path: Path, **more: BaseModel) -> Self:
        """The value of a JSON file, with fields that the file leaves out; raises `DataError` for anything else."""
        try:
            return cls.model_validate({**read_json(path), **more})
        except (ValidationError, TypeError) as error:
            raise DataError(f"{path}: is not of a route folder ({one_line(error, 120)}); route again") from None


class ProbeOrigin(Value):
    """The model and corpus that were probed, of the probe's manifest."""

    model: str = ""
    weights_sha256: str = ""
    corpus_sha256: str = ""
    context_length: int | None = None
    dtype: str = ""

    @classmethod
    def of(cls, manifest: ProbeManifest) -> Self:
        """That of a probe by its manifest."""
        return cls(**{name: getattr(manifest, name) for name in cls.model_fields})


class Routing(Value):
    """The making of a route, and the numbers of trajectories that went where: the contents of `routing.json`.

    Scores above `threshold` went to RL. `threshold_rule` says where that is from: the scores' median, the quantile of an `rl_share`
    (None for the others), or a number that was given (`fixed`). Where several numbers were given with the sides of their ranges (rule
    `cuts`), or `shares` of the trajectories (rule `shares`), `cuts` and `sides` are they, and `threshold` is the first. `n_none` went to
    neither side, and `n_both` to both, which count in `n_sft` and in `n_rl`. `within`: the strata in which scores were ranked. `order`:
    that of the scores in which both sets are written, None for the corpus's. With `weights` (and their `temperature`) in place of sides
    (rule `weights`) the threshold is the median, which divides nothing. The numbers are those after the `n_overrides`.
    `n_undefined_turns` is None where turns were not asked for.
    """

    policy: str = "concentration"
    metric: str = "gini"
    normalise: str = "none"
    within: tuple[str, ...] = ()
    threshold_rule: Literal["median", "quantile", "fixed", "cuts", "shares", "weights"] = "median"
    threshold: float
    cuts: tuple[float, ...] = ()
    sides: tuple[Side, ...] = ()
    shares: tuple[float, ...] = ()
    rl_share: float | None = None
    order: Order | None = None
    weights: Form | None = None
    temperature: float | None = None
    seed: int = 0
    pass_rates_sha256: str | None = None
    target_sha256: str | None = None
    n_trajectories: int
    n_sft: int
    n_none: int = 0
    n_rl: int
    n_both: int = 0
    n_overrides: int = 0
    n_undefined_turns: int | None = None
    probe: ProbeOrigin = ProbeOrigin()
    versions: Mapping[str, str] = {}

    def __str__(self) -> str:
        others = f", {self.n_both} to both" if self.n_both or "both" in self.sides else ""
        others += f", {self.n_none} to neither" if self.n_none or "none" in self.sides else ""
        within = f" within {' and '.join(self.within)}" if self.within else ""
        overridden = f", {self.n_overrides} overridden" if self.n_overrides else ""
        more = (f", {self.order} order" if self.order else "") + overridden
        goes = f"{self.n_sft} to SFT, {self.n_rl} to RL{others}"
        return f"{goes}; {self.policy} of {self.metric}{within}, {self.cut_text}{more}"

    @property
    def cut(self) -> Cut:
        """Where scores are cut; with weights in place of sides, where half of them would be."""
        if self.weights:
            return Cut((self.threshold,), ("both", "both"))
        return Cut(self.cuts, self.sides) if self.cuts else Cut((self.threshold,))

    @property
    def weighting(self) -> Weighting | None:
        """The weights in place of sides."""
        return Weighting.of(self.weights, self.temperature)

    def sides_by_score(self, scores: NDArray[np.float64]) -> list[str]:
        """Where scores `[n]` send their trajectories, whatever the overrides."""
        if self.weighting is None:
            return self.cut.route(scores).tolist()
        rl = self.weighting.of_rl(scores)
        return sides_of(1 - rl, rl)

    @property
    def cut_text(self) -> str:
        """`threshold 0.35`, or `cuts 0.1, 0.7 (sft, rl, none)`."""
        if self.weighting:
            return str(self.weighting)
        if self.cuts:
            return f"cuts {', '.join(f'{cut:.6g}' for cut in self.cuts)} ({', '.join(self.sides)})"
        return f"threshold {self.threshold:.6g}"


def counts(route: pl.Series) -> dict[str, int]:
    """The fields of a `Routing` that count the sides of trajectories; those of both sides count in each, so that
    `n_sft + n_rl − n_both + n_none` is their number."""
    n = {side: int((route == side).sum()) for side in SIDES}
    return {"n_sft": n["sft"] + n["both"], "n_none": n["none"], "n_rl": n["rl"] + n["both"], "n_both": n["both"]}


def to_side(route: pl.Series, side: Literal["sft", "rl"]) -> NDArray[np.bool_]:
    """Which trajectories go to a side, alone or beside the other one; bool `[n]`."""
    return route.is_in([side, "both"]).to_numpy()


def metrics_with(*chosen: str) -> list[str]:
    """The built-in metrics and those chosen; others that are registered may be slow or broken, and are left alone."""
    return list(dict.fromkeys((*BUILTIN, *chosen)))


def turn_statistics(turns: pl.DataFrame, n: int) -> pl.DataFrame:
    """`[n, 5]`: of the scores of each trajectory's own turns (`Probe.turn_scores`) mean, std (population), min and max, and which turn
    has the last, the first of equals; null where none has a score."""
    score = pl.col("score")
    figures = {"mean": score.mean(), "std": score.std(ddof=0), "min": score.min(), "max": score.max()}
    found = (
        turns.drop_nulls()
        .group_by("index")
        .agg(**{f"turn_score_{name}": figure for name, figure in figures.items()}, turn_of_max=pl.col("turn").get(score.arg_max()))
    )
    return pl.select(index=pl.int_range(n)).join(found, on="index", how="left", maintain_order="left").drop("index")


def choose_threshold(scores: NDArray[np.float64], rl_share: float = 0.5, threshold: float | None = None) -> float:
    """The threshold for scores `[n]`: the number given, else the median (PRISM, step 3) or, for another share, its quantile.

    Raises `ConfigError` for a share outside 0 to 1, a number that is not finite, and both at once.
    """
    if threshold is None:
        return median_threshold(scores) if rl_share == 0.5 else quantile_threshold(scores, rl_share)
    if rl_share != 0.5:
        raise ConfigError(f"threshold {threshold} and RL share {rl_share} exclude each other; give one")
    if not math.isfinite(threshold):
        raise ConfigError(f"threshold {threshold}: must be a number on the score's scale")
    return float(threshold)


def median_threshold(scores: NDArray[np.float64]) -> float:
    """The median, half-way between the two middle scores of an even number. Ties go to SFT, so the halves may differ."""
    ascending = np.sort(scores).astype(np.float64)
    return _between(ascending[(len(ascending) - 1) // 2], ascending[len(ascending) // 2])


def quantile_threshold(scores: NDArray[np.float64], rl_share: float) -> float:
    """The threshold above which ⌊`rl_share`·n⌋ of n distinct scores lie; ties go to SFT, so with ties fewer may.

    It is half-way between the two scores that it separates, which for a share of 0.5 routes as the median does.
    """
    if not 0 <= rl_share <= 1:
        raise ConfigError(f"RL share {rl_share}: must be between 0 and 1")
    ascending = np.sort(scores).astype(np.float64)
    n_rl = math.floor(rl_share * len(ascending) + 1e-9)  # 0.29·100 is 28.999999999999996
    if n_rl == 0:
        return float(ascending[-1])
    if n_rl == len(ascending):
        return float(np.nextafter(ascending[0], -np.inf))
    return _between(ascending[-n_rl - 1], ascending[-n_rl])


def _between(low: np.float64, high: np.float64) -> float:
    """The middle of two scores, which separates them even where it rounds up to `high`: that one must not become a tie."""
    middle = low + (high - low) / 2
    return float(middle if middle < high else low)


def split_table(measures: pl.DataFrame, score: NDArray[np.float64], cut: Cut) -> pl.DataFrame:
    """The table of a split: `id`, `score`, `rank` (from 1), `margin` (to the nearest cut), `route` (its side), and the measures."""
    rank = np.empty(len(score), dtype=np.int64)
    rank[np.argsort(score, kind="stable")] = np.arange(1, len(score) + 1)
    columns = {"score": score, "rank": rank, "margin": cut.margins(score), "route": cut.route(score).tolist()}
    return pl.DataFrame({"id": measures["id"], **columns}).hstack(measures.drop("id", "index", strict=False))


def with_weights(table: pl.DataFrame, weighting: Weighting) -> pl.DataFrame:
    """A split's table with `sft_weight` and `rl_weight` by its scores, and the sides where these are; an override to one side has the whole
    weight there, one to both half of it on each."""
    rl = weighting.of_rl(table["score"].to_numpy())
    weights = pl.DataFrame({"sft_weight": 1 - rl, "rl_weight": rl})
    table = table.drop("sft_weight", "rl_weight", strict=False).hstack(weights)
    if "override" not in table.columns:
        return table.with_columns(route=pl.Series(sides_of(1 - rl, rl)))
    given = {"sft": (1.0, 0.0), "none": (0.0, 0.0), "rl": (0.0, 1.0), "both": (0.5, 0.5)}
    for place, name in enumerate(("sft_weight", "rl_weight")):
        own = pl.col("override").replace_strict(
            {side: pair[place] for side, pair in given.items()}, default=None, return_dtype=pl.Float64
        )
        table = table.with_columns(pl.coalesce(own, name).alias(name))
    return table


def overridden(table: pl.DataFrame, routing: Routing, ids: Sequence[str], side: Side | None, reason: str) -> pl.DataFrame:
    """A split's table with some trajectories sent to `side`, or back to where their scores send them (None).

    `override` has the side of those that are overridden and `reason` why, null elsewhere; without any, both columns are left out.
    Raises `ConfigError` for another side and for a reason that is missing, and `DataError` for an id that the table does not have.
    """
    if side is not None and side not in SIDES:
        raise ConfigError(f"side {side!r}: choose sft, none, rl or both, or None to take overrides back")
    if side is not None and not reason.strip():
        raise ConfigError(f"override of {len(ids)} trajectories: give a reason, which is kept with the route")
    if unknown := sorted(set(ids).difference(table["id"])):
        raise DataError(f"trajectory {unknown[0]!r}: is not in the route; give ids of its table")
    chosen = pl.col("id").is_in(list(ids))
    for name in ("override", "reason"):
        if name not in table.columns:
            table = table.with_columns(pl.lit(None, pl.String).alias(name))
    table = table.with_columns(
        override=pl.when(chosen).then(pl.lit(side, pl.String)).otherwise("override"),
        reason=pl.when(chosen).then(pl.lit(None if side is None else reason.strip(), pl.String)).otherwise("reason"),
    )
    scores = table["score"].to_numpy()
    table = table.with_columns(route=pl.coalesce("override", pl.Series(routing.sides_by_score(scores))))
    if routing.weighting is not None:
        table = with_weights(table, routing.weighting)
    return table if table["override"].count() else table.drop("override", "reason")
