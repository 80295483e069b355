"""What experiments found of ways to spend a corpus and of rules that choose its halves: few numbers of each `results.json`.

The findings of the committed experiments come with the package (`evidence.json`, written by `scripts/evidence.py`).
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, TypeAdapter

from gradprism.experiments.arms import ArmConfig, Data, RefreshConfig, RouteConfig
from gradprism.experiments.comparison import Comparison, Tested
from gradprism.experiments.config import load_config
from gradprism.experiments.costs import speedup
from gradprism.experiments.results import Claim, read_results
from gradprism.experiments.statistics import Interval
from gradprism.reporting.checks import Check, bars
from gradprism.routing.audit import BY_METRIC
from gradprism.routing.split import Value

PACKAGED = Path(__file__).with_name("evidence.json")
LEVEL = 0.05  # below which a corrected p shows a difference
_DIGITS = 4  # what is kept of a number, so that the file is the same on every machine


class Span(Value):
    """A number with a 95 % interval, or with the range over runs."""

    mean: float
    low: float
    high: float


class Way(BaseModel, frozen=True, extra="forbid"):
    """A way to spend a corpus: what SFT trains on, whose tasks RL plays, RL's share of what is split, and its rounds where they are not
    that share of all."""

    sft: Data
    rl: Data
    rl_share: float | None = None
    rounds: int | str | None = None

    @property
    def splits(self) -> bool:
        """Whether something must choose."""
        return "routed" in (self.sft, self.rl)

    def __str__(self) -> str:
        share = 100 * (self.rl_share or 0.0)
        parts = {"all": "everything", "routed": f"{100 - share:g} %"}
        played = {"all": "everything", "routed": f"the other {share:g} %" if self.sft == "routed" else f"{share:g} % of the tasks"}
        sft = f"SFT on {parts[self.sft]}" if self.sft in parts else ""
        rl = f"RL on {played[self.rl]}" if self.rl in played else ""
        rounds = "" if self.rounds is None else f" in {'all rounds' if self.rounds == 'full' else f'{self.rounds} rounds'}"
        return (", then ".join(filter(None, (sft, rl))) or "no training") + rounds


class Rule(BaseModel, frozen=True, extra="forbid"):
    """What chooses which trajectories go to RL: options of `gradprism route`, and which model's scores they are."""

    policy: str
    metric: str = "gini"
    normalise: str = "none"
    within: tuple[str, ...] = ()
    scored: str = "base"

    @property
    def is_audited(self) -> bool:
        """Whether it goes by a score that the audit of a probe of the base looks at."""
        return self.policy in BY_METRIC and self.scored == "base"

    def __str__(self) -> str:
        named = {"concentration": f"high {self.metric}", "inverse": f"low {self.metric}", "soft": f"{self.metric}, softly"}
        more = [] if self.normalise == "none" else [self.normalise]
        more += [f"within {' and '.join(self.within)}"] if self.within else []
        more += ["scored after SFT"] if self.scored == "after_sft" else []
        return named.get(self.policy, self.policy.replace("_", " ")) + (f" ({', '.join(more)})" if more else "")


class Arm(Value):
    """An arm with its success on the main split, and its FLOPs over those of SFT then RL on everything.

    `rule` is None for an arm that splits nothing.
    """

    name: str
    way: Way
    rule: Rule | None
    seeds: int
    success: Span
    flops: Span | None = None


class Contrast(Value):
    """The difference in success of two arms, `first` less `second`, a fraction.

    `p` is for any trainings, Holm's over so many `comparisons`; `detectable` is what four of five such experiments would find, 1 or more
    of them nothing.
    """

    first: str
    second: str
    difference: Span
    p: float | None
    comparisons: int
    detectable: float | None

    @property
    def shown(self) -> int:
        """1 or -1 where the difference is shown, corrected; else 0."""
        return 0 if self.p is None or self.p >= LEVEL else 1 if self.difference.mean > 0 else -1

    @property
    def suggested(self) -> int:
        """1 or -1 where the interval of this comparison by itself is clear of zero; else 0."""
        return int(self.difference.low > 0) - int(self.difference.high < 0)

    def reversed(self) -> "Contrast":
        """Second less first."""
        d = self.difference
        turned = Span(mean=-d.mean, low=-d.high, high=-d.low)
        return self.model_copy(update={"first": self.second, "second": self.first, "difference": turned})


class Experiment(Value):
    """What an experiment found.

    `rules` compares every arm that splits by a rule with the one that splits alike by chance; `ways` those that split nothing or by
    chance with each other, and with arms whose rule is shown to be better.
    """

    name: str
    environment: str
    model: str | None
    parameters: int | None
    trajectories: int | None
    tasks: int
    base: Span | None
    arms: tuple[Arm, ...]
    ways: tuple[Contrast, ...]
    rules: tuple[Contrast, ...]
    bars: tuple[Check, ...]

    @property
    def speaks(self) -> bool:
        """Whether RL did there what it must before arms say anything of routing."""
        return self.base is not None and all(bar.met for bar in self.bars)

    def arm(self, name: str) -> Arm:
        """The arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)

    def by_way(self, rules: Mapping[Way, Rule]) -> dict[Way, Arm]:
        """The arm of each way: the one that splits by its rule of `rules`, else the first that splits by chance or nothing."""
        plain = [arm for arm in self.arms if arm.rule is None or arm.rule.policy == "random"]
        ruled = [arm for arm in self.arms if arm.rule and arm.rule == rules.get(arm.way)]
        return {arm.way: arm for arm in (*reversed(plain), *ruled)}

    def contrast(self, first: str, second: str) -> Contrast | None:
        """The comparison of two arms, in whichever order; None where there is none."""
        for found in (*self.ways, *self.rules):
            if {found.first, found.second} == {first, second}:
                return found if found.first == first else found.reversed()
        return None

    @classmethod
    def of(cls, folder: Path) -> Self:
        """The findings of a results folder; raises `MissingFileError`, `ConfigError` or `DataError` where there is none."""
        results, config = read_results(folder), load_config(Path(folder) / "config.json")
        comparison = Comparison(results)
        plain = {arm.name: (_way(arm), _rule(arm)) for arm in config.all_arms if _is_plain(arm) and comparison.runs(arm.name)}
        base = comparison.mean(results.base_arm)
        trained = {name: found for name, found in plain.items() if name != results.base_arm}
        by_chance = [name for name, (_, rule) in trained.items() if rule is None or rule.policy == "random"]
        control = {trained[name][0]: name for name in reversed(by_chance) if trained[name][1]}
        ruled = [(name, control[way]) for name, (way, rule) in trained.items() if name not in by_chance and way in control]
        rules = tuple(_contrasts(comparison, ruled))
        better = [contrast.first for contrast in rules if contrast.shown > 0]
        pairs = [*itertools.combinations(by_chance, 2), *itertools.product(better, by_chance)]
        whole = next((name for name, (way, _) in trained.items() if way == Way(sft="all", rl="all")), None)
        return cls(
            name=results.name,
            environment=results.environment,
            model=results.model and results.model.id,
            parameters=results.model and results.model.parameters,
            trajectories=results.trajectories,
            tasks=len(results.tasks[comparison.splits[0]]),
            base=None if base is None else _span(base),
            arms=tuple(_arm(comparison, name, *found, whole) for name, found in trained.items()),
            ways=tuple(_contrasts(comparison, pairs)),
            rules=rules,
            bars=tuple(bars(comparison)),
        )


def _is_plain(arm: ArmConfig) -> bool:
    """Whether an arm is told by its way and its rule: no overlaps, bands, weights, curricula, refreshing or other algorithm."""
    route = arm.route
    divided = route.threshold is not None or route.cuts or route.shares or route.weights or route.order
    return arm.algorithm is None and arm.refresh == RefreshConfig() and not (arm.is_routed and divided)


def _way(arm: ArmConfig) -> Way:
    return Way(sft=arm.sft, rl=arm.rl, rl_share=arm.route.rl_share if arm.is_routed else None, rounds=arm.rounds)


def _rule(arm: ArmConfig) -> Rule | None:
    route: RouteConfig = arm.route
    if not arm.is_routed:
        return None
    return Rule(policy=route.policy, metric=route.metric, normalise=route.normalise, within=route.within, scored=arm.scored)


def _arm(comparison: Comparison, name: str, way: Way, rule: Rule | None, whole: str | None) -> Arm:
    success, price = comparison.mean(name), whole and speedup(comparison.costs(name), comparison.costs(whole), "flops")
    assert success is not None  # it has runs
    flops = Span(mean=_short(1 / price.ratio), low=_short(1 / price.high), high=_short(1 / price.low)) if price else None
    return Arm(name=name, way=way, rule=rule, seeds=len(comparison.runs(name)), success=_span(success), flops=flops)


def _contrasts(comparison: Comparison, pairs: Sequence[tuple[str, str]]) -> Iterator[Contrast]:
    """Those of pairs that have seeds in common. What the experiment claims is corrected in the claims' families; what it does not, which
    nobody chose beforehand, over all of these pairs."""
    claims, pairs = comparison.results.claims, [pair for pair in pairs if comparison.difference(*pair)]
    here = comparison.tested([Claim(text="", better=a, worse=b) for a, b in pairs])
    known: dict[tuple[str, str], Tested] = dict(zip(pairs, here, strict=True))
    for claim, tested in zip(claims, comparison.tested(claims), strict=True):
        if (claim.worse, claim.better) in known:
            del known[claim.worse, claim.better]
        known[claim.better, claim.worse] = tested
    for first, second in pairs:
        turned = (first, second) not in known
        found = known[(second, first) if turned else (first, second)]
        assert found.difference is not None  # they have seeds in common
        contrast = Contrast(
            first=second if turned else first,
            second=first if turned else second,
            difference=_span(found.difference),
            p=None if found.p_trainings is None else _short(found.p_trainings),
            comparisons=found.comparisons,
            detectable=None if found.detectable is None else _short(found.detectable),
        )
        yield contrast.reversed() if turned else contrast


def _span(found: Interval) -> Span:
    return Span(mean=_short(found.mean), low=_short(found.low), high=_short(found.high))


def _short(number: float) -> float:
    return round(number, _DIGITS) + 0.0  # no negative zero


_EXPERIMENTS = TypeAdapter(tuple[Experiment, ...])


def packaged() -> tuple[Experiment, ...]:
    """The findings that come with the package."""
    return _EXPERIMENTS.validate_json(PACKAGED.read_bytes())


def as_text(experiments: Sequence[Experiment]) -> str:
    """The content of `evidence.json`."""
    return _EXPERIMENTS.dump_json(tuple(experiments), indent=1).decode() + "\n"
