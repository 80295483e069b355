"""WebShop's reward for a purchase (Yao et al. 2022, section 4), with every term of it.

reward = r_type · (attribute hits + option hits + [price ≤ bound]) / (attributes + options + 1)

An approximation: r_type compares the nouns of two titles, which the original takes from spaCy's tagger. That tagger is used where it
is installed with an English model; else every word counts that is no function word, number or common adjective.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapidfuzz import fuzz

from gradprism.environments.webshop.catalogue import Product
from gradprism.environments.webshop.goals import Goal

MATCH = 85
_WORDS = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))
COLOURS, NOT_NOUNS = _WORDS["colours"], frozenset(_WORDS["not_nouns"])
_SPACY_MODELS = ("en_core_web_lg", "en_core_web_sm", "en_core_web_md")
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True, slots=True)
class Terms:
    """The reward of a purchase, and what it is made of: for each term how many there are and how many were met."""

    reward: float
    r_type: float
    query_match: bool
    category_match: bool
    title_score: float
    attribute_hits: int
    attributes: int
    option_hits: int
    options: int
    price_fits: bool
    price: float
    price_upper: float


def score_purchase(goal: Goal, product: Product, options: Iterable[str]) -> Terms:
    """The reward of buying `product` with the chosen option values."""
    chosen = [_colour(option) for option in options]
    attributes = sum(_has_attribute(product, attribute) for attribute in goal.attributes)
    hits = sum(any(fuzz.token_set_ratio(value, _colour(option)) > MATCH for value in chosen) for option in goal.wanted_options)
    same_query = goal.product.query == product.query
    same_category = len(_categories(goal.product) & _categories(product)) >= 2
    title_score = _title_score(goal.product.title, product.title)
    r_type = (
        0.0 if title_score == 0 else 0.1 if title_score < 0.1 else 1.0 if same_query or same_category or title_score > 0.2 else 0.5
    )
    price_fits = product.price <= goal.price_upper
    total = len(goal.attributes) + len(goal.wanted_options) + 1
    return Terms(
        reward=r_type * (attributes + hits + price_fits) / total,
        r_type=r_type,
        query_match=same_query,
        category_match=same_category,
        title_score=title_score,
        attribute_hits=attributes,
        attributes=len(goal.attributes),
        option_hits=hits,
        options=len(goal.wanted_options),
        price_fits=price_fits,
        price=product.price,
        price_upper=goal.price_upper,
    )


def _has_attribute(product: Product, attribute: str) -> bool:
    if any(fuzz.token_set_ratio(own, attribute) > MATCH for own in product.attributes):
        return True
    texts = (product.title, " ".join(product.bullets), product.description)
    return any(attribute in text.lower() for text in texts)


def _title_score(wanted: str, bought: str) -> float:
    """Share of the wanted title's nouns that the bought one has."""
    nouns = _tagger()(wanted)
    return len(nouns & _tagger()(bought)) / len(nouns) if nouns else 0.2


def _categories(product: Product) -> set[str]:
    return {part.strip() for part in product.product_category.split("›")}


def _colour(text: str) -> str:
    """`midnight blue stripes` -> `blue`: an option that names a colour is that colour."""
    return next((colour for colour in COLOURS if colour in text), text)


def plain_nouns(title: str) -> set[str]:
    """Words of a title that are likely nouns, in lower case."""
    return {word for word in _WORD.findall(title.lower()) if word not in NOT_NOUNS and not word.endswith("ly")}


def _tagged_nouns(model: Any, title: str) -> set[str]:
    return {token.text.lower() for token in model(title) if token.pos_ in ("NOUN", "PROPN")}


@functools.cache
def _tagger() -> Callable[[str], set[str]]:
    try:
        import spacy  # pyright: ignore[reportMissingImports]
    except ImportError:
        return functools.lru_cache(maxsize=65536)(plain_nouns)
    for name in _SPACY_MODELS:
        if spacy.util.is_package(name):
            model = spacy.load(name, disable=["ner", "lemmatizer"])
            return functools.lru_cache(maxsize=65536)(functools.partial(_tagged_nouns, model))
    return functools.lru_cache(maxsize=65536)(plain_nouns)
