"""The tables of an experiment, arms by seeds, rebuilt from its `results.json` alone: success, differences, cost, claims, audits."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradprism.experiments import costs
from gradprism.experiments.statistics import Interval, holm
from gradprism.reporting.experiment_figures import CAPTIONS, has_figure
from gradprism.reporting.experiment_results import MAIN_GROUP, Experiment
from gradprism.reporting.tables import SHORT_NAMES, count, duration, markdown, printable, share, short_name

GROUP_TITLES = {"ablation": "Ablations", "sweep": "Arms of the sweeps", "refresh": "Routing again while the model changes"}

# --- numbers as text


def _fixed(number: float, digits: int = 1) -> str:
    """With a true minus sign, and none before a zero."""
    text = f"{number:.{digits}f}"
    return text.replace("-", "" if float(text) == 0 else "−")


def percent(interval: Interval | None, unit: str = "") -> str:
    """`31.0 [27.1, 35.2]`, of fractions in percent; with unit " %" behind the mean."""
    if interval is None:
        return "–"
    return f"{_fixed(100 * interval.mean)}{unit} [{_fixed(100 * interval.low)}, {_fixed(100 * interval.high)}]"


def points(interval: Interval | None, unit: str = "") -> str:
    """`+2.1 [−1.0, 5.3]`: a difference of fractions in percentage points, with unit " points" behind all."""
    if interval is None:
        return "–"
    plus = "+" if float(f"{100 * interval.mean:.1f}") > 0 else ""
    return f"{plus}{percent(interval)}{unit}"


def p_value(p: float | None) -> str:
    """`0.031`, `<0.001`."""
    if p is None:
        return "–"
    return "<0.001" if p < 0.0005 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"


def times(speedup: costs.Speedup | None) -> str:
    """`3.22× (3.10–3.40)`: ratio of means, and the range over runs where they differ."""
    if speedup is None:
        return "–"
    low, high = f"{speedup.low:.2f}", f"{speedup.high:.2f}"
    return f"{speedup.ratio:.2f}×" + (f" ({low}–{high})" if low != high else "")


def _tera(flops: float) -> str:
    return "–" if not flops else f"{flops / 1e12:,.0f}" if flops >= 1e14 else f"{flops / 1e12:.3g}"


def _optional(number: float | None, digits: int) -> str:
    return _fixed(number, digits) if isinstance(number, int | float) else "–"


def _trained_on(runs: Sequence[dict[str, Any]]) -> str:
    """`1540 / 1540`: trajectories to SFT and tasks to RL; a range where seeds differ."""
    sides = []
    for key in ("n_sft", "n_rl"):
        known = [run[key] for run in runs if run[key] is not None]
        low, high = min(known, default=None), max(known, default=None)
        sides.append("–" if low is None else str(low) if low == high else f"{low}–{high}")
    return "–" if sides == ["–", "–"] else " / ".join(sides)


# --- tables


def _task_types(experiment: Experiment, split: str) -> list[str]:
    found = {task["task_type"] for task in experiment.results["tasks"][split]} - {None}
    known = [name for name in SHORT_NAMES if name in found]
    return [*known, *sorted(found - set(known))] if len(found) > 1 else []


def success_table(experiment: Experiment, arms: Sequence[str], split: str) -> str:
    """Success of arms on a split with its interval, by task type, and the score where it says more than the success; in percent."""
    of_types = np.array([task["task_type"] for task in experiment.results["tasks"][split]], dtype=object)
    types = _task_types(experiment, split)
    means = {arm: experiment.mean(arm, split) for arm in arms}
    scores = {arm: experiment.mean(arm, split, "score") for arm in arms}
    graded = any(s and m and abs(s.mean - m.mean) > 1e-9 for s, m in zip(scores.values(), means.values(), strict=True))
    headings = ["arm", "SFT / RL", "seeds", *(f"{short_name(t)} ({int((of_types == t).sum())})" for t in types)]
    headings += [f"{'All' if types else 'success'} ({len(of_types)})", *(["score"] if graded else [])]
    rows = []
    for arm in arms:
        values, runs = experiment.values(arm, split), experiment.runs(arm, split)
        by_type = [f"{100 * values[:, of_types == t].mean():.1f}" if values.size else "–" for t in types]
        score = [percent(scores[arm])] if graded else []
        rows.append([experiment.title(arm), _trained_on(runs), str(len(runs)), *by_type, percent(means[arm]), *score])
    return markdown(headings, rows, 1)


def difference_table(experiment: Experiment, arms: Sequence[str], split: str) -> str:
    """Success of arms less that of each reference arm in points, with interval and p, Holm's over the column's comparisons."""
    references = [arm for arm in experiment.results["reference_arms"] if experiment.runs(arm, split)]
    cells: dict[str, list[str]] = {arm: [] for arm in arms}
    for reference in references:
        p_of = {arm: p for arm in arms if arm != reference and (p := experiment.p(arm, reference, split)) is not None}
        corrected = dict(zip(p_of, holm(list(p_of.values())), strict=True))
        for arm, row in cells.items():
            found = None if arm == reference else experiment.difference(arm, reference, split)
            row += [points(found), p_value(corrected.get(arm))]
    headings = ["arm", *(text for r in references for text in (f"less {experiment.title(r)}", "p (Holm)"))]
    return markdown(headings, [[experiment.title(arm), *row] for arm, row in cells.items()], 1) if references else ""


def main_table(experiment: Experiment) -> str:
    """Table 1 in short: arm, success on the main split, difference to the first reference arm, speed-ups over full RL."""
    split, references = experiment.splits[0], experiment.results["reference_arms"]
    headings = ["arm", "seeds", f"{split} success, %"]
    headings += [f"less {experiment.title(references[0])}, points"] if references else []
    headings += ["speed-up, wall clock", "speed-up, FLOPs"]
    rows = []
    for arm in experiment.of_group(MAIN_GROUP):
        found = [points(None if arm == r else experiment.difference(arm, r)) for r in references[:1]]
        speedups = [times(experiment.speedup(arm, what)) for what in ("wall_seconds", "flops")]
        runs = str(len(experiment.runs(arm)))
        rows.append([experiment.title(arm), runs, percent(experiment.mean(arm)), *found, *speedups])
    return markdown(headings, rows, 1)


def regime(experiment: Experiment) -> list[tuple[bool | None, str]]:
    """Whether the experiment could show anything: for each condition, met or not (None for not known yet), and a sentence."""
    results, split = experiment.results, experiment.splits[0]
    limits, base, sft = results["regime"], results["base_arm"] or "", results["sft_arm"] or ""
    low, high, ceiling = (f"{100 * limits[key]:g}" for key in ("base_low", "base_high", "ceiling"))
    at_base, gain = experiment.mean(base), experiment.difference(sft, base)
    best = max(((m.mean, experiment.title(arm)) for arm in experiment.arms if (m := experiment.mean(arm))), default=None)
    return [
        (
            None if at_base is None else limits["base_low"] <= at_base.mean <= limits["base_high"],
            f"The base succeeds on {low}–{high} % of {split} tasks: {percent(at_base, ' %')}",
        ),
        (None if gain is None else gain.sign > 0, f"SFT on all is clearly above the base: {points(gain, ' points')}"),
        (
            None if best is None else best[0] <= limits["ceiling"],
            f"No arm is above {ceiling} %: " + ("–" if best is None else f"the highest is {best[1]} with {100 * best[0]:.1f} %"),
        ),
    ]


def regime_text(experiment: Experiment) -> str:
    """The regime's conditions as a list, and the difference that the experiment can detect."""
    said = {True: "pass", False: "**fail**", None: "not known yet"}
    lines = [f"- {sentence}: {said[met]}." for met, sentence in regime(experiment)]
    return "\n".join([*lines, f"- Detectable difference (80 % power, two-sided 5 %): {detectable_text(experiment)}."]) + "\n"


def detectable_text(experiment: Experiment) -> str:
    """`5.9 points`."""
    detectable = experiment.detectable()
    return "–" if detectable is None else f"{100 * detectable:.1f} points"


def claims_table(experiment: Experiment) -> str:
    """Each claim's difference on the main split, its p (Holm's over the claims), and whether the interval bears it out."""
    claims = experiment.results["claims"]
    p_of = {i: p for i, claim in enumerate(claims) if (p := experiment.p(claim["better"], claim["worse"])) is not None}
    corrected = dict(zip(p_of, holm(list(p_of.values())), strict=True))
    rows = []
    for i, claim in enumerate(claims):
        found = experiment.difference(claim["better"], claim["worse"])
        seeds = len(experiment.pairs(claim["better"], claim["worse"], experiment.splits[0])[0])
        rows.append([claim["text"], verdict(found, corrected.get(i), seeds), points(found), p_value(corrected.get(i)), str(seeds)])
    return markdown(["claim", "verdict", "difference, points", "p (Holm)", "seeds"], rows, 1)


def verdict(found: Interval | None, p: float | None, seeds: int) -> str:
    """What the interval of "better less worse" and its corrected p say of a claim: both must be clear, with two seeds or more."""
    if found is None or p is None:
        return "not measured yet"
    if seeds < 2:
        return "one seed: not decided"
    sign = found.sign if p < 0.05 else 0
    return {1: "**holds**", -1: "**does not hold**", 0: "cannot be told apart"}[sign]


def sweep_table(experiment: Experiment, sweep: dict[str, Any]) -> str:
    """Success on the main split along a sweep."""
    rows = []
    for value, arm in sweep["arms"].items():
        runs = experiment.runs(arm)
        cells = [_trained_on(runs), str(len(runs)), percent(experiment.mean(arm)), times(experiment.speedup(arm))]
        rows.append([value, experiment.title(arm), *cells])
    headings = ["value", "arm", "SFT / RL", "seeds", f"{experiment.splits[0]} success, %", "speed-up, wall clock"]
    return markdown(headings, rows, 2)


def cost_table(experiment: Experiment) -> str:
    """Table 3: wall time and FLOPs of each arm against full RL, what choosing took of them, and the cost of full RL's success."""
    full_rl = experiment.results["full_rl_arm"] or ""
    whole, target = experiment.costs(full_rl), costs.final_success(experiment.runs(full_rl))
    rows = []
    for arm in _costed(experiment):
        runs, spent = experiment.runs(arm), costs.mean_cost(experiment.costs(arm))
        row = [experiment.title(arm), str(len(runs)), duration(spent["wall_seconds"]), times(experiment.speedup(arm))]
        row += [_tera(spent["flops"]), times(experiment.speedup(arm, "flops"))]
        for what in ("wall_seconds", "flops"):
            choosing = costs.mean_cost([costs.run_cost(run, experiment.stages, choosing=True) for run in runs])[what]
            row.append(share(choosing / spent[what]) if spent[what] else "–")
        for what in ("wall_seconds", "flops"):
            row.append(_reach(experiment, runs, target, whole, what))
        rows.append(row)
    headings = [
        "arm",
        "seeds",
        "wall time",
        "speed-up, wall",
        "TFLOP",
        "speed-up, FLOPs",
        "choosing, of wall",
        "choosing, of FLOPs",
    ]
    headings += ["to full RL's success, wall", "to full RL's success, FLOPs"]
    return markdown(headings, rows, 1)


def _costed(experiment: Experiment) -> list[str]:
    return [arm for arm in experiment.arms if experiment.costs(arm)]


def _reach(experiment: Experiment, runs: Sequence[Any], target: float | None, whole: Sequence[costs.Cost], what: str) -> str:
    """`0.41× (2 of 3)`: mean cost at which the runs that got there did, of all that full RL cost, and how many did."""
    curves = [run for run in runs if run["curve"]]
    if target is None or not curves or not whole or not costs.mean_cost(whole)[what]:
        return "–"
    reached = [c for run in curves if (c := costs.cost_to_reach(run, experiment.stages, target, what)) is not None]
    ratio = f"{sum(reached) / len(reached) / costs.mean_cost(whole)[what]:.2f}×" if reached else "never"
    return f"{ratio} ({len(reached)} of {len(curves)})"


def work_table(experiment: Experiment) -> str:
    """What each arm's cost consists of: means over its runs, and the largest peak."""
    rows = [[experiment.title(arm), *_work(costs.mean_cost(experiment.costs(arm)))] for arm in _costed(experiment)]
    return markdown(["arm", *_WORK], rows, 1)


_WORK = ("CPU time", "tokens forward", "tokens backward", "tokens generated", "env. steps", "peak MiB")


def _work(cost: costs.Cost) -> list[str]:
    counts = [count(cost[name]) for name in ("tokens_forward", "tokens_backward", "tokens_generated", "environment_steps")]
    return [duration(cost["cpu_seconds"]), *counts, f"{cost['peak_memory_mib']:.0f}" if cost["peak_memory_mib"] else "–"]


def ledger_table(experiment: Experiment) -> str:
    """All that was run, each stage once, by kind; the last row is the total."""
    kinds = list(dict.fromkeys(stage["kind"] for stage in experiment.stages.values()))
    rows = []
    for kind in [*kinds, None]:
        chosen = [stage for stage in experiment.stages.values() if kind in (None, stage["kind"])]
        spent = costs.total([costs.stage_cost(stage) for stage in chosen])
        evaluating = sum(stage["evaluation_seconds"] for stage in chosen)
        row = [kind or "total", str(len(chosen)), duration(spent["wall_seconds"]), duration(evaluating) if evaluating else "-"]
        rows.append([*row, _tera(spent["flops"]), *_work(spent)])
    return markdown(["stages", "number", "wall time", "evaluating meanwhile", "TFLOP", *_WORK], rows, 1)


def saving_lines(experiment: Experiment) -> list[str]:
    """Whether choosing the data pays, for each arm that chooses: the failure signature "the probe costs more than it saves"."""
    whole, lines = experiment.costs(experiment.results["full_rl_arm"] or ""), []
    for arm in _costed(experiment):
        found = costs.saving(experiment.runs(arm), whole, experiment.stages, "wall_seconds")
        if found is None:
            continue
        title, choosing = printable(experiment.title(arm)), duration(found.choosing)
        if found.saved <= 0:
            lines.append(f"- {title}: **does not pay**: choosing costs {choosing}, and training is no cheaper than full RL.")
        else:
            pays = "pays" if found.pays else "**does not pay: choosing costs more than it saves**"
            lines.append(f"- {title}: {pays}: choosing costs {choosing}, training saves {duration(found.saved)} against full RL.")
    return lines


def audits_text(experiment: Experiment) -> str:
    """What the metrics' scores go along with, how firm thresholds are, and whether routes agree; skips what is missing."""
    audits = {metric: audit for metric, audit in experiment.results["audits"].items() if isinstance(audit, dict)}
    parts = []

    def of(audit: Any, *keys: str) -> Any:
        for key in keys:
            audit = audit.get(key) if isinstance(audit, dict) else None
        return audit

    def keys_of(key: str) -> list[str]:
        return list(dict.fromkeys(name for audit in audits.values() if isinstance(audit.get(key), dict) for name in audit[key]))

    def table(title: str, headings: Sequence[str], rows: list[list[str]], names: int) -> None:
        if any(cell != "–" for row in rows for cell in row[names:]):
            parts.append(f"{title}\n\n{markdown(headings, rows, names)}")

    scalars = {"eta_squared": 2, "median_standard_error": 4, "share_within_one_standard_error": 3}
    headings = ["metric", *(f"ρ {name}" for name in keys_of("spearman")), "η² task type", "SE of the median", "share within one SE"]
    rows = []
    for metric, audit in audits.items():
        rhos = [_optional(of(audit, "spearman", name), 2) for name in keys_of("spearman")]
        rows.append([metric, *rhos, *(_optional(audit.get(key), digits) for key, digits in scalars.items())])
    table("What the scores go along with (Spearman's ρ, share of variance η²), and how firm the threshold is.", headings, rows, 1)
    for key, title, columns in (
        ("agreement", "Agreement with routing by plain measures.", ("same_side", "jaccard")),
        ("stability", "Stability of the routes when something changes.", ("same_side", "jaccard", "spearman")),
    ):
        rows = [
            [metric, other, *(_optional(of(audit, key, other, column), 2) for column in columns)]
            for metric, audit in audits.items()
            for other in keys_of(key)
            if of(audit, key, other)
        ]
        table(title, ["metric", "against", *(column.replace("_", " ") for column in columns)], rows, 2)
    warnings = [(metric, text) for metric, audit in audits.items() for text in audit.get("warnings") or []]
    if warnings:
        parts.append("".join(f"- **{printable(metric)}**: {printable(str(text))}\n" for metric, text in warnings))
    return "\n".join(parts)


def tables_text(experiment: Experiment) -> str:
    """The whole of `tables.md`."""
    results = experiment.results
    main = experiment.of_group(MAIN_GROUP)
    groups = list(dict.fromkeys(arm["group"] for arm in results["arms"] if arm["group"] != MAIN_GROUP))
    parts = [f"# {printable(results['name'])}: tables", _facts(experiment), HOW_TO_READ]
    parts += ["## Does the experiment lie where something can be seen?", regime_text(experiment)]
    parts += ["## Table 1: success in %", *_success(experiment, main), *_picture(experiment, "success")]
    if results["claims"]:
        parts += ["## Claims", claims_table(experiment), CLAIMS_NOTE]
    for group in groups:
        parts += [f"## {GROUP_TITLES.get(group, printable(group).capitalize())}", *_success(experiment, experiment.of_group(group))]
    for sweep in results["sweeps"]:
        parts += [f"## Sweep: {printable(sweep['title'])}", sweep_table(experiment, sweep)]
    parts += _picture(experiment, "sweeps")
    parts += ["## Table 3: cost", cost_table(experiment), COST_NOTE, work_table(experiment), *_picture(experiment, "cost")]
    parts += _picture(experiment, "curves")
    if lines := saving_lines(experiment):
        parts += ["### Does choosing pay?", "\n".join(lines)]
    parts += ["### All that was run", ledger_table(experiment)]
    if audits := audits_text(experiment):
        parts += ["## Audits", audits]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


HOW_TO_READ = (
    "Brackets are 95 % intervals for other training seeds and other tasks (crossed random effects, Student's t). With one seed they are "
    "bootstraps over tasks and know nothing of training. Differences are over the seeds that both arms have. p values are those of "
    "paired sign-flip tests over tasks on the mean over seeds, two-sided, for these trained models, corrected by Holm's method over the "
    "comparisons of one column with the same reference."
)
CLAIMS_NOTE = (
    "A claim holds where the interval lies clear of zero on its side and p, corrected over the claims, is below 0.05; with one seed "
    "nothing is decided."
)
COST_NOTE = (
    "Means over seeds; in parentheses the range over seeds. Evaluations are not in the wall time. Speed-ups are over full RL. "
    "Choosing is all that is not training: probing, routing, sampling. FLOPs are estimates: 2 a parameter and token read, 4 a parameter "
    "and token of a backward pass. The last columns say at which part of full RL's whole cost an arm first got the success that full "
    "RL ended with, on the tasks of the curves, and how many seeds did: a first crossing of a noisy curve, and for SFT the whole of it, "
    "since it is only evaluated at its end."
)


def _facts(experiment: Experiment) -> str:
    results = experiment.results
    model, corpus, machine = results["model"], results["corpus"], results["machine"]
    facts = [f"Environment {results['environment']}"]
    facts += [f"model {model['id']} ({count(model.get('parameters', 0))} parameters)"] if "id" in model else []
    facts += [f"{corpus['trajectories']} trajectories"] if "trajectories" in corpus else []
    facts += [f"seeds {', '.join(map(str, results['seeds']))}"] if results["seeds"] else []
    facts += [f"{machine['cpu']}, {machine.get('cores', '?')} cores"] if "cpu" in machine else []
    facts += [", ".join(f"{name} {version}" for name, version in results["versions"].items())] if results["versions"] else []
    said = f"{printable('; '.join(facts))}. Written by `gradprism experiment tables` from `results.json`; edit neither."
    missing = [
        f"{printable(arm['title'])} ({len(experiment.runs(name))} of {len(arm['seeds'] or results['seeds'])})"
        for name, arm in experiment.arms.items()
        if len(experiment.runs(name)) < (1 if name == results["base_arm"] else len(arm["seeds"] or results["seeds"]))
    ]
    return said + (f"\n\n**Unfinished**, seeds done: {', '.join(missing)}." if missing else "")


def _success(experiment: Experiment, arms: Sequence[str]) -> list[str]:
    parts = []
    for split in experiment.splits:
        parts.append(f"### {printable(split).capitalize()} tasks")
        parts.append(success_table(experiment, arms, split))
        parts.append(difference_table(experiment, arms, split))
    return parts


def _picture(experiment: Experiment, name: str) -> list[str]:
    return [f"![{CAPTIONS[name]}]({name}.svg)"] if has_figure(experiment, name) else []
