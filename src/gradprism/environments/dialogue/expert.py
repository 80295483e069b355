"""An expert that reads what a user and the tools say and solves nearly every task."""

import random
import re

from gradprism.environments.dialogue.calls import write_call
from gradprism.environments.dialogue.world import DOMAINS, ITEM, REFERENCE, Domain, plain_words, values_in
from gradprism.environments.protocol import Step
from gradprism.trajectories.record import ToolCall


class DialogueExpert:
    """Asks for what is missing, looks up, proposes, acts on a yes, and says goodbye. One for each episode.

    `form` is how it writes calls. `habits` are chances of lapses, drawn with `rng` once for each episode: `hasty` writes without asking
    first, `deaf` does not take a change of mind, `curt` does not greet, `blind` takes the first id that is listed and books whatever was
    wanted. They make demonstrations for a weak base.
    """

    def __init__(self, form: str = "line", habits: dict[str, float] | None = None, rng: random.Random | None = None) -> None:
        rng = rng or random.Random(0)
        self._form = form
        self._lapses = {name for name, chance in (habits or {}).items() if rng.random() < chance}
        self._domain: Domain | None = None
        self._goal = "book"
        self._known: dict[str, str] = {}
        self._reference = ""
        self._found: str | None = None  # an item's id; empty: nothing fits
        self._agreed = self._shown = self._fixed = self._written = self._dropped = False
        self._spoke = False

    def act(self, step: Step) -> str:
        """The next action, from the observation alone."""
        who, _, said = step.observation.rpartition("\n")[2].partition(": ")
        text = plain_words(said)
        if who == "tool":
            self._hear_tool(text)
        else:
            self._hear_user(text)
        return self._next()

    def _hear_user(self, text: str) -> None:
        if self._domain is None:
            self._domain = next(domain for name, domain in DOMAINS.items() if re.search(rf"\b{name}\b", text))
            if re.search(r"\bcancel\b", text):
                self._goal = "cancel"
            elif "make it" in text or "need it" in text:
                self._goal = "change"
            elif "only asking" in text or "just a question" in text:
                self._goal = "ask"
            text = re.sub(r", not \S+ \.", "", text)
        if references := REFERENCE.findall(text):
            self._reference = references[0]
        values = {}
        for name, given in values_in(text, self._domain).items():
            if given[-1] in self._domain.slot(name).all_values:
                values[name] = given[-1]
        if "deaf" in self._lapses and re.search(r"\b(wait|oh|moment)\b", text):
            values, self._agreed, self._dropped = {}, True, self._written
        if self._written and values:
            self._goal, self._written, self._known = "change", False, {}
        if values.keys() & {slot.name for slot in self._domain.search}:
            self._found = None
        self._known.update(values)
        if re.search(r"\byes\b", text):
            self._agreed = True
        if "never mind" in text or "changed my mind" in text:
            self._dropped = True

    def _hear_tool(self, text: str) -> None:
        assert self._domain is not None
        if text.startswith("error"):
            self._dropped = True
        elif text.startswith("nothing"):
            self._found = ""
        elif text.startswith(("booked", "changed", "cancelled")):
            self._reference, self._written, self._agreed = REFERENCE.findall(text)[0], True, False
        elif text.startswith("b"):
            self._shown, self._fixed = True, "fixed" in text
        else:
            self._found = ITEM.findall(text)[0]

    def _next(self) -> str:
        domain = self._domain
        assert domain is not None
        if self._dropped:
            return self._says("all right . goodbye .")
        if self._written:
            done = {"book": "booked", "change": "changed", "cancel": "cancelled"}[self._goal]
            return self._says(f"{self._reference} is {done} . goodbye .")
        if self._goal in ("cancel", "change"):
            return self._existing()
        search = {slot.name: self._known[slot.name] for slot in domain.search if slot.name in self._known}
        if self._goal == "book":
            for slot in domain.slots:
                if slot.name not in self._known:
                    return self._says(slot.question)
        if self._found is None:
            return self._calls("find", search)
        if not self._found:
            return self._says("sorry , nothing fits .")
        if self._goal == "ask":
            return self._says(f"yes , {self._found} .")
        details = {slot.name: self._known[slot.name] for slot in domain.details}
        if not self._agreed and "hasty" not in self._lapses:
            return self._says(f"shall i book {self._found} ?")
        self._agreed = False
        return self._calls("book", {"id": self._found, **details})

    def _existing(self) -> str:
        assert self._domain is not None
        if not self._reference:
            return self._says("which booking ?")
        if self._goal == "cancel" and not self._shown and "blind" not in self._lapses:
            return self._calls("show", {"ref": self._reference})
        if self._fixed:
            return self._says(f"sorry , i cannot cancel {self._reference} .")
        if not self._agreed and "hasty" not in self._lapses:
            return self._says(f"shall i {self._goal} {self._reference} ?")
        self._agreed = False
        changes = self._known if self._goal == "change" else {}
        return self._calls(self._goal, {"ref": self._reference, **changes})

    def _says(self, text: str) -> str:
        greet = not self._spoke and "curt" not in self._lapses
        self._spoke = True
        return f"hello , {text}" if greet else text

    def _calls(self, name: str, arguments: dict[str, str]) -> str:
        return write_call(ToolCall(name, arguments), self._form)
