"""The simulated user: rules by which it understands what an agent says, and templates with which it answers.

It depends on the task and on what was done so far alone: which of its ways of saying something it takes is drawn by the task's id.
"""

import random
import re
from dataclasses import dataclass, field

from gradprism.environments.dialogue.scenarios import Scenario
from gradprism.environments.dialogue.world import ITEM, REFERENCE, Slot, plain_words, values_in
from gradprism.trajectories.record import ToolCall

PATIENCE = 3  # useless turns after which a user leaves
_GREETING = re.compile(r"\b(hello|hi|hey|welcome|good (?:morning|afternoon|evening|day)|greetings)\b")
_CLOSING = re.compile(r"\b(good ?bye|bye|have a (?:nice|good|great|lovely|pleasant|wonderful)|anything else|farewell|all set)\b")
_RUDE = re.compile(
    r"\b(shut up|stupid|idiot|dumb|hurry up|whatever|nonsense|moron|annoying|go away|damn|hell|fool|silly|your fault)\b"
)
_WH = re.compile(r"\b(what|which|how many|how much|how long|how late|when|where|who)\b")
_REQUEST = re.compile(
    r"\b(tell me|let me know|please (?:give|share|provide|specify|say)|may i (?:have|know|ask)"
    r"|(?:can|could) you (?:please )?(?:give|tell|share|provide))\b"
)
_NOTHING = re.compile(
    r"\b(nothing|none|unfortunately|not available|unavailable|fully booked|sold out|not possible|impossible|not allowed"
    r"|no (?:such |other |suitable |matching |available )?(?:table|train|room|restaurant|hotel|ticket|place|option|result|match)\w*"
    r"|(?:can ?not|can't|could not|couldn't|am unable to|unable to|may not) (?:\w+ ){0,2}?(?:cancel|find|book|change|refund|offer|do))\b"
)
_VERBS = {
    "cancel": re.compile(r"\bcancel"),
    "change": re.compile(r"\b(change|move|update|switch|modify|reschedule)"),
    "book": re.compile(r"\b(book(?!ing number|ing reference)|reserve|take|buy)"),
}
_OFFER = re.compile(
    r"\b((?:shall|should|can|may|could|do) (?:i|we)|do you want me|would you like me|i (?:will|can|would)|i'll|confirm|is (?:that|this|it)"
    r"|are you sure|ok(?:ay)?|right|correct)\b"
)


@dataclass(slots=True)
class Conduct:
    """What is held of the agent's manners: `greeted` before anything else was said; `repeats` are questions for what was told already;
    `rude` turns; `unconfirmed` writes, which the user had not said yes to."""

    greeted: bool = False
    repeats: int = 0
    rude: int = 0
    unconfirmed: int = 0
    spoke: bool = False


@dataclass(slots=True)
class User:
    """One user in one conversation. `wants` are its wishes now; `told` the slots whose values the agent has heard.

    `settled`: what it came for is dealt with, where no booking shows it. `agreed` is what it last said yes to: a verb, and the id or
    reference that was named (empty: none was). `looked` are the tools that the agent has used with success.
    """

    scenario: Scenario
    seed: int
    wants: dict[str, str] = field(init=False)
    told: set[str] = field(init=False)
    reference_told: bool = field(init=False)
    revised: bool = False
    stumbled: bool = False
    settled: bool = False
    dropped: bool = False
    gone: bool = False
    useless: int = 0
    agreed: tuple[str, str] | None = None
    looked: set[str] = field(default_factory=set)
    conduct: Conduct = field(default_factory=Conduct)

    def __post_init__(self) -> None:
        self.wants, self.told = dict(self.scenario.wants), set()
        self.reference_told = False

    def opening(self) -> str:
        """What it says first."""
        scenario, domain = self.scenario, self.scenario.domain
        hello = self._pick("hello ,", "hi ,", "good day ,")
        if scenario.reference:
            self.reference_told = scenario.reference_told
            which = f"booking {scenario.reference}" if scenario.reference_told else "booking"
            if scenario.revision:
                self.revised = True
                slot, value = scenario.revision
                self.wants[slot] = value
                ask = self._pick("please make it", "i need it")
                return f"{hello} my {domain.name} : {ask} {self._say(slot)} , not {scenario.wants[slot]} . {which} ."
            return f"{hello} {self._pick('please cancel', 'i have to cancel', 'i want to cancel')} my {domain.name} {which} ."
        self.told = set(scenario.told)
        phrases = " ".join(self._say(name) for name in scenario.told)
        if scenario.variant == "only_asking":
            return f"{hello} {self._pick('just a question', 'i am only asking')} : is there a {domain.name} {phrases} ?"
        return f"{hello} {self._pick('i would like', 'i need', 'i want')} a {domain.name} {phrases} ."

    def hears_call(self, call: ToolCall, done: bool) -> None:
        """Takes note of a tool that was used; a write without its yes breaks a rule."""
        if not done:
            return
        self.looked.add(call.name)
        if call.name in _VERBS:
            key = str(call.arguments.get("id" if call.name == "book" else "ref", ""))
            if self.agreed is None or self.agreed[0] != call.name or self.agreed[1] not in ("", key):
                self.conduct.unconfirmed += 1
            self.agreed = None

    def hears(self, said: str) -> str:
        """Answers words; `gone` is true after a goodbye."""
        text = plain_words(said)
        if not self.conduct.spoke:
            self.conduct.spoke = True
            self.conduct.greeted = bool(_GREETING.search(text))
        if _RUDE.search(text):
            self.conduct.rude += 1
            return self._useless("that is not polite .")
        asked = self._asked(text)
        question = "?" in text or _WH.search(text) or _REQUEST.search(text)
        if _NOTHING.search(text) and not (asked and _WH.search(text)):
            return self._hears_nothing()
        verb = self._verb(text)
        if verb and not _WH.search(text) and (_OFFER.search(text) or "?" in text):
            return self._hears_offer(verb, text)
        if asked and question:
            return self._answers(asked)
        if "?" in text and (ITEM.search(text) or REFERENCE.search(text)):
            return self._hears_offer("book" if ITEM.search(text) else self.scenario.goal, text)
        if question and not _CLOSING.search(text) and (named := values_in(text, self.scenario.domain)):
            return self._checks(named)
        if self.scenario.variant == "only_asking" and "find" in self.looked and ITEM.search(text):
            return self._leaves(self._pick("good to know , thank you .", "thank you , that is all ."), True)
        if _CLOSING.search(text):
            return self._hears_closing()
        if _GREETING.search(text) and len(text) < 60:
            return self._again()
        return self._useless("sorry , i do not understand .")

    def has_to_go(self) -> str:
        """What it says when the conversation has become too long."""
        return self._leaves("sorry , i have to go .", False)

    def _asked(self, text: str) -> list[str]:
        """The slots that a text asks for, and `ref`; words that say a value do not ask for its slot."""
        scenario = self.scenario
        found = [slot.name for slot in scenario.domain.slots if re.search(rf"\b(?:{slot.asked})\b", text)]
        # `where` and `when` fit several: what names a slot itself goes before.
        sharp = [name for name in found if re.search(rf"\b{name}s?\b", text)]
        if scenario.reference and re.search(r"\b(booking|reference|reservation|confirmation|number)\b", text):
            return ["ref"]
        named = values_in(text, scenario.domain)
        return [name for name in (sharp or found) if name not in named or _WH.search(text)]

    def _verb(self, text: str) -> str:
        return next((verb for verb, pattern in _VERBS.items() if pattern.search(text)), "")

    def _answers(self, asked: list[str]) -> str:
        scenario = self.scenario
        if asked == ["ref"]:
            if self.reference_told:
                return self._repeats(f"i said {scenario.reference} .")
            self.reference_told = True
            return f"{self._pick('it is', 'my number is')} {scenario.reference} ."
        if scenario.reference:
            return (
                self._useless("it is as it was booked .")
                if not scenario.revision
                else self._repeats(f"{self._say(scenario.revision[0])} .")
            )
        if scenario.variant == "only_asking":
            return self._repeats("i am only asking .") if set(asked) & self.told else self._useless("i am only asking .")
        new = [name for name in asked if name not in self.told]
        if not new:
            return self._repeats(f"{self._pick('i said', 'as i said')} {' '.join(self._say(name) for name in asked)} .")
        if scenario.stumble and not self.stumbled and scenario.stumble[0] in new:
            self.stumbled = True
            slot, other, value = scenario.stumble
            if other != slot:
                self.told.add(other)
            return f"{self._phrase(other, value)} ."
        self.told |= set(new)
        return f"{' '.join(self._say(name) for name in new)} {self._pick('.', ', please .', ', thank you .')}"

    def _hears_nothing(self) -> str:
        scenario = self.scenario
        if scenario.variant == "fixed":
            if "show" not in self.looked:
                return self._useless("please check my booking first .")
            return self._leaves(self._pick("i see .", "all right then ."), True)
        if self.dropped:
            return self._hears_closing()
        if "find" not in self.looked:
            return self._useless("please check that first ." if scenario.reference else "please look first .")
        if scenario.variant == "alternative" and not self.revised:
            slot = self._revise()
            return f"{self._pick('then', 'what about')} {self._say(slot)} {self._pick('.', ', please .')}"
        if scenario.variant == "declined":
            return self._leaves(self._pick("then never mind .", "no matter , i will not come then ."), True)
        return self._leaves("what a pity .", False)

    def _hears_offer(self, verb: str, text: str) -> str:
        scenario = self.scenario
        goal = {"keep": "cancel" if scenario.variant == "fixed" else "book"}.get(scenario.goal, scenario.goal)
        if self.revised and scenario.variant == "after_booking" and "book" in self.looked:
            goal = "change"
        if scenario.variant == "only_asking":
            return self._useless("no , i am only asking .")
        if self.dropped:
            return self._useless("no , never mind .")
        if verb != goal:
            return self._useless(f"no , please {goal} it .")
        if scenario.reference and (named := REFERENCE.findall(text)) and scenario.reference not in named:
            return self._useless("no , not that one .")
        if scenario.variant == "before_booking" and not self.revised:
            slot = self._revise()
            return f"{self._pick('wait , make it', 'oh , rather')} {self._say(slot)} ."
        if scenario.variant == "midway":
            self.dropped = self.settled = True
            return self._pick("no , never mind .", "sorry , i have changed my mind . no , thank you .")
        named = values_in(text, scenario.domain)
        wrong = [
            name
            for name, values in named.items()
            if self.wants[name] not in values and not (scenario.reference and not scenario.revision)
        ]
        if wrong:
            self.told |= set(wrong)
            return f"no , {' '.join(self._say(name) for name in wrong)} ."
        keys = ITEM.findall(text) if verb == "book" else REFERENCE.findall(text)
        self.agreed = (verb, keys[0] if keys else "")
        self.told |= set(named)
        return self._pick("yes , please .", "yes .", "that is right , yes .")

    def _checks(self, named: dict[str, list[str]]) -> str:
        """A question such as `for 2 people ?`."""
        wrong = [name for name, values in named.items() if self.wants[name] not in values]
        known = set(named) <= self.told
        self.told |= set(named)
        answer = f"no , {' '.join(self._say(name) for name in wrong)} ." if wrong else "yes ."
        return self._repeats(answer) if known and not wrong else answer

    def _hears_closing(self) -> str:
        if self.scenario.variant == "after_booking" and not self.revised and "book" in self.looked:
            slot = self._revise()
            return f"{self._pick('wait , make it', 'one moment : please make it')} {self._say(slot)} ."
        return self._leaves(self._pick("thank you .", "thanks ."), self.settled)

    def _again(self) -> str:
        """The request once more, for an agent that only greets."""
        domain = self.scenario.domain
        if self.scenario.reference:
            return self._useless(f"it is about my {domain.name} .")
        return self._useless(
            f"a {domain.name} {' '.join(self._say(slot.name) for slot in domain.slots if slot.name in self.told)} , please ."
        )

    def _revise(self) -> str:
        assert self.scenario.revision is not None
        self.revised = True
        slot, value = self.scenario.revision
        self.wants[slot] = value
        self.told.add(slot)
        return slot

    def _repeats(self, answer: str) -> str:
        self.conduct.repeats += 1
        return self._useless(answer)

    def _useless(self, answer: str) -> str:
        self.useless += 1
        return self._leaves(answer, False) if self.useless >= PATIENCE else answer

    def _leaves(self, answer: str, settled: bool) -> str:
        self.gone, self.settled = True, self.settled or settled
        return f"{answer} goodbye ."

    def _say(self, name: str) -> str:
        return self._phrase(name, self.wants[name])

    def _phrase(self, name: str, value: str) -> str:
        slot: Slot = self.scenario.domain.slot(name)
        return slot.phrase.format(value)

    def _pick(self, *ways: str) -> str:
        return random.Random(f"{self.seed}/{self.scenario.id}/{ways[0]}").choice(ways)
