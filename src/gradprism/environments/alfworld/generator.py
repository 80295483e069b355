"""Generates ALFWorld games that the real engine plays, from nothing but what the `alfworld` wheel ships.

A game is a PDDL problem over ALFWorld's own domain: a room taken from one of the 120 AI2-THOR floor plans (which receptacles it
has and which may be opened), objects placed where ALFWorld's constants allow them, and a goal of one of the six task types. Every game is
solvable by construction: the goal's objects exist, outside the goal's receptacle, and whatever the task needs (sink, microwave,
fridge, lamp) is in the room. The game's name fixes it entirely: same name, same bytes.
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gradprism.runtime.errors import ConfigError, MissingDependencyError

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
# "seen" and "dev" games play in training rooms, "unseen" ones in test rooms; "base" is for training the shipped base model. A split's name
# is part of a game's seed, so no two splits share a game.
SPLITS = ("train", "dev", "seen", "unseen", "base")

TOOL = {
    "pick_clean_then_place_in_recep": ("Cleanable", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("Heatable", "Microwave"),
    "pick_cool_then_place_in_recep": ("Coolable", "Fridge"),
}
# Receptacles that stand in a room more than once but are not in the floor plan's list of openable or reachable ones.
COPIES = {"StoveBurner": 4, "HandTowelHolder": 2}
# Types that the constants list as objects although nobody can pick them up.
FIXED = frozenset(
    {"Bathtub", "Blinds", "Boots", "Chair", "Curtains", "DeskLamp", "Faucet", "FloorLamp", "Footstool", "HousePlant", "Lamp"}
    | {"LaundryHamperLid", "LightSwitch", "Mirror", "Painting", "Poster", "ScrubBrush", "ShowerDoor", "ShowerGlass", "Sink"}
    | {"StoveKnob", "Television", "Window"}
)
LAMPS = ("DeskLamp", "FloorLamp")
LAMP_SUPPORTS = ("Desk", "SideTable", "Dresser", "DiningTable", "CoffeeTable")


@dataclass(frozen=True, slots=True)
class Difficulty:
    """The size of a room: from and to how many receptacles and distractor objects, `None` for all that the floor plan has."""

    receptacles: tuple[int, int] | None
    distractors: tuple[int, int] | None


DIFFICULTIES = {
    "tiny": Difficulty(receptacles=(4, 6), distractors=(3, 5)),
    "small": Difficulty(receptacles=(6, 9), distractors=(5, 8)),
    "full": Difficulty(receptacles=None, distractors=None),
}


@dataclass(frozen=True, slots=True)
class Game:
    """One game. `goal` is the sentence that ALFWorld's grammar shows after "Your task is to:"; of a generated game the rest is known."""

    name: str
    task_type: str
    goal: str
    pddl_problem: str
    floor_plan: int = 0
    target: str = ""
    destination: str = ""
    lamp: str = ""


_OWN_DIFFICULTY = re.compile(r"r(\d{1,3})-(\d{1,3})d(\d{1,3})-(\d{1,3})")


def parse_difficulty(name: str) -> Difficulty:
    """`tiny`, `small`, `full`, or your own as `r<least>-<most>d<least>-<most>`: receptacles, and objects that are not needed.

    Raises `ConfigError`. Whatever a task needs is added to a room whose bounds would leave no place for it.
    """
    if name in DIFFICULTIES:
        return DIFFICULTIES[name]
    match = _OWN_DIFFICULTY.fullmatch(name)
    if match is None:
        raise ConfigError(f"difficulty {name!r}: choose one of {sorted(DIFFICULTIES)}, or bounds such as r4-6d3-5")
    low, high, fewest, most = map(int, match.groups())
    if not 1 <= low <= high or not fewest <= most:
        raise ConfigError(f"difficulty {name!r}: bounds must ascend, with at least one receptacle")
    return Difficulty((low, high), (fewest, most))


def list_games(difficulty: str, split: str, count: int, start: int = 0, task_type: str | None = None) -> list[str]:
    """Names of `count` games from index `start` of each type on: the six types in turn, or one only."""
    types = TASK_TYPES if task_type is None else (task_type,)
    return [f"{difficulty}/{split}/{types[i % len(types)]}/{start + i // len(types)}" for i in range(count)]


def generate(name: str) -> Game:
    """The game that `name` fixes; raises `ConfigError` for a name that fixes none."""
    difficulty, split, task_type, _ = parse_name(name)
    # A drawn room may lack what the task needs: draw again, from a seed that still depends on the name alone.
    for attempt in range(1000):
        game = _Draft(name, parse_difficulty(difficulty), split, task_type, random.Random(f"{name}#{attempt}")).build()
        if game is not None:
            return game
    raise ConfigError(f"game {name!r}: no room of split {split!r} can hold task {task_type!r}")


def parse_name(name: str) -> tuple[str, str, str, int]:
    """Difficulty, split, task type and index of a game's name; raises `ConfigError`."""
    parts = name.split("/")
    if len(parts) != 4 or parts[1] not in SPLITS or parts[2] not in TASK_TYPES or not re.fullmatch(r"\d{1,12}", parts[3], re.ASCII):
        raise ConfigError(
            f"game {name!r}: expected DIFFICULTY/SPLIT/TASK_TYPE/INDEX with difficulty in {sorted(DIFFICULTIES)}, "
            f"split in {list(SPLITS)} and task type in {list(TASK_TYPES)}"
        )
    parse_difficulty(parts[0])
    return parts[0], parts[1], parts[2], int(parts[3])


def constants() -> Any:
    """ALFWorld's own constants module; raises `MissingDependencyError` when the extra is not installed."""
    try:
        import alfworld.gen.constants as module
    except ImportError:
        raise MissingDependencyError("ALFWorld is not installed: pip install 'gradprism[alfworld]'") from None
    return module


@cache
def _floor_plan(number: int) -> tuple[dict[str, list[float]], frozenset[str]]:
    """Reachable receptacles (id -> x, z, rotation, horizon) and all object types of one floor plan."""
    folder = Path(constants().__file__).parent / "layouts"
    openable = json.loads((folder / f"FloorPlan{number}-openable.json").read_text())
    types = json.loads((folder / f"FloorPlan{number}-objects.json").read_text())
    return openable, frozenset(types)


def _rooms(task_type: str, split: str) -> list[int]:
    c = constants()
    numbers = c.TEST_SCENE_NUMBERS if split == "unseen" else c.TRAIN_SCENE_NUMBERS
    return [n for n in numbers if any(n in c.SCENE_TYPE[room] for room in sorted(c.GOALS_VALID[task_type]))]


class _Draft:
    """A room under construction; `build` gives up with None where the drawn room cannot hold the task."""

    def __init__(self, name: str, difficulty: Difficulty, split: str, task_type: str, rng: random.Random) -> None:
        self.c = constants()
        self.name, self.difficulty, self.task_type, self.rng = name, difficulty, task_type, rng
        self.floor_plan = rng.choice(_rooms(task_type, split))
        self.openable, self.types = _floor_plan(self.floor_plan)
        self.receptacles: dict[str, str] = {}  # id -> type
        self.locations: dict[str, str] = {}  # receptacle id -> location id
        self.objects: dict[str, str] = {}  # id -> type
        self.inside: dict[str, str] = {}  # object id -> receptacle id
        self.start = f"loc|0|0|{rng.randrange(4)}|30"

    def build(self) -> Game | None:
        rng, allowed = self.rng, self.c.VAL_RECEPTACLE_OBJECTS
        self._furnish()
        portable = [t for t in sorted(self.types & self.c.OBJECTS_SET) if self._is_portable(t)]
        ability, tool = TOOL.get(self.task_type, ("", ""))
        if tool and tool not in self.receptacles.values():
            return None
        targets = [t for t in portable if not ability or t in self.c.VAL_ACTION_OBJECTS[ability]]
        if not targets:
            return None
        target = rng.choice(targets)
        lamp = destination = ""
        if self.task_type == "look_at_obj_in_light":
            lamps = [t for t in LAMPS if t in self.types]
            supports = [t for t in LAMP_SUPPORTS if t in self.receptacles.values()]
            if not lamps or not supports:
                return None
            lamp, support = rng.choice(lamps), rng.choice(supports)
        else:
            destinations = [t for t in self._holders(target) if t != tool]
            if not destinations:
                return None
            destination = support = rng.choice(destinations)
        self._thin_out(required=[t for t in (support, tool) if t], target=target, destination=destination)

        sources = [t for t in self._holders(target) if t != destination]
        if not sources:
            return None
        least = 2 if self.task_type == "pick_two_obj_and_place" else 1
        for _ in range(rng.randint(least, self.c.MAX_NUM_OF_OBJ_INSTANCES)):
            self._place(target, rng.choice(sources))
        if lamp:
            self._place(lamp, support)
        others = [t for t in portable if t != target and self._holders(t)]
        low, high = self.difficulty.distractors or (len(others), 2 * len(others))
        for _ in range(rng.randint(low, high) if others else 0):
            other = rng.choice(others)
            if sum(t == other for t in self.objects.values()) < self.c.MAX_NUM_OF_OBJ_INSTANCES:
                self._place(other, rng.choice(self._holders(other)))

        import alfworld.gen.goal_library as goals

        entry = goals.gdict[self.task_type]
        goal = rng.choice(entry["templates"]).format(obj=target.lower(), recep=destination.lower(), toggle=lamp.lower())
        goal_pddl = entry["pddl"].format(obj=target, recep=destination, toggle=lamp)
        assert not destination or target in allowed[destination]
        return Game(self.name, self.task_type, goal, self._pddl(goal_pddl, lamp), self.floor_plan, target, destination, lamp)

    def _furnish(self) -> None:
        rng = self.rng
        for rid, (x, z, rotation, horizon) in self.openable.items():
            # One floor plan calls a bathtub's basin a sink's; the text shows the name before the first bar, so that decides.
            kind = rid.split("|")[0] + ("Basin" if rid.endswith("Basin") else "")
            if kind in self.c.RECEPTACLES:
                self._add_receptacle(rid, kind, round(x * 4), round(z * 4), int(rotation) // 90, int(horizon))
        static = self.types & self.c.RECEPTACLES - set(self.receptacles.values()) - self.c.MOVABLE_RECEPTACLES_SET
        for kind in sorted(static):
            for _ in range(COPIES.get(kind, 1)):
                x, z = rng.uniform(-3, 3), rng.uniform(-3, 3)
                base, suffix = (kind[:-5], f"|{kind}") if kind.endswith("Basin") else (kind, "")
                self._add_receptacle(
                    f"{base}|{x:+06.2f}|+00.90|{z:+06.2f}{suffix}", kind, round(x * 4), round(z * 4), rng.randrange(4), 30
                )

    def _add_receptacle(self, rid: str, kind: str, x: int, z: int, rotation: int, horizon: int) -> None:
        # Receptacles that share a location cannot be gone to one by one, so each gets a place of its own.
        location = f"loc|{x}|{z}|{rotation}|{horizon}"
        while location in self.locations.values() or location == self.start:
            x += 1
            location = f"loc|{x}|{z}|{rotation}|{horizon}"
        self.receptacles[rid], self.locations[rid] = kind, location

    def _is_portable(self, kind: str) -> bool:
        immovable = self.c.RECEPTACLES - self.c.MOVABLE_RECEPTACLES_SET
        return kind not in FIXED and kind not in immovable and bool(self._holders(kind))

    def _holders(self, kind: str) -> list[str]:
        """Receptacle types of this room that may hold an object of this type."""
        return [t for t in sorted(set(self.receptacles.values())) if kind in self.c.VAL_RECEPTACLE_OBJECTS.get(t, ())]

    def _thin_out(self, required: list[str], target: str, destination: str) -> None:
        """Keeps one receptacle of each required type, one where the target may lie, and random others up to the difficulty's size."""
        if self.difficulty.receptacles is None:
            return
        rng, ids = self.rng, list(self.receptacles)
        keep = [rng.choice([r for r in ids if self.receptacles[r] == kind]) for kind in required]
        sources = [r for r in ids if self.receptacles[r] in self._holders(target) and self.receptacles[r] != destination]
        keep += rng.sample(sources, min(2, len(sources)))
        size = rng.randint(*self.difficulty.receptacles)
        rest = [r for r in ids if r not in keep]
        keep += rng.sample(rest, min(len(rest), max(0, size - len(set(keep)))))
        self.receptacles = {r: k for r, k in self.receptacles.items() if r in keep}
        self.locations = {r: location for r, location in self.locations.items() if r in keep}

    def _place(self, kind: str, holder: str) -> None:
        rng = self.rng
        oid = f"{kind}|{rng.uniform(-3, 3):+06.2f}|{rng.uniform(0, 2):+06.2f}|{rng.uniform(-3, 3):+06.2f}"
        self.objects[oid] = kind
        self.inside[oid] = rng.choice([r for r, k in self.receptacles.items() if k == holder])

    def _pddl(self, goal: str, lamp: str) -> str:
        object_types, receptacle_types = sorted(set(self.objects.values())), sorted(set(self.receptacles.values()))
        locations = sorted({*self.locations.values(), self.start})
        declarations = [
            "agent1 # agent",
            *(f"{t}Type # otype" for t in object_types),
            *(f"{t}Type # rtype" for t in receptacle_types),
            *(f"{o} # object" for o in self.objects),
            *(f"{r} # receptacle" for r in self.receptacles),
            *(f"{location} # location" for location in locations),
        ]
        facts = [f"(atLocation agent1 {self.start})", *self._receptacle_facts(), *self._object_facts(lamp)]
        facts += [
            f"(canContain {r}Type {o}Type)"
            for r in receptacle_types
            for o in object_types
            if o in self.c.VAL_RECEPTACLE_OBJECTS.get(r, ())
        ]
        text = "(define (problem plan_generated)\n (:domain alfred)\n (:objects\n  {}\n )\n (:init\n  {}\n )\n{}".format(
            "\n  ".join(declarations), "\n  ".join(facts), goal
        )
        for char, word in (("-", "_minus_"), ("|", "_bar_"), ("+", "_plus_"), (".", "_dot_"), (",", "_comma_")):
            text = text.replace(char, word)  # ALFWorld's mangling of AI2-THOR names
        return text.replace("#", "-")

    def _receptacle_facts(self) -> Iterator[str]:
        for rid, kind in self.receptacles.items():
            yield f"(receptacleType {rid} {kind}Type)"
            yield f"(receptacleAtLocation {rid} {self.locations[rid]})"
            if kind in self.c.OPENABLE_CLASS_SET:
                yield f"(openable {rid})"

    def _object_facts(self, lamp: str) -> Iterator[str]:
        for oid, kind in self.objects.items():
            yield f"(objectType {oid} {kind}Type)"
            yield f"(inReceptacle {oid} {self.inside[oid]})"
            yield f"(objectAtLocation {oid} {self.locations[self.inside[oid]]})"
            if kind == lamp:
                yield f"(toggleable {oid})"
                continue
            yield f"(pickupable {oid})"
            for ability in ("Cleanable", "Heatable", "Coolable", "Sliceable"):
                if kind in self.c.VAL_ACTION_OBJECTS[ability]:
                    yield f"({ability.lower()} {oid})"
            if kind in self.c.MOVABLE_RECEPTACLES_SET:
                yield f"(isReceptacleObject {oid})"
