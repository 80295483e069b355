"""Stories of a grammar: heroes who do one thing or another, in thousands of frames, by which every wish can be met."""

import random
from collections.abc import Sequence

from gradprism.environments.stories.text import forms, words
from gradprism.environments.stories.wishes import LISTS, Wishes

SHORTEST, LONGEST = 3, 5  # sentences, where no number is wished for
_NOUNS = {noun: kind for kind in ("animals", "things", "places") for noun in LISTS[kind]}
_PRONOUNS = ("she", "he")


def write(wishes: Wishes, rng: random.Random) -> str:
    """A story that meets all of them. Raises `ValueError` where the grammar has no place for a word."""
    if unknown := [word for word in wishes.words if word not in _NOUNS]:
        raise ValueError(f"the grammar does not know {unknown[0]!r}")
    length = wishes.length or rng.randint(SHORTEST, LONGEST)
    hero = wishes.name or f"the {rng.choice(LISTS['roles'])}"
    banned = frozenset().union(*(forms(word) for word in wishes.avoid))
    asked = rng.sample(wishes.words, len(wishes.words))
    # Wished words come in sentences of their own as long as there are enough of these before the last.
    middles = max(0, length - 1)
    slots: list[list[str]] = [[] for _ in range(middles)]
    for number, place in enumerate(sorted(rng.sample(range(middles), min(middles, len(asked))))):
        slots[place].append(asked[number])
    for noun in asked[middles:]:
        slots[rng.randrange(middles)].append(noun)
    pronoun, told = rng.choice(_PRONOUNS), list[str]()
    naming = {0, rng.randrange(1, max(2, length))}
    for number in range(length):
        subject = hero if number in naming or rng.random() < 0.3 else pronoun
        while True:
            made = _last(subject, wishes.ending, rng) if number == middles else _middle(subject, slots[number], rng)
            if not banned & set(words(made)) and made not in told:
                break
        told.append(made)
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in told)


def _middle(subject: str, nouns: Sequence[str], rng: random.Random) -> str:
    """A sentence with these nouns."""
    deeds: list[str] = [] if nouns else [rng.choice(LISTS["pastimes"])]
    for noun in nouns:
        deed: str = rng.choice(LISTS["deeds"][_NOUNS[noun]])
        adjective: str = rng.choice(LISTS["adjectives"])
        deeds.append(deed.format(a=f"{'an' if adjective[0] in 'aeiou' else 'a'} {adjective} {noun}"))
    time = f"{rng.choice(LISTS['times'])}, " if rng.random() < 0.6 else ""
    manner = f" {rng.choice(LISTS['manners'])}" if rng.random() < 0.25 else ""
    tail = rng.choice(LISTS["tails"])
    return f"{time}{subject} {' and '.join(deeds)}{manner}{f' {tail}' if tail else ''}"


def _last(subject: str, ending: str, rng: random.Random) -> str:
    final: str = rng.choice(LISTS["finals"])
    time = f"{rng.choice(LISTS['times'])}, " if rng.random() < 0.4 else ""
    end = ending or (rng.choice(LISTS["endings"]) if rng.random() < 0.6 else "")
    return f"{time}{final.format(hero=subject)}{f' {end}' if end else ''}"
