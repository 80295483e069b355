"""Which share of a corpus to SFT and to RL, and chosen by which rule: from pass rates, the audit of a probe, and experiments."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from gradprism.advice.audit_facts import ScoreFacts, score_facts
from gradprism.advice.choice import Corpus, Prefer, WayFound, choose, rule_trials, shown_rules
from gradprism.advice.evidence import Experiment, Rule, Way, packaged
from gradprism.advice.pass_rates import Start, start
from gradprism.advice.reasons import Case, certainty, changes, measurements, reasons, recommendation
from gradprism.environments.protocol import Environment
from gradprism.probing.result import Probe
from gradprism.routing.split import Value
from gradprism.routing.tasks import PassRates, read_tasks
from gradprism.runtime.errors import ConfigError
from gradprism.training.rl_config import RlConfig


class Advice(Value):
    """The advice with its numbers and reasons; `str` gives it as a person reads it, `to_json` as plain values.

    `way` is None where nothing supports a share. `rule` is what to split by, where `way` splits: a random split unless another is shown
    to be better; None where `way` splits nothing. `scores` are the audit's facts of the metric that was asked for, and of those of shown
    rules.
    """

    probe: str
    model: str
    prefer: Prefer
    recommendation: str
    certainty: str
    way: Way | None
    rule: Rule | None
    reasons: tuple[str, ...]
    changes: tuple[str, ...]
    next: tuple[str, ...]
    corpus: Corpus
    start: Start | None
    scores: tuple[ScoreFacts, ...]
    ways: tuple[WayFound, ...]
    experiments: tuple[Experiment, ...]

    def to_json(self) -> dict[str, Any]:
        """The advice as JSON values."""
        return self.model_dump(mode="json")

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield self.recommendation
        yield f"Certainty: {self.certainty}"
        parts = {"Why": self.reasons, "What would change it": self.changes, "Next, what decides most first": self.next}
        for name, lines in parts.items():
            if lines:
                yield from ("", name, *(f"- {line}" for line in lines))


def advise(
    probe: Probe | str | Path,
    metric: str = "gini",
    *,
    pass_rates: str | Path | Mapping[str, float] | None = None,
    compare: Probe | str | Path | Sequence[Probe | str | Path] = (),
    results: str | Path | Sequence[str | Path] = (),
    group_size: int | None = None,
    prefer: Prefer = "success",
    playable: bool = True,
    environment: Environment | None = None,
    episode_seconds: float | None = None,
) -> Advice:
    """Advises how to share a probed corpus between SFT and RL, and what is to choose.

    Args:
        probe: A complete `Probe`, or a probe folder.
        metric: The score that is audited, where no experiment shows a rule by another.
        pass_rates: Episodes of the base model on the corpus's tasks or some of them (an `episodes.jsonl`), or rates by task id.
        compare: Probes of the same corpus taken otherwise, for the stability of the score.
        results: Results folders of own experiments, beside those that come with the package; of equal names the own one counts.
        group_size: Episodes per group of RL; default that of `RlConfig`.
        prefer: `success`: the way that succeeds most; `price`: the cheapest that keeps 90 % of what that gains.
        playable: Whether there is an environment that can play the tasks.
        environment: The one that plays them, which is asked what tasks it knows; without, whether any can play them is not checked.
        episode_seconds: Seconds that an episode of the base takes, where they are known, for the price of pass rates.

    Raises `ConfigError` for a wrong choice, and what `audit` and `read_results` raise; scores that are not defined are no error.
    """
    of_group: int = RlConfig().rollouts_per_task if group_size is None else group_size
    if of_group < 2:
        raise ConfigError(f"group size {of_group}: a group has two episodes or more")
    if prefer not in ("success", "price"):
        raise ConfigError(f"prefer {prefer!r}: choose success or price")
    compare = (compare,) if isinstance(compare, Probe | str | Path) else compare
    results = (results,) if isinstance(results, str | Path) else results
    probe = probe if isinstance(probe, Probe) else Probe.load(probe)
    tasks = read_tasks(probe)
    corpus, named = _corpus(probe, tasks, environment)
    rates = None if pass_rates is None else PassRates.of(pass_rates)
    begin = None if rates is None or not named else start(rates, named, of_group)
    own = {found.name: found for found in (Experiment.of(Path(folder)) for folder in results)}
    experiments = (*own.values(), *(found for found in packaged() if found.name not in own))
    trials = rule_trials(experiments)
    shown = shown_rules(trials)
    # An audit asks for the pass rate of every trajectory.
    complete = rates is not None and all(task in rates.rates for task in tasks["task"])
    asked = Rule(policy="concentration", metric=metric)
    facts = {
        rule: score_facts(probe, rule.metric, rule.normalise, pass_rates if complete else None, compare)
        for rule in (asked, *shown.values())
        if rule.is_audited
    }
    # What the own audit says weighs first: a rule that it doubts is none.
    trusted = {way: rule for way, rule in shown.items() if rule not in facts or not facts[rule].doubts}
    choice = choose(experiments, begin, not (corpus.playable and playable), prefer, trusted)
    case = Case(probe, corpus, begin, facts, experiments, trials, shown, choice, playable, of_group, episode_seconds)
    return Advice(
        probe=case.place,
        model=probe.manifest.model,
        prefer=prefer,
        recommendation=recommendation(case),
        certainty=certainty(case),
        way=choice.way,
        rule=case.rule,
        reasons=tuple(reasons(case)),
        changes=tuple(changes(case)),
        next=tuple(measurements(case)),
        corpus=corpus,
        start=begin,
        scores=tuple(facts.values()),
        ways=choice.ways,
        experiments=experiments,
    )


def _corpus(probe: Probe, tasks: pl.DataFrame, environment: Environment | None) -> tuple[Corpus, list[str]]:
    """What RL can play of the corpus, and the ids of these tasks, each once."""
    named, told = tasks["named"], dict[str, Any]()
    playable = named
    if environment is not None:
        refusals = [environment.refusal(t.task) if t.task else "it names no task" for t in probe.trajectories]
        playable = pl.Series([not why for why in refusals], dtype=pl.Boolean)
        first = next((f"{t.id!r}: {why}" for t, why in zip(probe.trajectories, refusals, strict=True) if why), "")
        told = {"environment": environment.name, "known": int(playable.sum()), "unknown": first}
    ids = tasks.filter(playable)["task"].unique(maintain_order=True).to_list()
    return Corpus(trajectories=len(tasks), named=int(named.sum()), tasks=len(ids), **told), ids
