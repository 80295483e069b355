"""The choice of a way to spend a corpus and of a rule that splits it, from what is known of both. `docs/advise.md` says how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple

from gradprism.advice.evidence import Arm, Contrast, Experiment, Rule, Span, Way
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
    """The probed trajectories, how many of them name a task, and how many different tasks are left to RL.

    With an `environment`, those are the tasks that it knows, `known` is how many trajectories have such a one, and `unknown` says of the
    first that has none why. Without, nothing was asked, and `known` is None.
    """

    trajectories: int
    named: int
    tasks: int
    environment: str = ""
    known: int | None = None
    unknown: str = ""

    @property
    def playable(self) -> int:
        """Trajectories whose task RL can play, as far as is known."""
        return self.named if self.known is None else self.known


class WayFound(Value):
    """What experiments found of a way: the mean over them of the share that it keeps of the best way's gain over the base, and of its
    FLOPs over those of SFT then RL on everything (None where one does not tell)."""

    way: Way
    kept: float
    flops: float | None


class Trial(NamedTuple):
    """A rule's arm in an experiment that speaks, and its comparison with chance."""

    experiment: Experiment
    arm: Arm
    contrast: Contrast


@dataclass(frozen=True)
class Choice:
    """What was chosen, and from what: `way` is None where nothing supports one, `other` is what the other preference chooses; `rules` are
    those by which ways split better than by chance. `only_sft`: there is nothing that RL can play."""

    verdict: Verdict
    only_sft: bool
    prefer: Prefer
    ways: tuple[WayFound, ...]
    way: Way | None
    other: Way | None
    rules: Mapping[Way, Rule]


def choose(
    experiments: Sequence[Experiment], begin: Start | None, only_sft: bool, prefer: Prefer, rules: Mapping[Way, Rule]
) -> Choice:
    """Chooses by the experiments that speak, where ways split by `rules`."""
    said, ways = verdict(begin), weigh([found for found in experiments if found.speaks], rules)
    way, other = (_way(ways, said, begin, only_sft, by_price) for by_price in (prefer == "price", prefer != "price"))
    return Choice(said, only_sft, prefer, ways, way, other, rules)


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
    known = _varying(begin)
    return bool(known) and all(varying.high < FEW for varying in known)


def _varying(begin: Start) -> list[Span]:
    """What is known of groups that vary, by success and by score; nothing where only a lower bound is."""
    return [] if begin.at_least else [varying for varying in (begin.varying, begin.varying_scores) if varying is not None]


def weigh(speaking: Sequence[Experiment], rules: Mapping[Way, Rule]) -> tuple[WayFound, ...]:
    """The ways that all of these experiments have, the cheapest first."""
    each = [found.by_way(rules) for found in speaking]
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
        known = _varying(begin) if begin else []
        return None if known and all(varying.mean < FEW for varying in known) else RL
    allowed = [found for found in ways if said not in ("weak", "flat") or found.way.sft != "none"]
    if not allowed:
        return None
    if by_price:
        best = max(found.kept for found in allowed)
        return next(found.way for found in allowed if found.kept >= min(best, KEPT * best))  # all may be below the base
    return max(allowed, key=lambda found: found.kept).way


def rule_trials(experiments: Sequence[Experiment]) -> list[Trial]:
    """All that the experiments that speak say of rules."""
    speaking = [found for found in experiments if found.speaks]
    return [Trial(found, found.arm(contrast.first), contrast) for found in speaking for contrast in found.rules]


def shown_rules(trials: Sequence[Trial]) -> dict[Way, Rule]:
    """For each way that splits the rule that an experiment shows to beat chance and none to be worse, of several that with the largest
    gain; ways that have none are left out."""
    worse = [(trial.arm.way, trial.arm.rule) for trial in trials if trial.contrast.shown < 0]
    better = [t for t in trials if t.contrast.shown > 0 and (t.arm.way, t.arm.rule) not in worse]
    ascending = sorted(better, key=lambda trial: trial.contrast.difference.mean)
    return {trial.arm.way: trial.arm.rule for trial in ascending if trial.arm.rule}
