"""Whether an experiment lies where something can be seen, and whether its RL does what it must: conditions, each met or not."""

from collections.abc import Sequence
from dataclasses import dataclass

from gradprism.experiments import costs
from gradprism.experiments.comparison import Comparison, families
from gradprism.experiments.config import ExperimentConfig
from gradprism.experiments.power import detectable, seeds_of_claim
from gradprism.experiments.results import Power
from gradprism.reporting.document import Table
from gradprism.reporting.numbers import percent, points

_SAID = {True: "pass", False: "**fail**", None: "not known"}


@dataclass(frozen=True)
class Check:
    """A condition with its figures; `met` is None where it is not known."""

    met: bool | None
    text: str

    def __str__(self) -> str:
        return f"- {self.text}: {_SAID[self.met]}."


def regime(comparison: Comparison) -> list[Check]:
    """Conditions under which the paper's arms differ: a weak base, RL at least as good as SFT, both together better, no ceiling.

    Arms are compared by their means; with one seed, which says nothing of others, only the base and the ceiling are known.
    """
    results, split = comparison.results, comparison.splits[0]
    limits, base, sft, rl, both = results.regime, results.base_arm, results.sft_arm, results.full_rl_arm, results.sft_then_rl_arm
    at_base = comparison.mean(base)
    best = max(((m.mean, comparison.title(arm)) for arm in comparison.arms if (m := comparison.mean(arm))), default=None)
    highest = "–" if best is None else f"the highest is {best[1]} with {100 * best[0]:.1f} %"
    return [
        Check(
            None if at_base is None else limits.base_low <= at_base.mean <= limits.base_high,
            f"The base succeeds on {100 * limits.base_low:g}–{100 * limits.base_high:g} % of {split} tasks: {percent(at_base, ' %')}",
        ),
        _is_above(comparison, rl, [sft], "RL on everything is at least as good as SFT on everything", at_least=True),
        _is_above(comparison, both, [sft, rl], "SFT then RL on everything is above both"),
        Check(None if best is None else best[0] <= limits.ceiling, f"No arm is above {100 * limits.ceiling:g} %: {highest}"),
    ]


def _is_above(
    comparison: Comparison, arm: str | None, others: Sequence[str | None], claim: str, *, at_least: bool = False
) -> Check:
    """Whether an arm's mean is above those of others, or at least as high."""
    found = [comparison.difference(arm, other) if arm and other else None for other in others]
    known = [each for other, each in zip(others, found, strict=True) if each and _seeds(comparison, arm, other) > 1]
    met = all(each.mean >= 0 if at_least else each.mean > 0 for each in known) if len(known) == len(others) else None
    figures = [
        f"{points(each, ' points')} to {comparison.title(other)}" for other, each in zip(others, found, strict=True) if other
    ]
    return Check(met, f"{claim}: {', '.join(figures) if arm else 'no arm is named so'}")


def _seeds(comparison: Comparison, arm: str | None, other: str | None) -> int:
    """Training seeds that both arms have."""
    return len(comparison.pairs(arm, other, comparison.splits[0])[0]) if arm and other else 0


def bars(comparison: Comparison) -> list[Check]:
    """What RL must do before its arms say anything: gain so many points, clearly, and not fall again before it ends."""
    results = comparison.results
    limits, rl, both = results.bars, results.full_rl_arm, results.sft_then_rl_arm
    return [
        _gains(comparison, rl, results.base_arm, limits.rl_gain, "RL on everything gains {} points over the base"),
        _gains(comparison, both, results.sft_arm, limits.sft_then_rl_gain, "RL after SFT, on everything, gains {} points over SFT"),
        _does_not_collapse(comparison, [arm for arm in (rl, both) if arm]),
    ]


def _gains(comparison: Comparison, arm: str | None, other: str, least: float, claim: str) -> Check:
    """Whether an arm is `least` above another by its mean, with an interval that is clear of zero."""
    found = comparison.difference(arm, other) if arm else None
    seeds = _seeds(comparison, arm, other)
    met = found.mean >= least - 1e-9 and found.sign > 0 if found and seeds > 1 else None
    figures = f"{points(found, ' points')} with {seeds} {'seed' if seeds == 1 else 'seeds'}" if arm else "no arm is named so"
    return Check(met, f"{claim.format(f'{100 * least:g}')}, its interval above zero: {figures}")


def _does_not_collapse(comparison: Comparison, arms: Sequence[str]) -> Check:
    """Whether the mean curves of arms end close to their best point; the weights that were kept do not count."""
    results, said, met = comparison.results, [], []
    most = results.bars.collapse
    for arm in arms:
        curve = [success for stage, _, success in costs.mean_curve(comparison.runs(arm)) if stage == "rl"]
        if len(curve) > 1:
            met.append(curve[-1] >= max(curve) - most - 1e-9)
            said.append(f"{comparison.title(arm)} has {100 * max(curve):.1f} % at best and ends at {100 * curve[-1]:.1f} %")
    split = results.curve_split or comparison.splits[0]
    text = f"RL ends at most {100 * most:g} points below its best evaluation while training, on {split} tasks: {'; '.join(said) or '–'}"
    return Check(all(met) if met and len(met) == len(arms) else None, text)


def regime_text(comparison: Comparison) -> str:
    """The regime's conditions as a list, and the difference that the experiment can detect."""
    alone = f"- Detectable difference (80 % power, two-sided 5 %) of one comparison by itself: {detectable_text(comparison)}"
    sizes = families(comparison.results.claims)
    among = [
        f"as {_one_of(n, name, 'the ')}{', corrected' * (n > 1)}: {detectable_text(comparison, n)}" for name, n in sizes.items()
    ]
    last = "; ".join([alone, *among]) + "."
    return "\n".join([*map(str, regime(comparison)), last]) + "\n"


def _one_of(n: int, family: str, the: str = "") -> str:
    """`one of the 5 main claims`, of a family of one `the one main claim`."""
    name = f"{family} " if family else ""
    return f"one of {the}{n} {name}claims" if n > 1 else f"the one {name}claim"


def bars_text(comparison: Comparison) -> str:
    """The bars as a list."""
    return "\n".join(map(str, bars(comparison))) + "\n"


def detectable_text(comparison: Comparison, comparisons: int | None = None) -> str:
    """`5.9 points`, by itself or as one of so many claims."""
    detectable = comparison.detectable(comparisons)
    return "–" if detectable is None else f"{100 * detectable:.1f} points"


def power_lines(power: Power) -> str:
    """What is assumed beforehand, in a sentence."""
    return (
        f"Assumed: success around {100 * power.success:g} %, a standard deviation of {100 * power.seed_sd:g} points over an arm's training "
        f"seeds, and of {100 * power.task_sd:g} points over tasks of the difference of two arms. Detectable: found in 80 % of experiments, "
        "two-sided 5 %; none: no difference of success is as large."
    )


def power_tables(config: ExperimentConfig, power: Power, seeds: Sequence[int] = (2, 3, 4, 5, 8, 10)) -> tuple[Table, Table]:
    """Before an experiment is run: the difference that each claim could detect, and that any number of training seeds would, in points."""
    tasks, sizes = next(iter(config.evaluation.splits.values())), families(config.claims)
    of_claims = []
    for claim in config.claims:
        S = seeds_of_claim(config, claim)
        found = detectable(power, S, tasks, sizes[claim.family])
        cells = [_points(value) for value in (found.alone, found.in_family)] if found else ["–", "–"]
        of_claims.append([claim.text, claim.family or "–", str(S), *cells])
    by_seeds = []
    for S in seeds:
        alone, among = detectable(power, S, tasks, 1), [detectable(power, S, tasks, n) for n in dict.fromkeys(sizes.values())]
        cells = [_points(each.in_family) if each else "–" for each in among]
        by_seeds.append([str(S), _points(alone.alone) if alone else "–", *cells])
    headings = ["seeds", "alone", *(_one_of(n, "") for n in dict.fromkeys(sizes.values()))]
    return Table(["claim", "family", "seeds", "alone", "in its family"], of_claims, 2), Table(headings, by_seeds)


def _points(fraction: float) -> str:
    return f"{100 * fraction:.1f}" if fraction < 1 else "none"


def power_found(comparison: Comparison) -> str:
    """What was assumed beforehand, what it let one expect, and what was found, in a paragraph."""
    results = comparison.results
    power = results.power or Power()
    S, T = len(results.seeds), len(results.tasks[comparison.splits[0]])
    said = []
    for name, n in families(results.claims).items():
        before, after = detectable(power, S, T, n), comparison.detectable(n)
        expected, found = _points(before.in_family) if before else "–", "–" if after is None else _points(after)
        said.append(f"as {_one_of(n, name)} {expected} points were expected, {found} found")
    return f"Beforehand, for {S} seeds and {T} tasks: {'; '.join(said)}. {power_lines(power)}"
