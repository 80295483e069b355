"""An expert that knows only what it has read, so that what it does can be imitated.

It looks for the task's object in the order in which the room lists its receptacles, those that commonly hold such an object first
(the common sense of ALFWorld's `VAL_RECEPTACLE_OBJECTS`, which says nothing of this room), remembers everything it has seen on the
way, and then cleans, heats, cools, places or lights as the task says.
"""

import re
from collections import Counter

from gradprism.environments.alfworld.generator import TOOL, constants
from gradprism.environments.protocol import Step
from gradprism.runtime.errors import EnvironmentPlayError

THING = r"([a-z]+ \d+)"
SEEN = re.compile(rf"\ban? {THING}")
CONTENTS = re.compile(rf"(?:On the|The) {THING}(?:,| is open\. In it,) you see (.*?)\.(?: |$)")
CLOSED = re.compile(rf"The {THING} is closed\.")
# Goal sentences of ALFWorld's templates -> (task type, object, receptacle or lamp).
GOALS = [
    (
        re.compile(r"(?:put a clean (?P<o>\w+) in|clean some (?P<o2>\w+) and put it in) (?P<r>\w+)"),
        "pick_clean_then_place_in_recep",
    ),
    (re.compile(r"(?:put a hot (?P<o>\w+) in|heat some (?P<o2>\w+) and put it in) (?P<r>\w+)"), "pick_heat_then_place_in_recep"),
    (re.compile(r"(?:put a cool (?P<o>\w+) in|cool some (?P<o2>\w+) and put it in) (?P<r>\w+)"), "pick_cool_then_place_in_recep"),
    (re.compile(r"(?:put two (?P<o>\w+) in|find two (?P<o2>\w+) and put them in) (?P<r>\w+)"), "pick_two_obj_and_place"),
    (re.compile(r"(?:look at (?P<o>\w+) under the|examine the (?P<o2>\w+) with the) (?P<r>\w+)"), "look_at_obj_in_light"),
    (re.compile(r"(?:put a (?P<o>\w+) in|put some (?P<o2>\w+) on) (?P<r>\w+)"), "pick_and_place_simple"),
]
SEARCH_STEPS = 40  # of 50 in all
VERB = dict(zip(TOOL, ("clean", "heat", "cool"), strict=True))


def parse_goal(text: str) -> tuple[str, str, str]:
    """Task type, object and destination (or lamp) of a templated goal; raises `EnvironmentPlayError`."""
    for pattern, task_type in GOALS:
        match = pattern.fullmatch(text)
        if match:
            return task_type, match["o"] or match["o2"], match["r"]
    raise EnvironmentPlayError(f"the expert does not know the goal {text!r}; it reads ALFWorld's templated goals only")


def kind(thing: str) -> str:
    """`cabinet 3` -> `cabinet`."""
    return thing.split()[0]


class AlfworldExpert:
    """Plays one episode: call `act` with each observation in turn."""

    def __init__(self) -> None:
        self.contents: dict[str, list[str]] = {}  # receptacle -> what was last seen in it; absent: never looked into
        self.closed: set[str] = set()
        self.here = ""
        self.held = ""
        self.prepared = False  # the held object is clean, hot or cool as the task wants
        self.last_action = ""

    def act(self, step: Step) -> str:
        """The next action after the observation; raises `EnvironmentPlayError` when everything was searched in vain."""
        if not self.last_action:
            self._begin(step.observation)
        else:
            self._read(step.observation)
        self.last_action = self._decide()
        return self.last_action

    def _begin(self, observation: str) -> None:
        room, _, goal = observation.partition("Your task is to: ")
        self.task_type, self.target, self.destination = parse_goal(goal.strip().rstrip("."))
        listed = SEEN.findall(room)
        c = constants()
        proper = {name.lower(): name for name in [*c.OBJECTS_SET, *c.RECEPTACLES]}
        wanted = proper.get(self.target, self.target)
        common = {r.lower() for r, held in c.VAL_RECEPTACLE_OBJECTS.items() if wanted in held}
        self.receptacles = listed
        # A room that can be searched whole is searched in its own order (the sort is stable). In a larger one, kinds of which there are
        # few come first: an object is about as likely to lie in the one fridge as in any of twenty cabinets.
        counts = Counter(map(kind, listed))
        closable = {name.lower() for name in c.OPENABLE_CLASS_SET}
        whole = sum(2 if kind(r) in closable else 1 for r in listed)
        self.search = sorted(listed, key=lambda r: (kind(r) not in common, counts[kind(r)] if whole > SEARCH_STEPS else 0))

    def _read(self, observation: str) -> None:
        action = self.last_action
        if action.startswith("go to "):
            self.here = action.removeprefix("go to ")
        closed = CLOSED.search(observation)
        if closed:
            self.closed.add(closed[1])
        seen = CONTENTS.search(observation)
        if seen:
            self.closed.discard(seen[1])
            self.contents[seen[1]] = SEEN.findall(seen[2])
        if observation.startswith("You pick up"):
            self.held, self.prepared = action.removeprefix("take ").split(" from ")[0], False
            self.contents[self.here].remove(self.held)
        elif observation.startswith("You move"):
            self.contents.setdefault(self.here, []).append(self.held)
            self.held = ""
        elif observation.startswith(("You clean", "You heat", "You cool")):
            self.prepared = True

    def _decide(self) -> str:
        if not self.held:
            source = self._known(self.target)
            if source is None:
                return self._explore()
            wanted = next(o for o in self.contents[source] if kind(o) == self.target)
            return self._at(source) or f"take {wanted} from {source}"
        if self.task_type == "look_at_obj_in_light":
            source = self._known(self.destination)
            if source is None:
                return self._explore()
            return self._at(source) or f"use {next(o for o in self.contents[source] if kind(o) == self.destination)}"
        if self.task_type in TOOL and not self.prepared:
            tool = next(r for r in self.receptacles if kind(r) == TOOL[self.task_type][1].lower())
            return self._at(tool) or f"{VERB[self.task_type]} {self.held} with {tool}"
        # The second of two objects goes where the first one went.
        places = [r for r in self.receptacles if kind(r) == self.destination]
        place = next((r for r in places if any(kind(o) == self.target for o in self.contents.get(r, ()))), places[0])
        if self.here == place and place in self.closed:
            return f"open {place}"
        return self._at(place) or f"move {self.held} to {place}"

    def _at(self, receptacle: str) -> str:
        return "" if self.here == receptacle else f"go to {receptacle}"

    def _known(self, wanted: str) -> str | None:
        """A receptacle that is known to hold a `wanted` object that still has to be moved."""
        for receptacle, things in self.contents.items():
            # One that lies where it belongs still has to be moved if it was to be cleaned, heated or cooled first.
            done = kind(receptacle) == self.destination and self.task_type not in TOOL
            if not done and any(kind(thing) == wanted for thing in things):
                return receptacle
        return None

    def _explore(self) -> str:
        if self.here in self.closed and self.here not in self.contents:
            return f"open {self.here}"
        for receptacle in self.search:
            if receptacle not in self.contents:
                return self._at(receptacle) or f"examine {receptacle}"
        raise EnvironmentPlayError(f"the expert looked everywhere and found no {self.target!r} to use")
