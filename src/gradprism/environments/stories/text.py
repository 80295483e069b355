"""Words and sentences of free text, by plain rules: no model, and the same for any writer.

A word is a run of letters, perhaps with an apostrophe within; hyphens part words, and case does not count. A sentence ends with `.`, `!`,
`?` or `…` before white space, or with its line. It does not end after a title (`Mr.`) or an initial (`J.`), nor where a closing quotation
mark or an ellipsis is followed by a small letter, as in `"Stop!" said Tom`. What holds no word is no sentence.
"""

import re
from collections.abc import Sequence

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_END = re.compile(r"([.!?…]+)([\"'”’»)\]*_]*)(?=\s|$)|\n+")
_TITLE = re.compile(r"(?:^|[\s\"'“‘«(\[])(?:mr|mrs|ms|dr|st|prof|[b-hj-z])$", re.IGNORECASE)


def words(text: str) -> list[str]:
    """The words of a text in small letters, without a possessive `'s`."""
    found = (match[0].replace("’", "'").casefold() for match in _WORD.finditer(text))
    return [word.removesuffix("'s") for word in found]


def forms(noun: str) -> frozenset[str]:
    """The forms in which a word counts as used: itself and its regular plural; its possessives are the same words."""
    word = noun.casefold()
    if re.search(r"[^aeiou]y$", word):
        return frozenset((word, f"{word[:-1]}ies"))
    return frozenset((word, f"{word}es" if re.search(r"(?:s|x|z|ch|sh)$", word) else f"{word}s"))


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order."""
    found, start = [], 0
    for match in _END.finditer(text):
        if match[1] and not _ends(text, match):
            continue
        found.append(text[start : match.end()])
        start = match.end()
    return [sentence.strip() for sentence in [*found, text[start:]] if words(sentence)]


def _ends(text: str, match: "re.Match[str]") -> bool:
    """Whether a full stop, or what stands for one, ends a sentence."""
    if match[1] == "." and _TITLE.search(text[max(0, match.start() - 8) : match.start()]):
        return False
    following = text[match.end() : match.end() + 3].lstrip(" \"'“‘«([")
    runs_on = bool(match[2]) or "…" in match[1] or len(match[1]) > 1
    return not (runs_on and following[:1].islower())


def repetition(told: Sequence[str], n: int = 3) -> float:
    """The share of n-grams of words that came before, from 0 to 1; 0 for a text of fewer words than n."""
    grams = [tuple(told[i : i + n]) for i in range(len(told) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
