"""Tasks: what a user wants, how its mind changes, what the database holds, and which bookings are to be there in the end.

All of it follows from a seed and the task's id. Goals of different splits differ: the four values that a user wants decide by a hash
which of the splits may have them.
"""

import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from gradprism.environments.dialogue.world import DOMAINS, Booking, Database, Domain, Item, make_items
from gradprism.runtime.errors import ConfigError

TWISTS = ("plain", "change", "misunderstanding", "none", "cancel", "wrong_tool")
SIZES = {"train": 2000, "dev": 600, "seen": 600, "unseen": 600, "base": 12000}
# The combinations that only "unseen" has: each twist is left out in one domain.
HELD_OUT = {
    ("room", "plain"),
    ("train", "change"),
    ("table", "misunderstanding"),
    ("train", "none"),
    ("room", "cancel"),
    ("table", "wrong_tool"),
}
_BUCKETS = {"train": (0, 1, 2, 3), "dev": (4, 5), "seen": (6, 7), "unseen": (6, 7), "base": (8, 9)}
VARIANTS = {
    "plain": ("book",),
    "change": ("before_booking", "after_booking"),
    "misunderstanding": ("other_answer", "impossible"),
    "none": ("alternative", "declined"),
    "cancel": ("existing", "midway"),
    "wrong_tool": ("change_existing", "fixed", "only_asking"),
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """One task. `variant` is one of its twist's.

    `wants` are the values that the user has in mind at first, of which `told` come in the opening; `revision` is the value, and its slot,
    that replaces one of them when the twist comes about. `stumble` is the slot that a misunderstanding user fails to answer at first, with
    what it says of which slot instead. `reference` is the user's own booking, if it has one. `par` turns are enough.
    """

    id: str
    domain: Domain
    twist: str
    variant: str
    wants: Mapping[str, str]
    told: tuple[str, ...]
    items: tuple[Item, ...]
    bookings: Mapping[str, Booking]
    next_reference: str
    par: int
    reference: str = ""
    reference_told: bool = True
    revision: tuple[str, str] | None = None
    stumble: tuple[str, str, str] | None = None

    @property
    def final_wants(self) -> dict[str, str]:
        """The values wanted in the end."""
        return {**self.wants, **dict([self.revision] if self.revision else [])}

    @property
    def goal(self) -> str:
        """How it is to end: book, change or cancel a booking, or keep all bookings as they are."""
        if self.twist == "cancel":
            return "cancel" if self.variant == "existing" else "keep"
        if self.twist == "wrong_tool":
            return "change" if self.variant == "change_existing" else "keep"
        return "keep" if self.variant == "declined" else "book"

    def database(self) -> Database:
        """A new database as it is in the beginning."""
        return Database(self.domain, self.items, dict(self.bookings), self.next_reference)


def place(split: str, number: int) -> tuple[str, str]:
    """Domain and twist of a split's task: the twists take turns, so that a share of any size has all of them.

    Of "unseen", every second round of twists has combinations that are held out, the others values that are.
    """
    twist, turn = TWISTS[number % len(TWISTS)], number // len(TWISTS)
    held_out = [name for name in DOMAINS if (name, twist) in HELD_OUT]
    known = [name for name in DOMAINS if (name, twist) not in HELD_OUT]
    if split == "unseen":
        return (held_out[turn // 2 % len(held_out)] if turn % 2 == 0 else known[turn // 2 % len(known)]), twist
    return known[turn % len(known)], twist


def parse_id(task_id: str) -> tuple[str, int]:
    """Split and number of an id such as `train/17`; raises `ConfigError`."""
    split, _, number = task_id.partition("/")
    if split not in SIZES or not (number.isascii() and number.isdecimal() and len(number) < 9) or int(number) >= SIZES[split]:
        raise ConfigError(
            f"task {task_id!r}: environment 'dialogue' has none of that id; they are such as train/0 to train/{SIZES['train'] - 1}"
        )
    return split, int(number)


def make_scenario(task_id: str, seed: int) -> Scenario:
    """The task of an id; raises `ConfigError` for an unknown one."""
    split, number = parse_id(task_id)
    name, twist = place(split, number)
    domain, rng = DOMAINS[name], random.Random(f"{seed}/{split}/{number}")
    new_values = split == "unseen" and (name, twist) not in HELD_OUT
    while True:
        wants = _wants(domain, split == "base", new_values, rng)
        if zlib.crc32(f"{name} {' '.join(wants.values())}".encode()) % 10 in _BUCKETS[split]:
            break
    return _with_twist(task_id, domain, twist, wants, rng)


def _wants(domain: Domain, any_value: bool, new_values: bool, rng: random.Random) -> dict[str, str]:
    wants = {slot.name: rng.choice(slot.all_values if any_value else slot.values) for slot in domain.slots}
    if new_values:
        kinds = [slot for slot in domain.slots if slot.held_out]
        for slot in rng.sample(kinds, rng.randint(1, 2)):
            wants[slot.name] = rng.choice(slot.held_out)
    return wants


def _with_twist(task_id: str, domain: Domain, twist: str, wants: dict[str, str], rng: random.Random) -> Scenario:
    variant = rng.choice(VARIANTS[twist])
    names = [slot.name for slot in domain.slots]
    told = rng.sample(names, rng.randint(1, 3))
    revision, stumble, needed, banned = None, None, [wants], []
    if twist == "change":
        revision = _revision(domain, wants, variant == "after_booking", rng)
        needed = [wants, {**wants, revision[0]: revision[1]}]
    elif twist == "none":
        if variant == "alternative":
            slot = rng.choice(domain.search)
            revision = (slot.name, rng.choice([value for value in slot.values if value != wants[slot.name]]))
            needed, banned = [{**wants, revision[0]: revision[1]}], [wants]
        else:
            needed, banned = [], [wants]
    elif twist == "misunderstanding":
        slots = [slot for slot in domain.slots if slot.impossible or variant == "other_answer"]
        slot = rng.choice(slots)
        told = [name for name in told if name != slot.name]
        if variant == "impossible":
            stumble = (slot.name, slot.name, slot.impossible)
        else:
            other = rng.choice([name for name in names if name != slot.name])
            stumble = (slot.name, other, wants[other])
    elif variant == "change_existing":
        revision = _revision(domain, wants, True, rng)
    if variant == "only_asking":
        told = [slot.name for slot in domain.search]
    items = make_items(domain, needed, banned, rng)
    references = [f"b{n}" for n in rng.sample(range(10, 100), 4)]
    bookings = {ref: _booking(domain, rng.choice(items).id, rng) for ref in references[:2]}
    own = variant in ("existing", "change_existing", "fixed")
    if own:
        item = rng.choice([item for item in items if item.fits(wants)])
        bookings[references[2]] = Booking(item.id, _details(domain, wants), variant == "fixed")
    return Scenario(
        task_id,
        domain,
        twist,
        variant,
        wants,
        tuple(name for name in names if name in told),
        items,
        dict(sorted(bookings.items())),
        references[3],
        _par(variant, len(names) - len(told)),
        references[2] if own else "",
        rng.random() < 0.5,
        revision,
        stumble,
    )


def _par(variant: str, hidden: int) -> int:
    """Turns that are enough: a question for each hidden value, looking up, a proposal, the booking, goodbye, and what the twist adds."""
    if variant in ("existing", "change_existing", "fixed"):
        return {"existing": 5, "change_existing": 5, "fixed": 3}[variant]
    if variant == "only_asking":
        return 2
    return hidden + {
        "before_booking": 6,
        "after_booking": 7,
        "other_answer": 5,
        "impossible": 5,
        "alternative": 6,
        "declined": 2,
        "midway": 3,
    }.get(variant, 4)


def _revision(domain: Domain, wants: Mapping[str, str], details: bool, rng: random.Random) -> tuple[str, str]:
    """Another value for a slot; of bookings that are made only details change."""
    slot = rng.choice(domain.details if details else domain.slots)
    return slot.name, rng.choice([value for value in slot.values if value != wants[slot.name]])


def _details(domain: Domain, values: Mapping[str, str]) -> dict[str, str]:
    return {slot.name: values[slot.name] for slot in domain.details}


def _booking(domain: Domain, item: str, rng: random.Random) -> Booking:
    return Booking(item, {slot.name: rng.choice(slot.values) for slot in domain.details}, rng.random() < 0.3)
