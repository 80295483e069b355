"""WebShop's reward for a purchase (Yao et al. 2022, section 4, and their released engine), with every term of it.

reward = r_type · (attribute hits + option hits + [price ≤ bound]) / (attributes + options + 1)
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from thefuzz import fuzz

from gradprism.environments.webshop.catalogue import Product
from gradprism.environments.webshop.goals import Goal

MATCH = 85
# The colours that a chosen option is reduced to, in the order in which they are looked for: those of the original.
COLOURS: list[str] = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))["colours"]


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


def score_purchase(goal: Goal, product: Product, options: Iterable[str], nouns: Callable[[str], Sequence[str]]) -> Terms:
    """The reward of buying `product` with the chosen option values; `nouns` gives a title's nouns."""
    attributes = sum(_has_attribute(product, attribute) for attribute in goal.attributes)
    hits = option_hits(goal.options, options)
    kind = type_score(goal.product, product, nouns)
    price_fits = product.price <= goal.price_upper
    total = len(goal.attributes) + len(goal.options) + 1
    return Terms(
        reward=kind.r_type * (attributes + hits + price_fits) / total,
        r_type=kind.r_type,
        query_match=kind.query_match,
        category_match=kind.category_match,
        title_score=kind.title_score,
        attribute_hits=attributes,
        attributes=len(goal.attributes),
        option_hits=hits,
        options=len(goal.options),
        price_fits=price_fits,
        price=product.price,
        price_upper=goal.price_upper,
    )


class TypeScore(NamedTuple):
    """The factor for the kind of product, and what decides it."""

    r_type: float
    query_match: bool
    category_match: bool
    title_score: float


def type_score(wanted: Product, bought: Product, nouns: Callable[[str], Sequence[str]]) -> TypeScore:
    """1 where two products are of one kind, by query, two shared parts of their categories, or their titles' nouns; else 0.5, 0.1 or 0."""
    query, category = wanted.query == bought.query, len(_categories(wanted) & _categories(bought)) >= 2
    score = title_score(nouns(wanted.title), nouns(bought.title))
    r_type = 0.0 if score == 0 else 0.1 if score < 0.1 else 1.0 if query or category or score > 0.2 else 0.5
    return TypeScore(r_type, query, category, score)


def title_score(wanted: Iterable[str], bought: Iterable[str]) -> float:
    """Distinct nouns that both titles have, divided by the nouns of the wanted one counted with repeats; 0.2 where it has none."""
    counts, other = Counter(wanted), set(bought)
    return len(counts.keys() & other) / counts.total() if counts else 0.2


def option_hits(wanted: Mapping[str, str] | tuple[str, ...], chosen: Iterable[str]) -> int:
    """Number of wanted options that any chosen value resembles.

    The original compares a chosen value, reduced to the colour that it names, with the wanted *pair* of name and value written out,
    which is reduced only where it is a colour and nothing else. People's goals name values without options.
    """
    values = [_colour(value) for value in chosen]
    names = wanted.items() if isinstance(wanted, Mapping) else wanted
    return sum(any(fuzz.token_set_ratio(value, _colour(name)) > MATCH for value in values) for name in names)


def _colour(option: str | tuple[str, str]) -> str | tuple[str, str]:
    """`midnight blue stripes` → `blue`: the first colour that a text holds, or that is one half of a pair; without any, the option."""
    return next((colour for colour in COLOURS if colour in option), option)


def _has_attribute(product: Product, attribute: str) -> bool:
    if any(fuzz.token_set_ratio(own, attribute) > MATCH for own in product.attributes):
        return True
    texts = (product.title, " ".join(product.bullets), product.description)
    return any(attribute in text.lower() for text in texts)


def _categories(product: Product) -> set[str]:
    return {part.strip() for part in product.product_category.split("›")}
