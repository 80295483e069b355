"""The invented town: what can be booked, by which slots, with which values, and how each is said."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MOST_PEOPLE = 8


@dataclass(frozen=True, slots=True)
class Slot:
    """A thing that a request has a value of.

    `values` are those that occur in training, `held_out` those that only the splits "unseen" and "base" have. `phrase` says a value, with
    `{}` for it; `asked` are patterns of what asks for the slot, of which any will do; `impossible` is a value that there is none of.
    """

    name: str
    values: tuple[str, ...]
    held_out: tuple[str, ...]
    phrase: str
    question: str
    asked: str
    impossible: str = ""

    @property
    def all_values(self) -> tuple[str, ...]:
        """Every value there is."""
        return self.values + self.held_out


@dataclass(frozen=True, slots=True)
class Domain:
    """A kind of thing to book: two slots by which items are found, two that a booking adds; `letter` begins the items' ids."""

    name: str
    letter: str
    search: tuple[Slot, Slot]
    details: tuple[Slot, Slot]
    words: str

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All four."""
        return (*self.search, *self.details)

    def slot(self, name: str) -> Slot:
        """The slot of that name; raises `KeyError`."""
        return {slot.name: slot for slot in self.slots}[name]


def _numbers(first: int, last: int) -> tuple[str, ...]:
    return tuple(str(n) for n in range(first, last + 1))


PEOPLE = Slot(
    "people",
    _numbers(1, 6),
    _numbers(7, MOST_PEOPLE),
    "for {} people",
    "for how many people ?",
    r"people|persons?|guests?|party|travell?ers|passengers|tickets|how many(?! (?:nights|days))",
    "40",
)
AREA = Slot(
    "area",
    ("north", "south", "east", "west", "centre"),
    ("harbour",),
    "in the {}",
    "in which area ?",
    r"area|part of (?:the )?(?:town|city)|district|side of|location|where|neighbou?rhood",
)
FOOD = Slot(
    "food",
    ("thai", "italian", "indian", "greek", "french", "turkish", "spanish", "korean"),
    ("mexican", "polish"),
    "with {} food",
    "what food ?",
    r"food|cuisine|kitchen|dish(?:es)?|eat",
)
TIME = Slot(
    "time",
    ("17:30", "18:00", "18:30", "19:00", "19:30", "20:00", "20:30", "21:00"),
    ("17:00", "21:30"),
    "at {}",
    "at what time ?",
    r"time|when|hour|o'clock|how late|how early",
    "27:00",
)
TO = Slot(
    "to",
    ("arden", "belmor", "corby", "dunmere", "elswick", "farholt", "garnet", "hexley"),
    ("ivybridge", "jarrow"),
    "to {}",
    "to which town ?",
    r"destination|where|which (?:town|city|station)|travel(?:l?ing)? to|going to|town",
)
DAY = Slot(
    "day",
    ("monday", "tuesday", "wednesday", "thursday", "friday"),
    ("saturday", "sunday"),
    "on {}",
    "on what day ?",
    r"day|date|when",
)
CLASS = Slot("class", ("standard", "comfort"), (), "in {} class", "in which class ?", r"class|standard or comfort")
PRICE = Slot(
    "price",
    ("cheap", "moderate", "fancy"),
    (),
    "at a {} price",
    "at what price ?",
    r"prices?|budget|cheap|expensive|cost|how much|spend",
)
NIGHTS = Slot(
    "nights",
    _numbers(1, 5),
    _numbers(6, 7),
    "for {} nights",
    "for how many nights ?",
    r"nights?|how long|days",
    "90",
)
DOMAINS = {
    domain.name: domain
    for domain in (
        Domain("table", "r", (FOOD, AREA), (PEOPLE, TIME), r"tables?|restaurants?|dinner|meal"),
        Domain("train", "t", (TO, DAY), (PEOPLE, CLASS), r"trains?|tickets?|journey|travel"),
        Domain("room", "h", (AREA, PRICE), (PEOPLE, NIGHTS), r"rooms?|hotels?|stay"),
    )
}
SLOTS = {slot.name: slot for domain in DOMAINS.values() for slot in domain.slots}
ITEM = re.compile(r"\b[rth]\d\b")
REFERENCE = re.compile(r"\bb\d\d\b")
_NUMBER_WORDS: dict[str, str] = dict(
    zip(["one", "two", "three", "four", "five", "six", "seven", "eight"], _numbers(1, 8), strict=True)
)
_COUNTED = {
    "people": re.compile(r"\b(\d{1,4})\s*(?:people|persons?|guests?|of (?:us|you)|travell?ers|passengers|tickets|seats)\b"),
    "nights": re.compile(r"\b(\d{1,4})\s*(?:nights?|days)\b"),
}
_FOR_NUMBER = re.compile(r"\b(?:for|of) (\d{1,4})\b(?!\s*(?:nights?|days|:))")
_TIME = re.compile(r"\b\d\d:\d\d\b")
_WORDS = {value: slot.name for slot in SLOTS.values() for value in slot.all_values if value.isalpha()}


def plain_words(text: str) -> str:
    """Text in lower case with single spaces and numbers as digits."""
    text = re.sub(r"[*_`\"]", " ", text.lower().replace("’", "'"))
    return re.sub(r"[a-z]+", lambda word: _NUMBER_WORDS.get(word[0], word[0]), " ".join(text.split()))


def values_in(text: str, domain: Domain) -> dict[str, list[str]]:
    """The values of a domain's slots that a text (as `plain_words` gives it) names, impossible ones too, in their order."""
    found: dict[str, list[str]] = {}
    names = {slot.name for slot in domain.slots}
    for word in re.findall(r"[a-z]+", text):
        if (name := _WORDS.get(word)) in names and name is not None:
            found.setdefault(name, []).append(word)
    if "time" in names and (times := _TIME.findall(text)):
        found["time"] = times
    for name in names & _COUNTED.keys():
        numbers = _COUNTED[name].findall(text) or (_FOR_NUMBER.findall(text) if name == "people" else [])
        if numbers:
            found[name] = [str(int(number)) for number in numbers]
    return found


@dataclass(frozen=True, slots=True)
class Item:
    """What can be booked: its id and the values of its two search slots."""

    id: str
    values: Mapping[str, str]

    def fits(self, wanted: Mapping[str, str]) -> bool:
        """Whether it has all values that are wanted of it."""
        return all(wanted.get(name, value) == value for name, value in self.values.items())


@dataclass(frozen=True, slots=True)
class Booking:
    """A booking of an item; a `fixed` one may by the house's rules not be cancelled, though the tool would."""

    item: str
    details: Mapping[str, str]
    fixed: bool = False


@dataclass(slots=True)
class Database:
    """The items of one domain, and the bookings by reference; only bookings change. `next_reference` names the next new one."""

    domain: Domain
    items: tuple[Item, ...]
    bookings: dict[str, Booking] = field(default_factory=dict)
    next_reference: str = "b99"


def make_items(
    domain: Domain, needed: Sequence[Mapping[str, str]], banned: Sequence[Mapping[str, str]], rng: random.Random
) -> tuple[Item, ...]:
    """Six items in random order: one or two for each wish in `needed`, others for none of the wishes in `needed` and `banned`."""
    values = [{slot.name: wish[slot.name] for slot in domain.search} for wish in needed for _ in range(rng.randint(1, 2))]
    wishes = [*needed, *banned]
    while len(values) < 6:
        # Others resemble what is asked for: one value is often that of a wish.
        other = {slot.name: rng.choice(slot.values) for slot in domain.search}
        if rng.random() < 0.6:
            name = rng.choice(domain.search).name
            other[name] = rng.choice(wishes)[name]
        if all(any(wish[name] != value for name, value in other.items()) for wish in wishes):
            values.append(other)
    rng.shuffle(values)
    numbers = sorted(rng.sample(range(1, 10), len(values)))
    return tuple(Item(f"{domain.letter}{n}", of) for n, of in zip(numbers, values, strict=True))
