"""The sentences of an advice, each with its numbers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gradprism.advice.audit_facts import ScoreFacts
from gradprism.advice.choice import FEW, KEPT, STRONG, WEAK, Choice, Corpus, Trial
from gradprism.advice.evidence import Contrast, Experiment, Rule, Span, Way
from gradprism.advice.pass_rates import Start
from gradprism.evaluation.summary import Z
from gradprism.package_data import shipped_name
from gradprism.probing.result import Probe
from gradprism.reporting.numbers import count, duration, fixed, p_value

# Tasks, none of which is won, that show a success below WEAK by Wilson's interval.
ENOUGH = int(Z**2 * (1 - WEAK) / WEAK) + 1
RANDOM = Rule(policy="random")


@dataclass(frozen=True)
class Case:
    """All that the sentences are made of."""

    probe: Probe
    corpus: Corpus
    begin: Start | None
    scores: Mapping[Rule, ScoreFacts]
    experiments: Sequence[Experiment]
    trials: Sequence[Trial]
    shown: Mapping[Way, Rule]
    choice: Choice
    playable: bool
    group_size: int
    episode_seconds: float | None

    @property
    def place(self) -> str:
        """The probe folder, as one would type it."""
        return "PROBE" if self.probe.folder is None else str(self.probe.folder)

    @property
    def rule(self) -> Rule | None:
        """What to split by, where the way splits."""
        way = self.choice.way
        return self.choice.rules.get(way, RANDOM) if way and way.splits else None


def recommendation(case: Case) -> str:
    """The advice in a sentence or two."""
    choice, corpus, way = case.choice, case.corpus, case.choice.way
    if choice.only_sft:
        return "SFT on everything: RL has nothing to play."
    if way is None and choice.verdict == "strong":
        return "Neither SFT nor RL on these tasks: the base wins nearly all of them; take harder ones."
    if way is None:
        first = "SFT first; what share of the corpus" if choice.verdict in ("weak", "flat") else "No share is advised; which"
        return f"{first} is best no experiment says."
    said = f"{str(way)[0].upper()}{str(way)[1:]}"
    if case.rule:
        said += f", split {'at random' if case.rule == RANDOM else f'by {case.rule}'}"
    if choice.verdict == "strong":
        said += ", with little or no SFT before it: the base wins most of these tasks already"
    if corpus.playable < corpus.trajectories and way.rl != "none":
        whose = "that name a task" if corpus.known is None else f"whose task {corpus.environment} knows"
        said += f"; RL can play only the {corpus.playable} of {corpus.trajectories} trajectories {whose}"
    return f"{said}."


def certainty(case: Case) -> str:
    """How sure the advice is."""
    choice, way = case.choice, case.choice.way
    if choice.only_sft:
        return "nothing else is possible."
    if choice.verdict == "strong":
        return "the pass rates say so; what SFT or RL still gains from such a base no experiment here says."
    if way is None:
        return "none."
    least: dict[Way, int] = {}  # of several experiments the one that says least for it
    for other, contrast in _alternatives(case):
        least[other] = min(least.get(other, 2), 2 * contrast.shown or contrast.suggested)
    words = {
        2: "shown to be better than",
        1: "suggested, not shown, to be better than",
        0: "not told apart from",
        -1: "suggested, not shown, to be worse than",
        -2: "shown to be worse than",
    }
    parts = [f"{said} {_listed(others)}" for n, said in words.items() if (others := [way for way in least if least[way] == n])]
    if not parts:
        return "none: nothing was compared with it."
    names = ", ".join(found.name for found in case.experiments if found.speaks)
    return f"low. In {names}: {'; '.join(parts)}. For your model and tasks not known."


def _alternatives(case: Case) -> Iterator[tuple[Way, Contrast]]:
    """The chosen way against every other, in every experiment that speaks."""
    for experiment in case.experiments:
        arms = experiment.by_way(case.choice.rules) if experiment.speaks else {}
        if own := case.choice.way and arms.get(case.choice.way):
            for other in (found.way for found in case.choice.ways if found.way != own.way):
                if contrast := experiment.contrast(own.name, arms[other].name):
                    yield other, contrast


def reasons(case: Case) -> Iterator[str]:
    """Why, what is the corpus's own first."""
    yield from _of_corpus(case)
    yield from _of_pass_rates(case)
    for score in case.scores.values():
        yield from _of_score(score)
    if case.choice.only_sft:
        return
    yield from _of_ways(case)
    yield from _of_rules(case)
    sizes = [
        f"{found.name} {count(found.parameters)} parameters" for found in case.experiments if found.speaks and found.parameters
    ]
    if sizes:
        yield f"How far the experiments carry over to other models and tasks is not known; they are of {', '.join(sizes)}."


def _of_corpus(case: Case) -> Iterator[str]:
    corpus = case.corpus
    if not corpus.named:
        yield f"None of the {corpus.trajectories} trajectories names a task, so no environment can set one up."
    elif not case.playable:
        yield f"There is no environment to play the {corpus.tasks} tasks."
    elif corpus.known is None:
        yield (
            f"{corpus.named} of {corpus.trajectories} trajectories name a task, {corpus.tasks} in all; whether an environment can play "
            "them was not checked: --env NAME asks it."
        )
    else:
        said = f"Environment {corpus.environment} knows the tasks of {corpus.known} of {corpus.trajectories} trajectories"
        yield f"{said}, {corpus.tasks} in all{f'; not that of {corpus.unknown}' if corpus.unknown else ''}."


def _of_pass_rates(case: Case) -> Iterator[str]:
    begin = case.begin
    if begin is None:
        if not case.choice.only_sft:
            yield "Pass rates: not known, so neither is whether RL has anything to learn from the base."
        return
    episodes = ""
    if begin.fewest_episodes is not None:
        low, high = begin.fewest_episodes, begin.most_episodes
        episodes = f", {low} episodes each" if low == high else f", {low} to {high} episodes each"
    yield f"Pass rates of {begin.tasks} of {begin.of_tasks} tasks{episodes}: the base wins {_percent(begin.success)}."
    for varying, rewarded in ((begin.varying, "success"), (begin.varying_scores, "the score")):
        if varying is not None and (rewarded == "success" or varying != begin.varying):
            least = "at least " if begin.at_least else ""
            yield (
                f"Groups of {begin.group_size} that do not all earn the same, rewarding {rewarded}: {least}{_percent(varying)} of the "
                "tasks; from the others RL learns nothing."
            )
    no_rl = "RL from the base would learn next to nothing; SFT first, then measure again."
    said = {
        "weak": f"Whole interval below {100 * WEAK:g} %: {no_rl}",
        "graded": f"Whole interval below {100 * WEAK:g} %, but scores vary: RL from the base can learn from the score, not from success.",
        "flat": f"Fewer than {100 * FEW:g} % of the groups vary: {no_rl}",
        "strong": f"Whole interval above {100 * STRONG:g} %: SFT has little to add.",
    }
    if case.choice.verdict in said:
        yield said[case.choice.verdict]


def _of_score(score: ScoreFacts) -> Iterator[str]:
    if score.doubts:
        yield f"Audit of {score.metric}: {'; '.join(score.doubts)}."
    else:
        own = "" if score.own is None else f", {100 * score.own:.0f} % of its ranks' variance is not length and loss"
        stable = [rho for rho in score.stability.values() if rho is not None]
        kept = f", least ρ with itself in another probe {min(stable):.2f}" if stable else ", stability in other probes not measured"
        yield f"Audit of {score.metric} over {score.n} trajectories: nothing against it{own}{kept}."
    if score.alike:
        yield f"{score.metric} ranks like {', '.join(score.alike)}: one of them will do."


def _of_ways(case: Case) -> Iterator[str]:
    choice = case.choice
    for experiment in case.experiments:
        if not experiment.speaks:
            unmet = "; ".join(bar.text for bar in experiment.bars if bar.met is False)
            why = f"RL did not do there what it must: {unmet}" if unmet else "whether RL did there what it must is not known"
            yield f"{experiment.name} does not count, for {why}."
            continue
        arms = experiment.by_way(choice.rules)
        told = [f"{way} {_percent(arms[way].success)}{_price(arms[way].flops)}" for way in (found.way for found in choice.ways)]
        if told:
            yield f"{experiment.name}, success (and FLOPs over those of SFT, then RL on everything): {'; '.join(told)}."
        others = [
            f"{arm.rule} with {100 * (arm.way.rl_share or 0):g} % to RL {_percent(arm.success)}"
            for arm in experiment.arms
            if arm.rule and arm.way not in arms
        ]
        if others:
            yield f"{experiment.name}, splits without a random one to compare with: {'; '.join(others)}."
    if choice.way and choice.ways and choice.verdict != "strong":
        kept = "; ".join(f"{found.way} {100 * found.kept:.0f} %" for found in choice.ways)
        criterion = "most success" if choice.prefer == "success" else f"cheapest with {100 * KEPT:g} % of the best way's gain"
        yield f"Chosen: the {criterion}, by means. Share of the best way's gain over the base: {kept}."


def _price(flops: Span | None) -> str:
    return "" if flops is None else f" ({flops.mean:.2f}×)"


def _of_rules(case: Case) -> Iterator[str]:
    for trial in case.trials:
        if trial.arm.rule and trial.arm.rule == case.shown.get(trial.arm.way):
            yield f"{trial.experiment.name}, {trial.arm.way}: {trial.arm.rule} against a random split {_difference(trial.contrast)}."
    for rule in (rule for way, rule in case.shown.items() if way not in case.choice.rules):
        yield f"{rule} is not advised here, where the audit doubts {rule.metric}."
    if case.trials and not case.shown:
        best = max(case.trials, key=lambda trial: trial.contrast.difference.mean)
        told = {id(t): t for t in (best, *(t for t in case.trials if t.arm.rule in case.scores))}.values()
        said = "; ".join(f"{t.arm.rule} in {t.experiment.name} {_difference(t.contrast)}" for t in told)
        yield f"None of {len(case.trials)} comparisons shows a rule that beats a random split, the best first: {said}."


def _difference(contrast: Contrast) -> str:
    d, detectable = contrast.difference, contrast.detectable
    seen = "" if detectable is None else f", {f'{100 * detectable:.0f} points' if detectable < 1 else 'nothing'} detectable"
    return f"{'+' if d.mean > 0 else ''}{_percent(d, '')} points (corrected p {p_value(contrast.p)}{seen})"


def changes(case: Case) -> Iterator[str]:
    """What would lead to another advice."""
    choice = case.choice
    if choice.only_sft:
        yield "an environment that plays the tasks, and trajectories that name them"
        return
    if choice.verdict in ("unknown", "between"):
        yield f"a base that wins less than {100 * WEAK:g} % of the tasks, or whose groups hardly vary: SFT first, whatever follows"
        yield f"a base that wins more than {100 * STRONG:g} %: little SFT is needed"
    if choice.other != choice.way:
        yield f"--prefer {'price' if choice.prefer == 'success' else 'success'}: {choice.other}"
    if not case.shown:
        yield "an experiment, such as your own (--results), in which a rule beats a random split at a corrected p below 0.05"


def measurements(case: Case) -> Iterator[str]:
    """What to measure next, what decides most first."""
    begin, probe = case.begin, case.probe
    only_sft, open_ = case.choice.only_sft, case.choice.verdict == "between" and begin and begin.tasks < begin.of_tasks
    if not only_sft and (begin is None or begin.at_least or open_):
        tasks = case.corpus.tasks
        price = "" if case.episode_seconds is None else f", about {duration(case.episode_seconds * tasks * case.group_size)}"
        few = f"; {ENOUGH} tasks without a win would show a weak base" if tasks > ENOUGH and begin is None else ""
        model = shipped_name(probe.manifest.model) or probe.manifest.model or "MODEL"
        play = f"gradprism evaluate --model {model} --env ENV --tasks {case.place}/corpus.jsonl"
        sampled = f"--attempts {case.group_size} --temperature 1 --out base/"
        yield f"pass rates, {tasks} tasks × {case.group_size} episodes{price}{few}: {play} {sampled}"
    if not any(score.stability for score in case.scores.values()):
        seconds = probe.usage.wall_seconds
        took = f", about {duration(seconds)} as the first one took" if seconds else ""
        yield f"the same probe in another dtype or context length{took}, for --compare"
    if not case.choice.only_sft:
        yield "both ways on your own model, with three seeds or more: gradprism experiment; power tells beforehand what it can detect"


def _listed(ways: Sequence[Way]) -> str:
    return ", ".join(f"“{way}”" for way in dict.fromkeys(ways))


def _percent(span: Span, unit: str = " %") -> str:
    return f"{fixed(100 * span.mean)}{unit} [{fixed(100 * span.low)}, {fixed(100 * span.high)}]"
