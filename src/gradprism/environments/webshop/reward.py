"""WebShop's reward for a purchase (Yao et al. 2022, section 4), with every term of it.

reward = r_type · (attribute hits + option hits + [price ≤ bound]) / (attributes + options + 1)

What is approximate: r_type compares the nouns of two titles, which the original takes from spaCy's tagger. That tagger is used where it
is installed with an English model; else every word counts that is no function word, number or common adjective.
"""

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

from rapidfuzz import fuzz

from gradprism.environments.webshop.catalogue import Product
from gradprism.environments.webshop.goals import Goal

MATCH = 85
COLOURS_TEXT = (
    "alizarin crimson azure beige black blonde blue bone bright brown burgundy camel champagne charcoal coffee coral cream "
    "cyan ebony emerald fuchsia gold gray green grey indigo ivory khaki lavender lilac magenta maroon mint mocha mustard "
    "navy nude olive orange peach pink plum purple red rose ruby rust sand sapphire silver tan taupe teal turquoise violet "
    "walnut white wine yellow"
)
COLOURS = COLOURS_TEXT.split()
_SPACY_MODELS = ("en_core_web_lg", "en_core_web_sm", "en_core_web_md")
_WORD = re.compile(r"[^\W\d_]{2,}")
_NO_NOUNS_TEXT = (
    "a an and are as at be but by for from if in into is it no not of on or such that the their then there these they this "
    "to was will with without our your you we us its more most very all any each other than can up out over under per plus "
    "new best good great easy high low long short small large big extra full free soft hard light heavy dark fresh natural "
    "organic premium perfect classic modern vintage casual comfortable portable adjustable durable waterproof wireless "
    "reusable washable foldable black white red blue green pink grey gray brown purple yellow orange beige navy only also "
    "use using made"
)
_NO_NOUNS = frozenset(_NO_NOUNS_TEXT.split())


def score_purchase(goal: Goal, product: Product, options: Iterable[str]) -> dict[str, Any]:
    """The reward of buying `product` with the chosen option values, as `reward`, and the terms that it is made of."""
    chosen = [_colour(option) for option in options]
    attributes = [_has_attribute(product, attribute) for attribute in goal.attributes]
    wanted = goal.wanted_options
    hits = [any(fuzz.token_set_ratio(value, _colour(option)) > MATCH for value in chosen) for option in wanted]
    price_fits = product.price <= goal.price_upper
    kind = _type_terms(goal.product, product)
    total = len(attributes) + len(wanted) + 1
    return {
        "reward": kind["r_type"] * (sum(attributes) + sum(hits) + price_fits) / total,
        **kind,
        "attribute_hits": sum(attributes),
        "attributes": len(attributes),
        "option_hits": sum(hits),
        "options": len(wanted),
        "price_fits": price_fits,
        "price": product.price,
        "price_upper": goal.price_upper,
    }


def _has_attribute(product: Product, attribute: str) -> bool:
    if any(fuzz.token_set_ratio(own, attribute) > MATCH for own in product.attributes):
        return True
    texts = (product.title, " ".join(product.bullets), product.description)
    return any(attribute in text.lower() for text in texts)


def _type_terms(wanted: Product, bought: Product) -> dict[str, Any]:
    same_query = wanted.query == bought.query
    shared = _categories(wanted) & _categories(bought)
    tagger = _tagger()
    nouns = tagger(wanted.title)
    title_score = len(nouns & tagger(bought.title)) / len(nouns) if nouns else 0.2
    r_type = 1.0 if same_query or len(shared) >= 2 or title_score > 0.2 else 0.5
    if title_score < 0.1:
        r_type = 0.1
    if title_score == 0.0:
        r_type = 0.0
    return {"r_type": r_type, "query_match": same_query, "category_match": len(shared) >= 2, "title_score": title_score}


def _categories(product: Product) -> set[str]:
    return {part.strip() for part in product.product_category.split("›")}


def _colour(text: str) -> str:
    """`midnight blue stripes` -> `blue`: an option that names a colour is that colour."""
    return next((colour for colour in COLOURS if colour in text), text)


def plain_nouns(title: str) -> set[str]:
    """Words of a title that are likely nouns, in lower case."""
    return {word for word in _WORD.findall(title.lower()) if word not in _NO_NOUNS and not word.endswith("ly")}


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
