"""Reads the figures of RL's rounds as they come, and names what goes wrong, with the remedy.

All alarms compare means over windows of rounds, since a single round of few groups is mostly noise. They are rules of thumb, and stop
nothing unless asked to.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

AlarmName = Literal[
    "no-gradient",
    "collapse",
    "entropy-collapse",
    "entropy-rise",
    "drift",
    "clipping",
    "timeouts",
    "refused",
    "repeats",
    "greedy-gap",
]
WINDOW = 10  # rounds over which a mean is taken
# Rounds before which an alarm cannot be raised; evaluations can raise the others sooner.
ROUNDS_NEEDED: dict[str, int] = {
    **dict.fromkeys(("no-gradient", "drift", "clipping", "refused", "repeats"), WINDOW),
    **dict.fromkeys(("entropy-collapse", "entropy-rise", "timeouts"), 2 * WINDOW),
}
OF_UPDATES = ("entropy", "kl", "clipped_low", "clipped_high")  # which each update of a round has anew
SEEN = (
    *("groups_without_gradient", "zero_variance_groups", "success", *OF_UPDATES, "out_of_steps", "episodes"),
    *("invalid_share", "repeated_share", "evaluation/success", "evaluation/sampled_success"),
)


@dataclass(frozen=True, slots=True)
class Alarm:
    """What a window of rounds shows, and what helps."""

    name: AlarmName
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}; {self.remedy}"


@dataclass(slots=True)
class Doctor:
    """The figures of all rounds so far, and of the evaluation `before` them; `raised` says in which round each alarm was first raised."""

    before: dict[str, float] = field(default_factory=dict)
    rounds: list[dict[str, float]] = field(default_factory=list)
    raised: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, float]]) -> "Doctor":
        """What a training's log (`log.jsonl`) shows: a round begins with each row that has `episodes`, and a row per further update
        follows, the last with the evaluation; what stands before all rounds is the evaluation of the start."""
        rounds: list[list[Mapping[str, float]]] = [[]]
        for row in rows:
            if "episodes" in row:
                rounds.append([])
            rounds[-1].append(row)
        doctor = cls()
        doctor.begin(of_round(rounds[0]))
        for updates in rounds[1:]:
            doctor.add(of_round(updates))
        return doctor

    @property
    def state(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {"before": self.before, "rounds": self.rounds, "raised": self.raised}

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        self.before, self.rounds, self.raised = dict(state["before"]), list(state["rounds"]), dict(state["raised"])

    def begin(self, figures: Mapping[str, float]) -> None:
        """Takes the evaluation of what training starts from."""
        self.before = _seen(figures)

    def add(self, figures: Mapping[str, float]) -> list[Alarm]:
        """Takes the figures of a round; the alarms that it raises and no earlier round has raised."""
        self.rounds.append(_seen(figures))
        new = [alarm for alarm in self.alarms() if alarm.name not in self.raised]
        self.raised |= {alarm.name: len(self.rounds) for alarm in new}
        return new

    def alarms(self) -> list[Alarm]:
        """What is wrong as of the last round."""
        return [alarm for rule in RULES if (alarm := rule(self)) is not None]

    def late(self, name: str) -> float:
        """Mean of a figure over the last rounds; NaN where these are fewer than a window, or none of them has it."""
        return _mean(self.rounds[-WINDOW:], name) if len(self.rounds) >= WINDOW else np.nan

    def early(self, name: str) -> float:
        """Mean of a figure over the first rounds; NaN as long as they overlap with the last."""
        return _mean(self.rounds[:WINDOW], name) if len(self.rounds) >= 2 * WINDOW else np.nan

    def best(self, name: str) -> float:
        """The highest mean of a figure over any window but the last, which it may not overlap."""
        ends = range(WINDOW, len(self.rounds) - WINDOW + 1)
        return max((_mean(self.rounds[end - WINDOW : end], name) for end in ends), default=np.nan)

    def evaluations(self, name: str) -> list[float]:
        """A figure of all evaluations, in order."""
        return [row[f"evaluation/{name}"] for row in (self.before, *self.rounds) if f"evaluation/{name}" in row]


def of_round(updates: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The figures of a round from those of its updates: of what each update has anew the mean, of all else the last."""
    rows = [dict(row) for row in updates]
    last = {name: value for row in rows for name, value in row.items()}
    return last | {name: _mean(rows, name) for name in OF_UPDATES if name in last}


def _seen(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: figures[name] for name in SEEN if name in figures}


def _mean(rounds: list[dict[str, float]], name: str) -> float:
    values = [row[name] for row in rounds if name in row]
    return float(np.mean(values)) if values else np.nan


def _no_gradient(doctor: Doctor) -> Alarm | None:
    remedy = "play more episodes per task, easier or harder tasks, or draw more of them by dynamic sampling"
    if (share := doctor.late("groups_without_gradient")) > 0.9:
        return Alarm("no-gradient", f"{share:.0%} of the groups have no gradient of the reward", remedy)
    if (share := doctor.late("zero_variance_groups")) > 0.9:
        what = f"{share:.0%} of the groups earn all alike, so that penalties or the length of the way teach, and not success"
        return Alarm("no-gradient", what, remedy)
    return None


def _collapse(doctor: Doctor) -> Alarm | None:
    remedy = "lower the learning rate, let it decay, add a KL divergence, and keep the best weights"
    evaluations = doctor.evaluations("success")
    if len(evaluations) > 2 and (best := max(evaluations[:-2])) - max(evaluations[-2:]) > 0.1:
        return Alarm("collapse", f"the last two evaluations are more than 10 points below the best of {best:.1%}", remedy)
    if (best := doctor.best("success")) - (late := doctor.late("success")) > 0.15:
        return Alarm("collapse", f"success while sampling has fallen from {best:.1%} to {late:.1%}", remedy)
    return None


def _entropy_collapse(doctor: Doctor) -> Alarm | None:
    if (late := doctor.late("entropy")) < 0.2 * (early := doctor.early("entropy")):
        return Alarm(
            "entropy-collapse",
            f"entropy has fallen from {early:.3f} to {late:.3f}",
            "give entropy a weight, raise clip_high or the temperature, lower the learning rate",
        )
    return None


def _entropy_rise(doctor: Doctor) -> Alarm | None:
    if (late := doctor.late("entropy")) > 2 * (early := doctor.early("entropy")):
        return Alarm(
            "entropy-rise", f"entropy has risen from {early:.3f} to {late:.3f}", "lower the learning rate, add a KL divergence"
        )
    return None


def _drift(doctor: Doctor) -> Alarm | None:
    if (kl := doctor.late("kl")) > 0.5:
        return Alarm("drift", f"the model is {kl:.2f} nats per token away from its start", "raise kl, lower the learning rate")
    return None


def _clipping(doctor: Doctor) -> Alarm | None:
    if (share := doctor.late("clipped_low") + doctor.late("clipped_high")) > 0.2:
        return Alarm("clipping", f"{share:.0%} of the tokens are clipped", "take fewer or smaller steps per round")
    return None


def _timeouts(doctor: Doctor) -> Alarm | None:
    share = doctor.late("out_of_steps") / doctor.late("episodes")
    if share > 0.3 and share - doctor.early("out_of_steps") / doctor.early("episodes") > 0.1:
        return Alarm(
            "timeouts",
            f"{share:.0%} of the episodes run out of steps, more than before",
            "raise timeout_penalty, or allow more steps",
        )
    return None


def _refused(doctor: Doctor) -> Alarm | None:
    if (share := doctor.late("invalid_share")) > 0.4:
        return Alarm("refused", f"the environment refuses {share:.0%} of the actions", "raise invalid_penalty, or begin with SFT")
    return None


def _repeats(doctor: Doctor) -> Alarm | None:
    if (share := doctor.late("repeated_share")) > 0.4:
        return Alarm(
            "repeats",
            f"{share:.0%} of the actions were tried before on the same screen",
            "raise invalid_penalty or timeout_penalty",
        )
    return None


def _greedy_gap(doctor: Doctor) -> Alarm | None:
    sampled = doctor.evaluations("sampled_success")[-2:]
    gaps = np.subtract(sampled, doctor.evaluations("success")[-len(sampled) :]) if sampled else []
    if len(gaps) == 2 and min(gaps) > 0.1:
        return Alarm(
            "greedy-gap",
            f"sampled success is {np.mean(gaps):.0%} above greedy: greedily it repeats itself",
            "evaluate at a temperature as well",
        )
    return None


RULES: tuple[Callable[[Doctor], Alarm | None], ...] = (
    *(_no_gradient, _collapse, _entropy_collapse, _entropy_rise, _drift, _clipping, _timeouts, _refused, _repeats, _greedy_gap),
)
assert len(RULES) == len(get_args(AlarmName))
