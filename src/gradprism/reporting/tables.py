"""Tables of results: success, differences, claims, sweeps, audits and routes."""

from collections.abc import Iterable, Sequence

import numpy as np

from gradprism.experiments.comparison import MAIN_GROUP, Comparison, Tested, corrected, families
from gradprism.experiments.results import Agreement, Run, Sweep
from gradprism.experiments.statistics import interval
from gradprism.reporting.document import Block, Table
from gradprism.reporting.numbers import nats, nats_more, optional, p_value, percent, points, share, times
from gradprism.runtime.errors import DataError

# ALFWorld's task types under the names of the literature, in its order; any other type goes by its own name.
SHORT_NAMES = {
    "pick_and_place_simple": "Pick",
    "look_at_obj_in_light": "Look",
    "pick_clean_then_place_in_recep": "Clean",
    "pick_heat_then_place_in_recep": "Heat",
    "pick_cool_then_place_in_recep": "Cool",
    "pick_two_obj_and_place": "Pick2",
}
ENDS = "ended by steps / context / failure"  # episodes, the mean over runs
_P = ("p, these models", "p, any trainings")


def short_name(task_type: str) -> str:
    """Column heading of a task type."""
    return SHORT_NAMES.get(task_type, task_type)


def in_order(task_types: Iterable[str]) -> list[str]:
    """Distinct task types: ALFWorld's in the order of the literature, then others by name."""
    found = set(task_types)
    known = [name for name in SHORT_NAMES if name in found]
    return [*known, *sorted(found - set(known))]


def trained_on(comparison: Comparison, runs: Sequence[Run]) -> str:
    """`1540 / 1540`: trajectories to SFT and tasks to RL; a range where seeds differ, how many of RL's were drawn among equals, and how
    many went to both or to neither. Without RL what a route did not send to SFT went nowhere, so that its 0 says all.
    """
    sides = [_range([run.n_sft for run in runs]), _range([comparison.played(run) for run in runs])]
    playing = [run for run in runs if comparison.plays(run)]
    drawn, left, both = ([getattr(run, name) for run in playing] for name in ("n_rl_by_chance", "n_none", "n_both"))
    by_chance = f" ({_range(drawn)} by chance)" if any(drawn) else ""
    neither = (f", both {_range(both)}" if any(both) else "") + (f", neither {_range(left)}" if any(left) else "")
    return "–" if sides == ["–", "–"] else " / ".join(sides) + by_chance + neither


def _range(numbers: Sequence[int | None]) -> str:
    known = [number for number in numbers if number is not None]
    low, high = min(known, default=None), max(known, default=None)
    return "–" if low is None else str(low) if low == high else f"{low}–{high}"


def success_table(comparison: Comparison, arms: Sequence[str], split: str) -> Table:
    """Success of arms on a split with its interval, by task type, and the score where it says more than the success; in percent."""
    of_types = np.array([task.task_type for task in comparison.results.tasks[split]], dtype=object)
    types = in_order(set(of_types) - {None})
    types = types if len(types) > 1 else []
    scores = comparison.scores(arms, split)
    headings = ["arm", "SFT / RL", *([] if comparison.is_run else ["seeds"])]
    by_type = [f"{short_name(t)} ({int((of_types == t).sum())})" for t in types]
    headings += [*by_type, f"{'All' if types else 'success'} ({len(of_types)})", *(["score"] if scores else [])]
    ends = {arm: _ends(comparison.runs(arm, split), split) for arm in arms}
    headings += [ENDS] if any(ends.values()) else []
    rows = []
    for arm in arms:
        values, runs = comparison.values(arm, split), comparison.runs(arm, split)
        means = [f"{100 * values[:, of_types == t].mean():.1f}" if values.size else "–" for t in types]
        cells = [
            trained_on(comparison, runs),
            *([] if comparison.is_run else [str(len(runs))]),
            *means,
            percent(comparison.mean(arm, split)),
        ]
        cells += [*([percent(scores[arm])] if scores else []), *([ends[arm] or "–"] if ENDS in headings else [])]
        rows.append([comparison.title(arm), *cells])
    return Table(headings, rows, spare=by_type)


def _ends(runs: Sequence[Run], split: str) -> str:
    """Episodes that were cut short, per run; empty where no run tells of them."""
    known = [run.ends[split] for run in runs if split in run.ends]
    counts = [(ends.out_of_steps, ends.cut_by_context, ends.failures) for ends in known]
    return " / ".join(f"{sum(each) / len(known):.3g}" for each in zip(*counts, strict=True))


def parts_table(comparison: Comparison, arms: Sequence[str], split: str) -> Table | None:
    """Means of the score's named parts, in percent, over an arm's runs; None where no run tells of any."""
    parts = {arm: [run.parts[split] for run in comparison.runs(arm, split) if split in run.parts] for arm in arms}
    names = sorted({name for of_arm in parts.values() for of_run in of_arm for name in of_run})
    rows = []
    for arm in arms:
        known = [[of_run[name] for of_run in parts[arm] if name in of_run] for name in names]
        rows.append([comparison.title(arm), *(f"{100 * np.mean(values):.1f}" if values else "–" for values in known)])
    return Table(["arm", *names], rows) if names else None


def difference_table(comparison: Comparison, arms: Sequence[str], split: str) -> Table | None:
    """Differences of arms to each reference arm in points, with interval and both p, Holm's over the column's comparisons."""
    references = [arm for arm in comparison.results.reference_arms if comparison.runs(arm, split)]
    cells: dict[str, list[str]] = {arm: [] for arm in arms}
    for reference in references:
        others = [arm for arm in arms if arm != reference]
        of_models = corrected({arm: comparison.p(arm, reference, split) for arm in others})
        of_trainings = corrected({arm: comparison.training_p(arm, reference, split) for arm in others})
        for arm, row in cells.items():
            found = None if arm == reference else comparison.difference(arm, reference, split)
            row += [points(found), p_value(of_models.get(arm)), p_value(of_trainings.get(arm))]
    headings = ["arm", *(text for r in references for text in (f"difference to {comparison.title(r)} (points)", *_P))]
    return Table(headings, [[comparison.title(arm), *row] for arm, row in cells.items()]) if references else None


def main_table(comparison: Comparison) -> Table:
    """Table 1 in short: arm, success and score on the main split, difference to the first reference arm, speed-ups over full RL."""
    split, references = comparison.splits[0], comparison.results.reference_arms[:1]
    arms = comparison.of_group(MAIN_GROUP)
    scores = comparison.scores(arms, split)
    headings = ["arm", "seeds", f"{split} success, %", *(["score"] if scores else [])]
    headings += [f"difference to {comparison.title(r)} (points)" for r in references]
    headings += ["speed-up, wall clock", "speed-up, FLOPs"]
    rows = []
    for arm in arms:
        cells = [str(len(comparison.runs(arm))), percent(comparison.mean(arm)), *([percent(scores[arm])] if scores else [])]
        cells += [points(None if arm == r else comparison.difference(arm, r)) for r in references]
        rows.append([comparison.title(arm), *cells, times(comparison.speedup(arm)), times(comparison.speedup(arm, "flops"))])
    return Table(headings, rows)


def claims_table(comparison: Comparison) -> Table:
    """Each claim's difference on the main split, its p values (Holm's over its family), and whether it is borne out."""
    claims = comparison.results.claims
    sizes, rows = families(claims), []
    for claim, found in zip(claims, comparison.tested(claims), strict=True):
        cells = [verdict(found), points(found.difference), p_value(found.p_models), p_value(found.p_trainings), str(found.seeds)]
        rows.append([claim.text, *cells, *([claim.family or "–"] if len(sizes) > 1 else [])])
    return Table(["claim", "verdict", "difference (points)", *_P, "seeds", *(["family"] if len(sizes) > 1 else [])], rows)


def verdict(found: Tested) -> str:
    """Verdict on a claim by the sign of "better less worse" and its corrected p for any trainings.

    Where that decides nothing, why, or the difference that would have been found in four of five such experiments.
    """
    if found.difference is None:
        return "no seed in common yet" if found.measured else "not measured yet"
    if found.p_trainings is None:
        return f"cannot be told (one {'seed' if found.seeds < 2 else 'task'})"
    if found.p_trainings < 0.05:
        return "**holds**" if found.difference.mean > 0 else "**does not hold**"
    return "cannot be told" if found.detectable is None else f"cannot be told ({_detectable(found.detectable)} detectable)"


def claim_detectable(comparison: Comparison, better: str, worse: str) -> str:
    """What four of five such experiments would find of the claim that one arm beats another, corrected; a dash where nothing says.

    Raises `DataError` where there is no such claim.
    """
    claims = comparison.results.claims
    for claim, found in zip(claims, comparison.tested(claims), strict=True):
        if (claim.better, claim.worse) == (better, worse):
            return "–" if found.detectable is None else _detectable(found.detectable)
    raise DataError(f"no claim of results.json says that {better} beats {worse}")


def _detectable(share: float) -> str:
    return f"{100 * share:.1f} points" if share < 1 else "nothing"


def sampled_table(comparison: Comparison, split: str | None = None) -> Table | None:
    """Success by greedy answers against that by sampled ones, and pass@k, of the arms that have both; None where none has.

    All are of the same tasks, the first of the split (default the main one), and of the seeds that were sampled, whose number is told;
    differences are paired by task and seed. The last columns are differences of sampled success to the first reference arm.
    """
    split = split or comparison.splits[0]
    [reference, *_] = [arm for arm in comparison.results.reference_arms if comparison.runs(arm, split)] or [None]
    samplings = [s for s in comparison.results.evaluations if split in s.splits]
    rows = []
    for arm in comparison.arms:
        cells, seeds = [], []
        for sampling in samplings:
            sampled, greedy = comparison.sampled(arm, sampling.name, split)
            seeds.append(str(len(sampled)))
            mean = comparison.sampled_mean(arm, sampling.name, split)
            less = interval(sampled.mean(2) - greedy) if sampled.size else None
            cells += [f"{100 * greedy.mean():.1f}" if sampled.size else "–", percent(mean), points(less)]
            if sampling.attempts > 1:
                cells += [percent(comparison.sampled_mean(arm, sampling.name, split, any_attempt=True))]
            if reference:
                other = comparison.sampled_difference(arm, reference, sampling.name, split) if arm != reference else None
                cells += [points(other)]
        if any(cell != "–" for cell in cells):
            rows.append([comparison.title(arm), "/".join(dict.fromkeys(seeds)), *cells])
    headings = ["arm", "seeds"]
    for sampling in samplings:
        at = f"at {sampling.temperature:g}"
        headings += [f"greedy ({sampling.splits[split]})", at, f"{at} less greedy (points)"]
        headings += [f"pass@{sampling.attempts} {at}"] if sampling.attempts > 1 else []
        headings += [f"{at}, difference to {comparison.title(reference)} (points)"] if reference else []
    return Table(headings, rows) if rows else None


def held_out_table(comparison: Comparison) -> Table | None:
    """Held-out loss of the arms that have one, and its difference to the first reference arm that has, paired by seed; None without any."""
    losses = {arm: loss for arm in comparison.arms if (loss := comparison.held_out_loss(arm))}
    [reference] = [arm for arm in comparison.results.reference_arms if arm in losses][:1] or [None]
    rows = []
    for arm, loss in losses.items():
        cells = [] if comparison.is_run else [str(len(comparison.held_out_runs(arm)))]
        cells.append(nats(loss))
        if reference:
            cells.append(nats_more(None if arm == reference else comparison.held_out_difference(arm, reference)))
        rows.append([comparison.title(arm), *cells])
    headings = ["arm", *([] if comparison.is_run else ["seeds"]), "loss (nats per token)"]
    headings += [f"difference to {comparison.title(reference)} (nats)"] if reference else []
    return Table(headings, rows) if rows else None


def sweep_table(comparison: Comparison, sweep: Sweep) -> Table:
    """Success on the main split along a sweep."""
    rows = []
    for value, arm in sweep.arms.items():
        runs = comparison.runs(arm)
        cells = [
            trained_on(comparison, runs),
            str(len(runs)),
            percent(comparison.mean(arm)),
            times(comparison.speedup(arm, "flops")),
        ]
        rows.append([value, comparison.title(arm), *cells])
    return Table(["value", "arm", "SFT / RL", "seeds", f"{comparison.splits[0]} success, %", "speed-up, FLOPs"], rows, 2)


def routes_table(comparison: Comparison) -> Table | None:
    """Routes by task type; None where no route tells them."""
    rows = []
    routes = comparison.results.routes.values()
    leaves_out, overlaps = any(routing.none for routing in routes), any(routing.both for routing in routes)
    for routing in routes:
        types = routing.task_types if len(routing.task_types) > 1 else {}
        for name in in_order(types):
            sft, rl, neither, both = [*types[name], 0, 0][:4]
            cells = [str(sft), str(rl), *([str(both)] if overlaps else []), *([str(neither)] if leaves_out else [])]
            cells.append(share((rl + both) / sum(types[name])))
            rows.append([routing.policy, routing.metric, short_name(name), *cells])
    headings = ["policy", "metric", "task type", "SFT", "RL", *(["both"] if overlaps else [])]
    headings += [*(["neither"] if leaves_out else []), "share to RL"]
    return Table(headings, rows, 3) if rows else None


def audit_blocks(comparison: Comparison) -> list[Block]:
    """Correlations of the metrics' scores, firmness of their thresholds, agreement of their routes; nothing for what is missing."""
    audits = comparison.results.audits
    names = list(dict.fromkeys(name for audit in audits.values() for name in audit.spearman))
    headings = ["metric", *(f"ρ {name}" for name in names), "η² task type", "SE of the threshold", "share within one SE"]
    rows = []
    for metric, audit in audits.items():
        scalars = [(audit.eta_squared, 2), (audit.threshold_standard_error, 4), (audit.share_within_one_standard_error, 3)]
        rhos = [optional(audit.spearman.get(name), 2) for name in names]
        rows.append([metric, *rhos, *(optional(value, digits) for value, digits in scalars)])
    title = "What the scores correlate with (Spearman's ρ, share of variance η²), and how firm the threshold is."
    blocks = _titled(title, Table(headings, rows))
    plain = {metric: audit.agreement for metric, audit in audits.items()}
    changed = {metric: audit.stability for metric, audit in audits.items()}
    blocks += _titled("Agreement with routing by plain measures.", _agreements(plain, ("same_side", "jaccard")))
    columns = ("same_side", "jaccard", "spearman")
    blocks += _titled("Stability of the routes when something changes.", _agreements(changed, columns))
    warnings = [f"- **{metric}**: {text}" for metric, audit in audits.items() for text in audit.warnings]
    return [*blocks, *(["\n".join(warnings)] if warnings else [])]


def _agreements(of_metrics: dict[str, dict[str, Agreement]], columns: Sequence[str]) -> Table:
    others = dict.fromkeys(other for agreements in of_metrics.values() for other in agreements)
    rows = [
        [metric, other, *(optional(getattr(agreements[other], column), 2) for column in columns)]
        for metric, agreements in of_metrics.items()
        for other in others
        if other in agreements
    ]
    return Table(["metric", "against", *(column.replace("_", " ") for column in columns)], rows, 2)


def _titled(title: str, table: Table) -> list[Block]:
    """Both, where any number is known."""
    known = any(cell != "–" for row in table.rows for cell in row[table.names :])
    return [title, table] if known else []
