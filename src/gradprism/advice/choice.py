"""The choice of a way to spend a corpus and of a rule that splits it, from what is known of both. `docs/advise.md` says how."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from gradprism.advice.evidence import Contrast, Experiment, Rule, Way
from gradprism.advice.pass_rates import Start
from gradprism.routing.split import Value

Prefer = Literal["success", "price"]
Verdict = Literal["unknown", "weak", "graded", "flat", "between", "strong"]
# Success below which, by the whole interval, RL has next to nothing to learn from the base, and above which SFT has little to add.
WEAK, STRONG = 0.05, 0.80
# Share of groups that vary below which, by the whole interval, RL has next to nothing to learn from.
FEW = 0.05
KEPT = 0.9  # of the best way's gain over the base, that the cheapest way must keep where price is preferred
SFT, RL = Way(sft="all", rl="none"), Way(sft="none", rl="all")


class Corpus(Value):
    """The probed trajectories, how many of them name a task that an environment can set up, and how many tasks those are."""

    trajectories: int
    named: int
    tasks: int


class WayFound(Value):
    """What experiments found of a way: the mean over them of the share that it keeps of the best way's gain over the base, and of its
    FLOPs over those of SFT then RL on everything (None where one does not tell)."""

    way: Way
    kept: float
    flops: float | None


@dataclass(frozen=True)
class Choice:
    """What was chosen, and from what: `way` is None where nothing supports one, `rule` where none is shown to beat chance; `trials` are
    the rules' comparisons with chance in the experiments that speak. `only_sft`: there is nothing that RL can play. `other` is the way that
    the other preference chooses."""

    verdict: Verdict
    only_sft: bool
    prefer: Prefer
    ways: tuple[WayFound, ...]
    way: Way | None
    other: Way | None
    trials: tuple[tuple[Experiment, Rule, Contrast], ...]
    rule: Rule | None


def choose(experiments: Sequence[Experiment], begin: Start | None, only_sft: bool, prefer: Prefer) -> Choice:
    """Chooses by the experiments that speak."""
    speaking = [found for found in experiments if found.speaks]
    said, ways = verdict(begin), weigh(speaking)
    trials = tuple(_trials(speaking))
    way, other = (_way(ways, said, begin, only_sft, by_price) for by_price in (prefer == "price", prefer != "price"))
    return Choice(said, only_sft, prefer, ways, way, other, trials, shown_rule(trials))


def verdict(begin: Start | None) -> Verdict:
    """What the pass rates say: `weak` and `strong` bases; `graded`: hardly a success, but scores that vary; `flat`: groups that hardly vary
    all the same. An interval that straddles a limit decides nothing."""
    if begin is None:
        return "unknown"
    if begin.success.high < WEAK:
        return "graded" if begin.varying_scores and begin.varying_scores.low >= FEW else "weak"
    if begin.success.low > STRONG:
        return "strong"
    return "flat" if hardly_varies(begin) else "between"


def hardly_varies(begin: Start) -> bool:
    """Whether nearly all groups have one reward throughout, whichever is rewarded."""
    known = [varying for varying in (begin.varying, begin.varying_scores) if varying is not None]
    return bool(known) and not begin.at_least and all(varying.high < FEW for varying in known)


def weigh(speaking: Sequence[Experiment]) -> tuple[WayFound, ...]:
    """The ways that all of these experiments have, the cheapest first."""
    each = [found.by_way() for found in speaking]
    common = [way for way in (each[0] if each else ()) if all(way in ways for ways in each)]
    found = []
    for way in common:
        kept, flops = [], []
        for experiment, ways in zip(speaking, each, strict=True):
            base = experiment.base.mean if experiment.base else 0.0
            best = max(ways[other].success.mean for other in common)
            kept.append((ways[way].success.mean - base) / (best - base) if best > base else 0.0)
            flops.append(ways[way].flops)
        known = [price.mean for price in flops if price is not None]
        found.append(WayFound(way=way, kept=fmean(kept), flops=fmean(known) if len(known) == len(flops) else None))
    return tuple(sorted(found, key=lambda one: (one.flops is None, one.flops or 0.0, -one.kept)))


def _way(ways: Sequence[WayFound], said: Verdict, begin: Start | None, only_sft: bool, by_price: bool) -> Way | None:
    if only_sft:
        return SFT
    if said == "strong":
        solved = begin and begin.varying and not begin.at_least and begin.varying.mean < FEW
        return None if solved else RL
    allowed = [found for found in ways if said not in ("weak", "flat") or found.way.sft != "none"]
    if not allowed:
        return None
    if by_price:
        best = max(found.kept for found in allowed)
        return next(found.way for found in allowed if found.kept >= KEPT * best)
    return max(allowed, key=lambda found: found.kept).way


def _trials(speaking: Sequence[Experiment]) -> Iterator[tuple[Experiment, Rule, Contrast]]:
    for experiment in speaking:
        for contrast in experiment.rules:
            if rule := experiment.arm(contrast.first).rule:
                yield experiment, rule, contrast


def shown_rule(trials: Sequence[tuple[Experiment, Rule, Contrast]]) -> Rule | None:
    """The rule that an experiment shows to beat chance, and none shows to be worse; of several the one with the largest gain."""
    worse = [rule for _, rule, contrast in trials if contrast.shown < 0]
    better = [(contrast.difference.mean, rule) for _, rule, contrast in trials if contrast.shown > 0 and rule not in worse]
    return max(better, key=lambda pair: pair[0])[1] if better else None
