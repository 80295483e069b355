"""Wishes that a story is to keep to: as text, read back from that text, and checked."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradprism.environments.stories.text import forms, sentences, words

LISTS: dict[str, Any] = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))
NAMES: tuple[str, ...] = tuple(LISTS["names"])
KINDS = ("words", "avoid", "length", "ending", "name", "fresh")
_KNOWN_NAMES = frozenset(name.casefold() for name in NAMES)
_OPENING, _CLOSING = "Write a short story.", "Answer with the story alone."
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is wished for: `words` that must appear and those to `avoid`, a number of sentences (0: any), an ending, a name, no sentence
    twice (`fresh`). Empty ones are not wished for.
    """

    words: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    length: int = 0
    ending: str = ""
    name: str = ""
    fresh: bool = False

    def lines(self) -> Iterator[tuple[str, str]]:
        """Kind and sentence of each, in the order of `KINDS`; a sentence asks for all words of its kind."""
        if self.words:
            yield "words", f"Use the {_list(self.words, 'and')}."
        if self.avoid:
            yield "avoid", f"Do not use the {_list(self.avoid, 'or')}."
        if self.length:
            yield "length", f"Write exactly {_NUMBERS[self.length - 1]} sentences."
        if self.ending:
            yield "ending", f'End the last sentence with "{self.ending}".'
        if self.name:
            yield "name", f"Call the hero {self.name} in at least two sentences and name nobody else."
        if self.fresh:
            yield "fresh", "Do not write a sentence twice."

    def text(self) -> str:
        """The task as an agent reads it."""
        return "\n".join([_OPENING, *(line for _, line in self.lines()), _CLOSING])

    @classmethod
    def parse(cls, text: str) -> "Wishes":
        """The wishes of such a text; raises `ValueError` for another one."""
        if not text.startswith(_OPENING):
            raise ValueError("not a story's task")
        length = re.search(r"Write exactly (\w+) sentences", text)
        ending = re.search(r'End the last sentence with "([^"]+)"', text)
        name = re.search(r"Call the hero (\w+)", text)
        return cls(
            _read(text, r"\nUse the words? ([^.]+)\."),
            _read(text, r"Do not use the words? ([^.]+)\."),
            _NUMBERS.index(length[1]) + 1 if length else 0,
            ending[1] if ending else "",
            name[1] if name else "",
            "sentence twice" in text,
        )

    def check(self, story: str) -> dict[str, tuple[bool, ...]]:
        """Which wishes of each kind a story meets; each word is a wish of its own. A story without a word meets none."""
        told, said = words(story), sentences(story)
        used, found = set(told), dict[str, tuple[bool, ...]]()
        if self.words:
            found["words"] = tuple(bool(forms(word) & used) for word in self.words)
        if self.avoid:
            found["avoid"] = tuple(not forms(word) & used for word in self.avoid)
        if self.length:
            found["length"] = (len(said) == self.length,)
        if self.ending:
            last, wanted = words(said[-1]) if said else [], words(self.ending)
            found["ending"] = (last[-len(wanted) :] == wanted,)
        if self.name:
            own = self.name.casefold()
            naming = sum(own in words(sentence) for sentence in said)
            found["name"] = (naming >= 2 and used & _KNOWN_NAMES <= {own},)
        if self.fresh:
            counted = Counter(tuple(words(sentence)) for sentence in said)
            found["fresh"] = (max(counted.values(), default=1) == 1,)
        return found if told else {kind: (False,) * len(met) for kind, met in found.items()}


def _list(items: tuple[str, ...], joint: str) -> str:
    if len(items) == 1:
        return f"word {items[0]}"
    return f"words {', '.join(items[:-1])} {joint} {items[-1]}"


def _read(text: str, pattern: str) -> tuple[str, ...]:
    found = re.search(pattern, text)
    return tuple(re.split(r", | and | or ", found[1])) if found else ()
