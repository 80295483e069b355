"""The tables of an experiment, arms by seeds, rebuilt from its `results.json` alone: success, differences, cost, claims, audits."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradprism.experiments.statistics import Interval, holm
from gradprism.reporting.experiment_cost_tables import cost_parts
from gradprism.reporting.experiment_figures import picture
from gradprism.reporting.experiment_numbers import optional, p_value, percent, points, times
from gradprism.reporting.experiment_results import MAIN_GROUP, Experiment
from gradprism.reporting.tables import SHORT_NAMES, count, markdown, printable, short_name

GROUP_TITLES = {"sweep": "Arms of the sweeps", "refresh": "Routing again while the model changes"}


def _trained_on(runs: Sequence[dict[str, Any]]) -> str:
    """`1540 / 1540`: trajectories to SFT and tasks to RL; a range where seeds differ, and how many of RL's were drawn among equals."""
    sides = [_range([run[key] for run in runs if run[key] is not None]) for key in ("n_sft", "n_rl")]
    drawn = [run["n_rl_by_chance"] for run in runs if run["n_rl_by_chance"] is not None]
    by_chance = f" ({_range(drawn)} by chance)" if any(drawn) else ""
    return "–" if sides == ["–", "–"] else " / ".join(sides) + by_chance


def _range(known: Sequence[int]) -> str:
    low, high = min(known, default=None), max(known, default=None)
    return "–" if low is None else str(low) if low == high else f"{low}–{high}"


def _task_types(experiment: Experiment, split: str) -> list[str]:
    found = {task["task_type"] for task in experiment.results["tasks"][split]} - {None}
    known = [name for name in SHORT_NAMES if name in found]
    return [*known, *sorted(found - set(known))] if len(found) > 1 else []


def success_table(experiment: Experiment, arms: Sequence[str], split: str) -> str:
    """Success of arms on a split with its interval, by task type, and the score where it says more than the success; in percent."""
    of_types = np.array([task["task_type"] for task in experiment.results["tasks"][split]], dtype=object)
    types = _task_types(experiment, split)
    means = {arm: experiment.mean(arm, split) for arm in arms}
    scores = experiment.scores(arms, split)
    headings = ["arm", "SFT / RL", "seeds", *(f"{short_name(t)} ({int((of_types == t).sum())})" for t in types)]
    headings += [f"{'All' if types else 'success'} ({len(of_types)})", *(["score"] if scores else [])]
    rows = []
    for arm in arms:
        values, runs = experiment.values(arm, split), experiment.runs(arm, split)
        by_type = [f"{100 * values[:, of_types == t].mean():.1f}" if values.size else "–" for t in types]
        score = [percent(scores[arm])] if scores else []
        rows.append([experiment.title(arm), _trained_on(runs), str(len(runs)), *by_type, percent(means[arm]), *score])
    return markdown(headings, rows, 1)


def _corrected(p_values: dict[Any, float | None]) -> dict[Any, float]:
    """Those that are known, corrected by Holm's method for their number."""
    known = {key: p for key, p in p_values.items() if p is not None}
    return dict(zip(known, holm(list(known.values())), strict=True))


def difference_table(experiment: Experiment, arms: Sequence[str], split: str) -> str:
    """Success of arms less that of each reference arm in points, with interval and both p, Holm's over the column's comparisons."""
    references = [arm for arm in experiment.results["reference_arms"] if experiment.runs(arm, split)]
    cells: dict[str, list[str]] = {arm: [] for arm in arms}
    for reference in references:
        others = [arm for arm in arms if arm != reference]
        of_models = _corrected({arm: experiment.p(arm, reference, split) for arm in others})
        of_trainings = _corrected({arm: experiment.training_p(arm, reference, split) for arm in others})
        for arm, row in cells.items():
            found = None if arm == reference else experiment.difference(arm, reference, split)
            row += [points(found), p_value(of_models.get(arm)), p_value(of_trainings.get(arm))]
    headings = ["arm", *(text for r in references for text in (f"less {experiment.title(r)}", *_P))]
    return markdown(headings, [[experiment.title(arm), *row] for arm, row in cells.items()], 1) if references else ""


_P = ("p, these models", "p, any trainings")


def main_table(experiment: Experiment) -> str:
    """Table 1 in short: arm, success and score on the main split, difference to the first reference arm, speed-ups over full RL."""
    split, references = experiment.splits[0], experiment.results["reference_arms"]
    arms = experiment.of_group(MAIN_GROUP)
    scores = experiment.scores(arms, split)
    headings = ["arm", "seeds", f"{split} success, %", *(["score"] if scores else [])]
    headings += [f"less {experiment.title(references[0])}, points"] if references else []
    headings += ["speed-up, wall clock", "speed-up, FLOPs"]
    rows = []
    for arm in arms:
        found = [points(None if arm == r else experiment.difference(arm, r)) for r in references[:1]]
        speedups = [times(experiment.speedup(arm, what)) for what in ("wall_seconds", "flops")]
        score = [percent(scores[arm])] if scores else []
        runs = str(len(experiment.runs(arm)))
        rows.append([experiment.title(arm), runs, percent(experiment.mean(arm)), *score, *found, *speedups])
    return markdown(headings, rows, 1)


def regime(experiment: Experiment) -> list[tuple[bool | None, str]]:
    """Whether the experiment could show anything: for each condition, met or not (None for not known), and a sentence."""
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
        (
            None if gain is None or len(experiment.runs(sft)) < 2 else gain.sign > 0,  # one seed says nothing of others
            f"SFT on all is clearly above the base: {points(gain, ' points')}",
        ),
        (
            None if best is None else best[0] <= limits["ceiling"],
            f"No arm is above {ceiling} %: " + ("–" if best is None else f"the highest is {best[1]} with {100 * best[0]:.1f} %"),
        ),
    ]


def regime_text(experiment: Experiment) -> str:
    """The regime's conditions as a list, and the difference that the experiment can detect."""
    said = {True: "pass", False: "**fail**", None: "not known"}
    lines = [f"- {sentence}: {said[met]}." for met, sentence in regime(experiment)]
    lines.append(f"- Detectable difference (80 % power, two-sided 5 %) of one comparison by itself: {detectable_text(experiment)}.")
    if n := len(experiment.results["claims"]):
        lines[-1] = f"{lines[-1].removesuffix('.')}; as one of the {n} claims, corrected: {detectable_text(experiment, n)}."
    return "\n".join(lines) + "\n"


def detectable_text(experiment: Experiment, comparisons: int = 1) -> str:
    """`5.9 points`."""
    detectable = experiment.detectable(comparisons)
    return "–" if detectable is None else f"{100 * detectable:.1f} points"


def claims_table(experiment: Experiment) -> str:
    """Each claim's difference on the main split, its p values (Holm's over the claims), and whether it is borne out."""
    claims = experiment.results["claims"]
    arms = {i: (claim["better"], claim["worse"]) for i, claim in enumerate(claims)}
    of_models = _corrected({i: experiment.p(*pair) for i, pair in arms.items()})
    of_trainings = _corrected({i: experiment.training_p(*pair) for i, pair in arms.items()})
    rows = []
    for i, pair in arms.items():
        found, seeds = experiment.difference(*pair), len(experiment.pairs(*pair, experiment.splits[0])[0])
        said = verdict(found, of_trainings.get(i))
        rows.append([claims[i]["text"], said, points(found), p_value(of_models.get(i)), p_value(of_trainings.get(i)), str(seeds)])
    return markdown(["claim", "verdict", "difference, points", *_P, "seeds"], rows, 1)


def verdict(found: Interval | None, p: float | None) -> str:
    """What the interval of "better less worse" and its corrected p for any trainings say of a claim."""
    if found is None:
        return "not measured yet"
    if p is None:
        return "one seed: not decided"
    said = {1: "holds", -1: "does not hold"}.get(found.sign)
    if said is None:
        return "cannot be told apart"
    return f"**{said}**" if p < 0.05 else f"suggested: {said}"


def sweep_table(experiment: Experiment, sweep: dict[str, Any]) -> str:
    """Success on the main split along a sweep."""
    rows = []
    for value, arm in sweep["arms"].items():
        runs = experiment.runs(arm)
        cells = [_trained_on(runs), str(len(runs)), percent(experiment.mean(arm)), times(experiment.speedup(arm, "flops"))]
        rows.append([value, experiment.title(arm), *cells])
    headings = ["value", "arm", "SFT / RL", "seeds", f"{experiment.splits[0]} success, %", "speed-up, FLOPs"]
    return markdown(headings, rows, 2)


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

    scalars = {"eta_squared": 2, "threshold_standard_error": 4, "share_within_one_standard_error": 3}
    headings = [
        "metric",
        *(f"ρ {name}" for name in keys_of("spearman")),
        "η² task type",
        "SE of the threshold",
        "share within one SE",
    ]
    rows = []
    for metric, audit in audits.items():
        rhos = [optional(of(audit, "spearman", name), 2) for name in keys_of("spearman")]
        rows.append([metric, *rhos, *(optional(audit.get(key), digits) for key, digits in scalars.items())])
    table("What the scores go along with (Spearman's ρ, share of variance η²), and how firm the threshold is.", headings, rows, 1)
    for key, title, columns in (
        ("agreement", "Agreement with routing by plain measures.", ("same_side", "jaccard")),
        ("stability", "Stability of the routes when something changes.", ("same_side", "jaccard", "spearman")),
    ):
        rows = [
            [metric, other, *(optional(of(audit, key, other, column), 2) for column in columns)]
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
    parts += ["## Table 1: success in %", *_success(experiment, main), *picture(experiment, "success")]
    if results["claims"]:
        parts += ["## Claims", claims_table(experiment), CLAIMS_NOTE]
    for group in groups:
        parts += [f"## {GROUP_TITLES.get(group, printable(group).capitalize())}", *_success(experiment, experiment.of_group(group))]
    for sweep in results["sweeps"]:
        parts += [f"## Sweep: {printable(sweep['title'])}", sweep_table(experiment, sweep)]
    parts += picture(experiment, "sweeps")
    parts += cost_parts(experiment)
    if audits := audits_text(experiment):
        parts += ["## Audits", audits]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


HOW_TO_READ = (
    "Brackets are 95 % intervals for other training seeds and other tasks (crossed random effects, Student's t), each by itself. With one "
    "seed they are bootstraps over tasks and know nothing of training. Differences are over the seeds that both arms have. p values are "
    "two-sided and corrected by Holm's method over the comparisons of one column with the same reference: *these models* by a paired "
    "sign-flip test over tasks on the mean over seeds, which asks whether the models that were trained differ; *any trainings* by "
    "Student's t with at most one degree of freedom less than there are seeds, which asks whether arms do, trained again. Of SFT / RL, "
    "*by chance* are those of RL's that were drawn among equal pass rates."
)
CLAIMS_NOTE = (
    "A claim holds where p for any trainings, corrected over the claims, is below 0.05. It is suggested where only the interval, which is "
    "not corrected, is clear of zero: of a dozen claims of no effect one is suggested in about every second experiment. After the "
    "correction three seeds decide next to nothing, whatever their interval; with one seed nothing is decided."
)


def _facts(experiment: Experiment) -> str:
    results = experiment.results
    model, corpus = results["model"], results["corpus"]
    facts = [f"Environment {results['environment']}"]
    facts += [f"model {model['id']} ({count(model.get('parameters', 0))} parameters)"] if "id" in model else []
    facts += [f"{corpus['trajectories']} trajectories"] if "trajectories" in corpus else []
    facts += [f"seeds {', '.join(map(str, results['seeds']))}"] if results["seeds"] else []
    known = results["machines"]
    for machine in known:
        if any(machine.items() < other.items() for other in known):  # the same, by a stage that had no use for its GPU
            continue
        where = [machine["cpu"], machine.get("gpu"), f"{machine.get('cores', '?')} cores"] if "cpu" in machine else []
        facts += [", ".join(filter(None, [*where, *(f"{name} {v}" for name, v in machine.get("versions", {}).items())]))]
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
