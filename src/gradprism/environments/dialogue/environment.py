"""Dialogue as an `Environment`: tasks by id, sessions with a simulated user and tools, an expert."""

from collections.abc import Sequence
from dataclasses import dataclass

from gradprism.environments.dialogue.calls import read_call, run_call, structured, write_call
from gradprism.environments.dialogue.expert import DialogueExpert
from gradprism.environments.dialogue.scenarios import SIZES, TWISTS, make_scenario, parse_id, place
from gradprism.environments.dialogue.score import MAX_TURNS, parts, score, success
from gradprism.environments.dialogue.user import User
from gradprism.environments.protocol import Environment, Info, Step, Task
from gradprism.runtime.errors import ConfigError
from gradprism.trajectories.record import ToolCall, Trajectory

MAX_ACTION_CHARACTERS = 2000
RULES = "1"  # of scenarios, user and score; another number for other steps


@dataclass(frozen=True)
class DialogueEnvironment(Environment):
    """A service dialogue about tables, trains and rooms of an invented town; `seed` gives other tasks under the same ids.

    `form` is how the expert writes tool calls: `line`, `json`, or `tools`, which is JSON that corpora record as structured calls, with the
    tools' schemas and results in turns of their own; all are always understood. `instructions` puts rules and tools before the
    first words, for models that have not been trained on them.
    """

    seed: int = 0
    form: str = "line"
    instructions: bool = False
    name = "dialogue"
    splits = ("train", "dev", "seen", "unseen", "base")
    evaluation_splits = ("seen", "unseen")
    dev_split = "dev"

    def __post_init__(self) -> None:
        if self.form not in ("line", "json", "tools"):
            raise ConfigError(f"form {self.form!r}: choose line, json or tools")

    def ids(self, split: str, task_type: str | None = None) -> Sequence[str]:
        """Ids of a split's tasks; the type of a task is its twist."""
        if task_type not in (None, *TWISTS):
            raise ConfigError(f"task type {task_type!r}: choose one of {list(TWISTS)}")
        return [f"{split}/{n}" for n in range(SIZES[split]) if task_type in (None, place(split, n)[1])]

    def find(self, task_id: str) -> Task:
        """The task of an id such as `train/17`."""
        split, number = parse_id(task_id)
        return Task(self.name, task_id, place(split, number)[1], split)

    def contents(self, tasks: Sequence[Task] | None = None) -> dict[str, str]:
        """The version of its rules."""
        return {"rules": RULES}

    def recorded(self, trajectory: Trajectory) -> Trajectory:
        """With the form `tools`, calls and their results as structured turns, and the instructions as the system's."""
        return structured(trajectory) if self.form == "tools" else trajectory

    def session(self) -> "DialogueSession":
        """A session."""
        return DialogueSession(self)

    def expert(self) -> DialogueExpert:
        """A fresh expert for one episode."""
        return DialogueExpert(self.form)


class DialogueSession:
    """One conversation at a time; see `Session`."""

    def __init__(self, environment: DialogueEnvironment) -> None:
        self._environment = environment
        self.reset("train/0")

    def reset(self, task_id: str) -> Step:
        """The user's opening."""
        self.scenario = make_scenario(task_id, self._environment.seed)
        self.user, self.database = User(self.scenario, self._environment.seed), self.scenario.database()
        self._turns, self._last = 0, ""
        opening = f"user: {self.user.opening()}"
        return self._step(f"{instructions(self._environment.form)}\n{opening}" if self._environment.instructions else opening)

    def step(self, action: str) -> Step:
        """Words to the user, or a tool call. After its end nothing changes any more."""
        if self.user.gone:
            return self._step(self._last, valid=False, reward=False)
        text = action.strip()
        self._turns += 1
        valid = bool(text) and len(text) <= MAX_ACTION_CHARACTERS
        call = read_call(text) if valid else None
        if call is not None:
            result = run_call(call, self.database)
            valid = result.done
            self.user.hears_call(call, result.done)
            said = f"tool: {result.text}"
        else:
            said = f"user: {self.user.hears(text if valid else '')}"
        if self._turns >= MAX_TURNS and not self.user.gone:
            said = f"user: {self.user.has_to_go()}"
        return self._step(said, valid)

    def _step(self, observation: str, valid: bool = True, reward: bool = True) -> Step:
        self._last, done = observation, self.user.gone
        found = parts(self.scenario, self.database, self.user, self._turns)
        total = score(found) if done else 0.0
        details: dict[str, object] = {"variant": self.scenario.variant, "domain": self.scenario.domain.name} if done else {}
        info = Info(
            valid, () if done else self._admissible(), done and success(found), total, found if done else {}, details=details
        )
        return Step(observation, total if done and reward else 0.0, done, info)

    def _admissible(self) -> list[str]:
        """One way of saying each thing, and calls with the ids and values that fit here."""
        domain = self.scenario.domain
        words = [slot.question for slot in domain.slots] + ["hello .", "which booking ?", "sorry , nothing fits .", "goodbye ."]
        ids, references = [item.id for item in self.database.items], list(self.database.bookings)
        find = " ".join(f"{slot.name}=<{slot.name}>" for slot in domain.search)
        details = " ".join(f"{slot.name}=<{slot.name}>" for slot in domain.details)
        offers = [f"shall i book {item} ?" for item in ids]
        existing = [
            line for ref in references for line in (f"call show ref={ref}", f"shall i cancel {ref} ?", f"call cancel ref={ref}")
        ]
        return [*words, f"call find {find}", *offers, *(f"call book id={item} {details}" for item in ids), *existing]


def instructions(form: str) -> str:
    """What a model that has not been trained on the task has to know, in a few lines."""
    call = write_call(ToolCall("find", {"area": "north"}), form)
    return (
        "You book tables, trains and hotel rooms for a user. Each of your turns is either one short sentence to the user or one tool call "
        f"such as {call} . Tools: find (food, area, to, day, price), book (id, people, time, class, nights), show (ref), "
        "change (ref and what changes), cancel (ref). Greet first. Ask for what you do not know: a table has food, area, people and time; "
        "a train to, day, people and class; a room area, price, people and nights. Look up, then ask 'Shall I book ID?' and act only "
        "after a yes. A fixed booking must not be cancelled: show it first. If nothing fits, say so. End with goodbye."
    )
