"""Tasks by their ids: which wishes each has follows from its split and number alone.

Train knows eight combinations of kinds of wish, and two of three words, endings and names. `dev` and `seen` ask for the same in other
tasks: which words are asked for together decides to which of the three splits they belong. `unseen` has four other combinations, and the
words, endings and names that train never has. `base` has all combinations, for the corpus of a base model.
"""

import random
from collections.abc import Sequence

from gradprism.environments.stories.wishes import LISTS, NAMES, Wishes
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.files import sha256_json

KNOWN = (
    "words+length",
    "words+ending",
    "words+avoid+name",
    "words+length+name",
    "words+avoid+ending",
    "words+ending+fresh",
    "words+name+fresh",
    "words+avoid+length+fresh",
)
NEW = ("words+length+ending", "words+ending+name", "words+avoid+length+name", "words+ending+name+fresh")
SIZES = {"train": 2400, "dev": 480, "seen": 480, "unseen": 480, "base": 12_000}
SHORTEST, LONGEST = 3, 6  # sentences
NOUNS: tuple[str, ...] = (*LISTS["animals"], *LISTS["things"], *LISTS["places"])
_OF_PAIRS = ("train", "dev", "seen")  # and train once more: half of all sets of words are train's


def types_of(split: str) -> Sequence[str]:
    """Combinations of kinds of wish that a split has."""
    return NEW if split == "unseen" else (*KNOWN, *NEW) if split == "base" else KNOWN


def pool(items: Sequence[str], split: str) -> Sequence[str]:
    """Of a list, what a split draws from: every third entry is unseen's alone; `base` has them all."""
    return items if split == "base" else [item for i, item in enumerate(items) if (i % 3 == 2) == (split == "unseen")]


def parse_id(task_id: str) -> tuple[str, int]:
    """Split and number of an id such as `train/17`; raises `ConfigError`."""
    split, _, number = task_id.partition("/")
    if split not in SIZES or not (number.isascii() and number.isdecimal()) or len(number) > 6 or int(number) >= SIZES[split]:
        raise ConfigError(f"task {task_id!r}: stories are {', '.join(f'{s}/0 to {s}/{n - 1}' for s, n in SIZES.items())}")
    if number != str(int(number)):
        raise ConfigError(f"task {task_id!r}: write it {split}/{int(number)}")
    return split, int(number)


def type_of(task_id: str) -> str:
    """The combination of kinds of wish of a task; combinations come in turn."""
    split, number = parse_id(task_id)
    return types_of(split)[number % len(types_of(split))]


def wishes_of(task_id: str) -> Wishes:
    """The wishes of a task; raises `ConfigError` for an unknown id."""
    split, _ = parse_id(task_id)
    kinds, rng = type_of(task_id).split("+"), random.Random(f"stories {task_id}")
    nouns = pool(NOUNS, split)
    asked = tuple(rng.sample(nouns, rng.randint(2, 3)))
    while not belongs(asked, split):
        asked = tuple(rng.sample(nouns, rng.randint(2, 3)))
    return Wishes(
        asked,
        tuple(rng.sample(LISTS["common"], rng.randint(1, 2))) if "avoid" in kinds else (),
        rng.randint(SHORTEST, LONGEST) if "length" in kinds else 0,
        rng.choice(pool(LISTS["endings"], split)) if "ending" in kinds else "",
        rng.choice(pool(NAMES, split)) if "name" in kinds else "",
        "fresh" in kinds,
    )


def belongs(asked: Sequence[str], split: str) -> bool:
    """Whether a split may ask for these words together: half of all sets are train's, a quarter each are dev's and seen's."""
    if split not in _OF_PAIRS:
        return True
    place = int(sha256_json(sorted(asked))[:8], 16) % 4
    return split == (*_OF_PAIRS, "train")[place]
