"""A catalogue of made-up products in the official format, of any size: for the default, for tests, and for speed at scale.

Each product is of a kind (`running shoe`), has a maker that does not exist, some of its kind's features, and options in colour, size or
pack. Instructions ask for features, as the original's do. The size and the seed fix every byte.
"""

import json
import random
from pathlib import Path
from typing import NamedTuple, TypedDict


class Shelf(NamedTuple):
    """A category: its path, kinds of product, their features, option values of which some are drawn, and prices from and to."""

    path: str
    kinds: list[str]
    features: list[str]
    options: dict[str, list[str]]
    cents: tuple[int, int]


class About(TypedDict, total=False):
    """A product as `items_ins_v2.json` has it."""

    attributes: list[str]
    instruction: str
    instruction_attributes: list[str]


WORDS = json.loads(Path(__file__).with_name("shelves.json").read_text(encoding="utf-8"))
SHELVES = {category: Shelf(**shelf) for category, shelf in WORDS["shelves"].items()}


def generate_catalogue(products: int, seed: int) -> tuple[list[dict[str, object]], dict[str, About]]:
    """`products` products as `items_shuffle.json` has them, and by their ids what `items_ins_v2.json` says of them."""
    categories = sorted(SHELVES)
    items, instructions = [], {}
    for number in range(products):
        asin, rng = f"G{number:09d}", random.Random(f"webshop {seed} {number}")
        item, instructions[asin] = _product(rng, categories[number % len(categories)], asin)
        items.append(item)
    return items, instructions


def _product(rng: random.Random, category: str, asin: str) -> tuple[dict[str, object], About]:
    shelf = SHELVES[category]
    kind = rng.choice(shelf.kinds)
    own = rng.sample(shelf.features, rng.randint(3, 6))
    maker = "".join(rng.choice(WORDS[part]) for part in ("onsets", "vowels", "endings")).capitalize()
    material, use = rng.choice(WORDS["materials"]), rng.choice(WORDS["uses"])
    shown = [own[0], own[1], material, kind, use] if rng.random() < 0.5 else [material, kind, "with", own[0], use]
    names = [name for name in shelf.options if rng.random() < 0.7]
    shoe = "shoe" in kind or "boot" in kind
    pools = {name: WORDS["shoe_sizes"] if name == "size" and shoe else shelf.options[name] for name in names}
    options = {name: rng.sample(pool, min(len(pool), rng.randint(2, 5))) for name, pool in pools.items()}
    cents = rng.randint(*shelf.cents)
    price = f"${cents / 100}" if rng.random() < 0.8 else f"${cents / 100} to ${(cents + rng.randint(100, 2000)) / 100}"
    item = {
        "name": f"{maker} {' '.join(shown)}".title(),
        "asin": asin,
        "full_description": f"The {maker} {kind} is made of {material}. It is {use.removeprefix('for ')} ware: {', '.join(own[2:])}.",
        "pricing": price,
        "images": [],
        "product_category": f"{shelf.path} › {kind.split()[-1].title()}s › {kind.title()}s",
        "average_rating": "",
        "small_description": [f"{feature.capitalize()}: what a {kind} should be" for feature in own],
        "customization_options": {n: [{"value": v, "image": None} for v in values] for n, values in options.items()} or "",
        "category": category,
        "query": f"{kind}s",
        "page": rng.randint(1, 400),
    }
    wanted = rng.sample(own, rng.randint(1, min(3, len(own))))
    about: About = {"attributes": own}
    if rng.random() < 0.5:
        last = f" with {wanted[-1]}" if len(wanted) > 1 else ""
        asked = ", ".join(wanted[:-1] if last else wanted)
        about["instruction"], about["instruction_attributes"] = f"Find me {asked} {kind}s{last}", wanted
    return item, about
