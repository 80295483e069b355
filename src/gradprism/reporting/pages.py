"""Pages of results: all tables and figures as one document, and the blocks of other Markdown pages that show them."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from rich.console import Console

from gradprism.experiments.comparison import MAIN_GROUP, Comparison
from gradprism.experiments.gain import GAIN
from gradprism.experiments.results import RESULTS, Results, shown_results
from gradprism.experiments.schedule import Status
from gradprism.reporting.blocks import fill, fill_file, read_page
from gradprism.reporting.checks import bars_text, detectable_text, power_found, regime_text
from gradprism.reporting.cost_tables import cost_table, ledger_table, saving_lines, training_table, work_table
from gradprism.reporting.document import Block, Figure, Heading, Table, markdown, show
from gradprism.reporting.figures import FIGURES, draw_figures, drawn_elsewhere
from gradprism.reporting.numbers import count, duration, mib, nats, nats_more, percent, points, share, times
from gradprism.reporting.tables import (
    audit_blocks,
    claim_detectable,
    claims_table,
    difference_table,
    held_out_table,
    main_table,
    parts_table,
    routes_table,
    sampled_table,
    success_table,
    sweep_table,
)
from gradprism.runtime.errors import DataError
from gradprism.runtime.files import atomic_write
from gradprism.runtime.progress import printable

TABLES, README = "tables.md", "README.md"
GROUP_TITLES = {
    "order": "SFT on everything, then RL on a part",
    "rounds": "Half of the tasks with all of RL's rounds",
    "sweep": "Arms of the sweeps",
    "refresh": "Routing again while the model changes",
}

HOW_TO_READ = (
    "Brackets are 95 % intervals for other training seeds and other tasks (crossed random effects, Student's t), each by itself. With one "
    "seed they are bootstraps over tasks and know nothing of training. Differences are over the seeds that both arms have. p values are "
    "two-sided and corrected by Holm's method over the comparisons of one column with the same reference: *these models* by a paired "
    "sign-flip test over tasks on the mean over seeds, which asks whether the models that were trained differ; *any trainings* by "
    "Student's t with at most one degree of freedom less than there are seeds, which asks whether arms do, trained again. Of SFT / RL, "
    "*by chance* are those of RL's that were drawn among equal pass rates."
)
ONE_SEED = (
    "Brackets are 95 % intervals over tasks, each by itself: Wilson's of successes, bootstraps of scores and differences. With one seed "
    "they know nothing of other trainings. p, *these models*: a paired sign-flip test over tasks, corrected by Holm's method over the "
    "column."
)
CLAIMS_NOTE = (
    "A claim holds, or does not, where p for any trainings, corrected over the claims of its family, is below 0.05. Else it cannot be "
    "told: in parentheses is the difference that four of five experiments with such a spread would have found, as one of these claims. An "
    "interval by itself, which is not corrected, says less: of a dozen claims of no effect one is clear of zero in about every second "
    "experiment."
)
SAMPLED_NOTE = (
    "Success in % of the same models on the same tasks, whose number is in parentheses, by greedy answers, by answers sampled at a "
    "temperature, and in any of k sampled attempts (pass@k). Differences are paired by task and seed."
)
HELD_OUT_NOTE = (
    "Mean loss of the same models in nats over the {tokens:,} response tokens of {trajectories} demonstrations that no arm trains on, each "
    "token counted alike; less is better. It asks how well a model imitates, which SFT is trained for and RL is not. Brackets are 95 % "
    "intervals for other training seeds (Student's t) and these demonstrations; one seed has none. Differences are paired by seed."
)
TRAINING_NOTE = (
    "Success in % on the tasks of the curves, means over seeds. The highest point of a mean curve is that of several, and so flatters. "
    "The end is that of the training, also where the best weights were kept. Score 0: the share of all evaluated episodes that ended with "
    "nothing."
)
COST_NOTE = (
    "Means over seeds; in parentheses the range over seeds. Evaluations are not in the times. Wall clocks are of machines that may have "
    "done other work, stages side by side among it: CPU time and FLOPs compare better, and wall clocks of different machines are not "
    "compared at all. Speed-ups are over full RL. Choosing is all that is not training: probing, routing, sampling; of a policy that "
    "reads losses alone it is the forward part of the probe, its time estimated by its FLOPs. FLOPs are estimates: 2 per parameter and "
    "token read, 4 per parameter and token of a backward pass. The last columns say at which part of full RL's whole cost an arm first got "
    "the success that full RL ended with, on the tasks of the curves, and how many seeds did: a first crossing of a noisy curve, and for "
    "SFT the whole of it, since it is only evaluated at its end."
)

# --- the document


def document(comparison: Comparison, figures: Collection[str] = ()) -> list[Block]:
    """All tables, and the given `figures` by name; parts for which the results hold nothing are left out."""
    results, main = comparison.results, comparison.of_group(MAIN_GROUP)

    def drawn(*names: str) -> list[Block]:
        return [Figure(name, FIGURES[name][0]) for name in names if name in figures]

    blocks: list[Block] = [Heading(f"{results.name}: tables", 1), _facts(comparison)]
    if comparison.is_run:
        blocks += [ONE_SEED, "\n".join(f"- {line}" for line in run_lines(comparison))]
    else:
        blocks += ["\n".join(f"- {line}" for line in remarks)] if (remarks := _remarks(results)) else []
        blocks += [HOW_TO_READ, Heading("Does the experiment lie where something can be seen?"), regime_text(comparison)]
        blocks += [Heading("Does RL do what it must?"), bars_text(comparison)]
    blocks += [Heading("Table 1: success in %"), *_success(comparison, main), *drawn("success")]
    if results.claims:
        blocks += [Heading("Claims"), claims_table(comparison), CLAIMS_NOTE]
        blocks += [power_found(comparison)] if results.power else []
    tables = [(split, sampled_table(comparison, split)) for split in comparison.splits]
    sampled = [block for split, table in tables if table for block in (Heading(f"{split.capitalize()} tasks", 3), table)]
    blocks += [Heading("Greedy against sampled"), SAMPLED_NOTE, *sampled] if sampled else []
    blocks += _held_out(comparison)
    for group in dict.fromkeys(arm.group for arm in results.arms if arm.group != MAIN_GROUP):
        blocks += [Heading(GROUP_TITLES.get(group, group.capitalize())), *_success(comparison, comparison.of_group(group))]
    for sweep in results.sweeps:
        blocks += [Heading(f"Sweep: {sweep.title}"), sweep_table(comparison, sweep)]
    blocks += [*drawn("sweeps"), Heading("Table 2: cost")]
    if comparison.costs(results.full_rl_arm):
        blocks += [cost_table(comparison), COST_NOTE]
    blocks += [work_table(comparison), *drawn("cost")]
    if lines := saving_lines(comparison):
        blocks += [Heading("Does choosing pay?", 3), "\n".join(lines)]
    blocks += [Heading("All that was run", 3), ledger_table(comparison)]
    training, routes = training_table(comparison), routes_table(comparison) if comparison.is_run else None
    blocks += _titled("While training", *([training, TRAINING_NOTE] if training else []), *drawn("curves", "training"))
    blocks += _titled("Scores and routes", *drawn("scores"), *([routes] if routes else []), *drawn("norms"))
    return [*blocks, *_titled("Audits", *audit_blocks(comparison))]


def _titled(title: str, *blocks: Block) -> list[Block]:
    """The blocks under a heading, where there are any."""
    return [Heading(title), *blocks] if blocks else []


def _held_out(comparison: Comparison) -> list[Block]:
    """The held-out losses; nothing where no run has one. All are of the same demonstrations."""
    of = next((run.held_out for arm in comparison.arms for run in comparison.held_out_runs(arm)), None)
    table = held_out_table(comparison)
    if of is None or table is None:
        return []
    return [Heading("Held-out loss"), HELD_OUT_NOTE.format(tokens=of.tokens, trajectories=of.trajectories), table]


def _facts(comparison: Comparison) -> str:
    results = comparison.results
    facts = [f"Environment {results.environment}"]
    facts += [f"model {results.model.id} ({count(results.model.parameters or 0)} parameters)"] if results.model else []
    facts += [f"{results.trajectories} trajectories"] if results.trajectories else []
    facts += [f"seeds {', '.join(map(str, results.seeds))}"] if results.seeds else []
    for machine in results.machines:
        if machine.gpu is None and any(m.gpu and m.model_copy(update={"gpu": None}) == machine for m in results.machines):
            continue  # the same, by a stage that had no use for its GPU
        where = [machine.cpu, machine.gpu, f"{machine.cores or '?'} cores"] if machine.cpu else []
        facts += [", ".join(filter(None, [*where, *(f"{name} {v}" for name, v in sorted(machine.versions.items()))]))]
    said = f"{'; '.join(facts)}. Written by `gradprism experiment tables` from `results.json`; edit neither."
    missing = []
    for name, arm in comparison.arms.items():
        done, wanted = len(comparison.runs(name)), len(arm.seeds or results.seeds)
        if done < (1 if name == results.base_arm else wanted):
            missing.append(f"{arm.title} ({done} of {wanted})")
    return said + (f"\n\n**Unfinished**, seeds done: {', '.join(missing)}." if missing else "")


def run_lines(comparison: Comparison) -> list[str]:
    """A run in a few plain sentences: success by split, the last arm's route, the probe's share of the time, remarks."""
    lines = []
    for split in comparison.splits:
        steps = [
            f"{percent(mean, ' %')} {comparison.title(arm)}" for arm in comparison.arms if (mean := comparison.mean(arm, split))
        ]
        episodes = len(comparison.results.tasks[split])
        lines += [f"Success on {split} tasks ({episodes} episodes each; 95 % intervals): {', '.join(steps)}."] if steps else []
    lines += _route_line(comparison)
    stages = comparison.results.stages.values()
    probe = sum(stage.wall_seconds for stage in stages if stage.kind == "probe")
    if (whole := sum(stage.wall_seconds for stage in stages)) and probe:
        lines.append(f"The probe took {duration(probe)} of {duration(whole)}, {share(probe / whole)} of the wall time.")
    return [*lines, *_remarks(comparison.results)]


def _remarks(results: Results) -> list[str]:
    """What is said of the tasks, and the warnings of the trainings, each once with the trainings that it is of, where they are few enough
    to be read.
    """
    labels: dict[str, str] = {}
    for stage, of in ((stage, f"{arm.name}/{run.seed}") for arm in results.arms for run in arm.runs for stage in run.stages):
        labels.setdefault(stage, f"{results.stages[stage].kind} {of}")
    warned: dict[str, list[str]] = {}
    for stage, label in labels.items():
        for line in results.stages[stage].warnings:
            warned.setdefault(line, []).append(label)
    named = {line: ", ".join(dict.fromkeys(of)) if len(of) <= 8 else f"{len(of)} trainings" for line, of in warned.items()}
    return [*results.remarks, *(f"{of}: {line}" for line, of in named.items())]


def _route_line(comparison: Comparison) -> list[str]:
    """Where the last route sent trajectories; of several arms that are not all trained on it, with the arm's title."""
    trained = [(arm, run) for arm in comparison.arms for run in comparison.runs(arm) if run.stages]
    routed = [(arm, route) for arm, run in trained if (route := comparison.results.routes.get(run.route or ""))]
    if not routed:
        return []
    arm, route = routed[-1]
    none, both = sum(route.none), sum(route.both)
    n_sft, n_rl = sum(route.sft) + both, sum(route.rl) + both
    others = (f", {both} to both" if both else "") + (f", {none} to neither" if none else "")
    whose = f"{comparison.title(arm)}: " if len({run.route for _, run in trained}) > 1 else ""
    return [f"{whose}{n_sft} trajectories went to SFT, {n_rl} to RL{others}."]


def _success(comparison: Comparison, arms: Sequence[str]) -> list[Block]:
    blocks: list[Block] = []
    for split in comparison.splits:
        differences = difference_table(comparison, arms, split)
        blocks += [Heading(f"{split.capitalize()} tasks", 3), success_table(comparison, arms, split)]
        blocks += [differences] if differences else []
        if parts := parts_table(comparison, arms, split):
            blocks += ["Parts of the score, mean in percent over the tasks that have them.", parts]
    return blocks


# --- blocks of other pages

_TABLES: dict[str, Callable[[Comparison], Block | None]] = {
    "main": main_table,
    "claims": claims_table,
    "regime": regime_text,
    "bars": bars_text,
    "sampled": sampled_table,
    "held-out": held_out_table,
    "cost": cost_table,
    "training": training_table,
    "parts": lambda comparison: parts_table(comparison, comparison.of_group(MAIN_GROUP), comparison.splits[0]),
}
# Name: what its words are ("arm", "evaluation"), whether a split may follow, and the number of the comparison, the words and the split.
_NUMBERS: dict[str, tuple[tuple[str, ...], bool, Callable[..., str]]] = {
    "success": (("arm",), True, lambda c, arm, split: percent(c.mean(arm, split), " %")),
    "score": (("arm",), True, lambda c, arm, split: percent(c.mean(arm, split, "score"))),
    "difference": (("arm", "arm"), True, lambda c, arm, other, split: points(c.difference(arm, other, split), " points")),
    "sampled-success": (("arm", "evaluation"), True, lambda c, arm, name, split: percent(c.sampled_mean(arm, name, split), " %")),
    "sampled-difference": (
        ("arm", "arm", "evaluation"),
        True,
        lambda c, arm, other, name, split: points(c.sampled_difference(arm, other, name, split), " points"),
    ),
    "pass-at-k": (
        ("arm", "evaluation"),
        True,
        lambda c, arm, name, split: percent(c.sampled_mean(arm, name, split, any_attempt=True), " %"),
    ),
    "held-out-loss": (("arm",), False, lambda c, arm, _: nats(c.held_out_loss(arm), " nats")),
    "held-out-difference": (
        ("arm", "arm"),
        False,
        lambda c, arm, other, _: nats_more(c.held_out_difference(arm, other), " nats"),
    ),
    "speedup": (("arm",), False, lambda c, arm, _: times(c.speedup(arm))),
    "speedup-flops": (("arm",), False, lambda c, arm, _: times(c.speedup(arm, "flops"))),
    "detectable": ((), False, lambda c, _: detectable_text(c)),
    "claim-detectable": (("arm", "arm"), False, lambda c, better, worse, _: claim_detectable(c, better, worse)),
}


def fill_blocks(text: str, comparison: Comparison, source: str, prefix: str = "", others: Collection[str] = ()) -> str:
    """`text` with what stands between `<!-- gradprism: NAME -->` and `<!-- /gradprism -->` filled in; errors name the file `source`.

    Blocks are `main`, `claims`, `regime`, `bars`, `sampled`, `held-out`, `cost`, `training`, `parts`, and within a line
    `success ARM [SPLIT]`, `score ARM [SPLIT]`, `difference ARM ARM [SPLIT]`, `sampled-success ARM EVALUATION [SPLIT]`,
    `sampled-difference ARM ARM EVALUATION [SPLIT]`, `pass-at-k ARM EVALUATION [SPLIT]`, `held-out-loss ARM`,
    `held-out-difference ARM ARM`, `speedup ARM`, `speedup-flops ARM`, `detectable`, `claim-detectable BETTER WORSE`. With a prefix, only
    blocks whose names begin with it are filled ("PREFIX success gini"), so that one file can show several experiments; blocks that begin
    with one of `others` are left as they are. (A line that begins with a marker is HTML to Markdown: begin it with a word.)

    Raises `DataError` for a block that is none of these, an unknown arm, split or claim, or a block that does not end before the next.
    """
    return fill(text, lambda name: _block(name, comparison, source), source, prefix, others)


def _block(name: str, comparison: Comparison, source: str) -> str:
    what, *words = name.split() or [""]
    if what in _TABLES and not words:
        block = _TABLES[what](comparison)
        return markdown([block]) if block else ""
    number = _NUMBERS.get(what)
    if number is None or not len(number[0]) <= len(words) <= len(number[0]) + number[1]:
        more = (
            f", and {printable(what)!r} is no folder of results beside this one"
            if words and (words[0] in _TABLES or words[0] in _NUMBERS)
            else ""
        )
        raise DataError(f"{source}: no block is called {printable(name)!r}{more}; see docs/experiments.md for those that are")
    kinds, _, text = number
    names = {
        "arm": list(comparison.arms),
        "evaluation": [e.name for e in comparison.results.evaluations],
        "split": comparison.splits,
    }
    for kind, word in zip((*kinds, "split"), words, strict=False):
        known = names[kind]
        if word not in known:
            where = f"{source}: block {printable(name)!r}"
            raise DataError(f"{where}: no {printable(word)!r} in results.json; it has {', '.join(known)}")
    try:
        return text(comparison, *words[: len(kinds)], next(iter(words[len(kinds) :]), None))
    except DataError as error:
        raise DataError(f"{source}: block {printable(name)!r}: {error}") from None


# --- files and the terminal


def _files(folder: Path) -> dict[str, str]:
    """File name to text of `folder`/results.json's tables and figures, and of the folder's README with its blocks filled."""
    comparison, readme = Comparison(shown_results(folder)), folder / README
    figures = draw_figures(comparison)
    files = {TABLES: markdown(document(comparison, figures))}
    if readme.is_file():
        # What is shown of results beside these is filled by `fill_page`, and by that of measured gains.
        beside = {path.parent.name for name in (RESULTS, GAIN) for path in folder.resolve().parent.glob(f"*/{name}")}
        others = beside - {folder.resolve().name} - _TABLES.keys() - _NUMBERS.keys()
        files[README] = fill_blocks(read_page(readme), comparison, str(readme), others=others)
    return files | {f"{name}.svg": svg for name, svg in figures.items()}


def write_tables(folder: Path) -> list[Path]:
    """Writes `tables.md` and the figures (SVG) of `folder`/results.json beside it, and fills the blocks of its README.md, if it has one.

    Returns the paths written. Figures that the results no longer have are deleted. Raises `MissingFileError` or `DataError`.
    """
    files = _files(folder)
    for name, content in files.items():
        with atomic_write(folder / name) as file:
            file.write(content)
    for name in FIGURES:
        if f"{name}.svg" not in files:
            (folder / f"{name}.svg").unlink(missing_ok=True)
    return [folder / name for name in files]


def tables_are_current(folder: Path) -> list[str]:
    """Names of the files that `write_tables` would change; writes nothing.

    Matplotlib draws the same picture in other bytes from version to version: a figure that another version drew is only looked for.
    """
    made = _files(folder)
    held = {path.name: read_page(path) for path in folder.iterdir() if path.suffix in (".md", ".svg")}
    gone = [f"{name}.svg" for name in FIGURES if f"{name}.svg" in held.keys() - made.keys()]
    return [name for name, text in made.items() if held.get(name) != text and not drawn_elsewhere(held.get(name, ""))] + gone


def fill_page(folder: Path, path: Path) -> None:
    """Fills the blocks of a Markdown page elsewhere that name the results of `folder`: `<!-- gradprism: FOLDER success gini -->`."""
    comparison = Comparison(shown_results(folder))
    fill_file(path, lambda text: fill_blocks(text, comparison, str(path), prefix=folder.resolve().name))


def print_tables(folder: Path, console: Console) -> None:
    """Prints the success of all arms by split, and all that was run with its cost."""
    comparison = Comparison(shown_results(folder))
    made = [arm for arm in comparison.arms if comparison.runs(arm)]
    for split in comparison.splits if made else ():
        title = f"Success in % [95 % interval], {split} tasks"
        show(title, success_table(comparison, made, split), console)
    if left := len(comparison.arms) - len(made):
        console.print(f"{left} of {len(comparison.arms)} arms have not been run.\n")
    if losses := held_out_table(comparison):
        show("Held-out loss", losses, console)
    show("Cost", ledger_table(comparison), console)
    for line in run_lines(comparison) if comparison.is_run else ():
        console.print(printable(line), markup=False, highlight=False)


def print_status(name: str, state: Status, jobs: int, console: Console) -> None:
    """Prints what is done, running and pending by kind of stage, with the time and memory of what is done, and the time that is left."""
    rows = []
    for kind in dict.fromkeys(stage.kind for stage in (*state.done, *state.running, *state.pending)):
        done, running, pending = ([s for s in some if s.kind == kind] for some in (state.done, state.running, state.pending))
        to_come = [stage.seconds for stage in (*running, *pending)]
        known = [seconds for seconds in to_come if seconds is not None]
        row = [kind, *(str(len(some)) if some else "-" for some in (done, running, pending))]
        row += [duration(sum(stage.seconds or 0 for stage in done)) if done else "-", duration(sum(known)) if known else "-"]
        row += [mib(max((getattr(s, peak) for s in done), default=0)) for peak in ("peak_memory_mib", "peak_gpu_memory_mib")]
        rows.append(row)
    headings = ["stages", "done", "running", "to run", "took", "will take", "peak MiB", "peak GPU MiB"]
    left = len(state.running) + len(state.pending)
    console.print(printable(f"{name}: {len(state.done)} stages done, {left} left"), markup=False, highlight=False)
    show("", Table(headings, rows), console)
    for stage in state.running:
        console.print(printable(f"running: {stage.label}"), markup=False, highlight=False)
    seconds = state.seconds_left
    said = (
        "not known until a stage is done"
        if seconds is None
        else f"about {duration(seconds)}, {jobs} at once"
        if seconds
        else "none"
    )
    console.print(f"time left: {said}", markup=False, highlight=False)
