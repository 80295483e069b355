"""WebShop's products, read from the official files or any in their format.

Facts of the format and of its reading: Yao et al. 2022 and their released engine. A price range is kept as shown, and one price within
it is drawn for the reward, here from the product's own seed so that it is the same everywhere.
"""

import lzma
import math
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from gradprism.environments.webshop.nouns import RULE, Tagger, make_tagger, words
from gradprism.runtime.errors import DataError, MissingFileError
from gradprism.runtime.files import parse_json, sha256_json

ITEMS = ("items_shuffle_1000.json", "items_shuffle.json")
INSTRUCTIONS = ("items_ins_v2_1000.json", "items_ins_v2.json")
HUMAN = "items_human_ins.json"
GENERATED = "generated"  # the kind of catalogues that no file holds
SCORING = 2  # counts up whenever a purchase may be scored otherwise than before
HELP = "name the folder that holds the official files (plain or .xz)"
MOST_COMBINATIONS = 100_000  # of one product's options; of the official 1,000 products one has 558, the most
_NO_PRICE = 100.0  # what the original asks for a product without a price


@dataclass(frozen=True, slots=True)
class Product:
    """One product as the pages show it; `price` is what the reward compares, `shown_price` what a page says."""

    asin: str
    title: str
    category: str
    query: str
    product_category: str
    description: str
    bullets: tuple[str, ...]
    attributes: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    shown_price: str
    price: float


@dataclass(frozen=True, slots=True)
class Instruction:
    """A wish for one product; `options` None: a goal for each combination of the product's options."""

    asin: str
    text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Products in the order of their file, and what is wanted of them; `id` names all of it and the tagger, by hash."""

    id: str
    tagger: Tagger = field(compare=False)  # by its name a part of the id
    products: tuple[Product, ...]
    instructions: tuple[Instruction, ...]
    human: tuple[Instruction, ...]


def read_catalogue(folder: Path) -> Catalogue:
    """The catalogue in a folder of official files. Raises `MissingFileError`, or `DataError` naming the file and the product."""
    items = _find(folder, ITEMS)
    if items is None:
        raise MissingFileError(f"{folder}: holds none of {list(ITEMS)}; {HELP}")
    wanted = _find(folder, INSTRUCTIONS)
    if wanted is None:
        raise MissingFileError(f"{folder}: holds none of {list(INSTRUCTIONS)}; {HELP}")
    human = _find(folder, (HUMAN,))
    rows = _read(items, list)
    return make_catalogue("official", rows, _read(wanted, dict), _read(human, dict) if human else {}, str(items), str(wanted))


def make_catalogue(
    kind: str,
    rows: Iterable[Any],
    wanted: Mapping[str, Any],
    human: Mapping[str, Any],
    items_name: str = "items",
    wanted_name: str = "instructions",
) -> Catalogue:
    """The catalogue of parsed files; raises `DataError` with the file's name."""
    products: dict[str, Product] = {}
    instructions, by_people = [], []
    for number, row in enumerate(rows):
        asin = row.get("asin") if isinstance(row, dict) else None
        place = f"{items_name}: product {number} ({asin!r})"
        if not isinstance(asin, str):
            raise DataError(f"{place}: has no asin; the file is not WebShop's")
        if asin == "nan" or len(asin) > 10 or asin in products:
            continue  # as the original does: broken ids, and all but the first of a product
        about = wanted.get(asin) or {}
        try:
            products[asin] = _product(row, about)
            if about.get("instruction") is not None:
                instructions.append(Instruction(asin, _text(about["instruction"]), _texts(about["instruction_attributes"]), None))
            for one in human.get(asin) or ():
                if one["instruction_attributes"]:
                    text, options = one["instruction"].strip("."), _texts(one["instruction_options"])
                    by_people.append(Instruction(asin, text, _texts(one["instruction_attributes"]), options))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise DataError(f"{place}: cannot be read ({what}); correct or delete it there or in {wanted_name}") from None
    if not products:
        raise DataError(f"{items_name}: holds no product; {HELP}")
    tagger = Tagger(RULE, words) if kind == GENERATED else make_tagger(product.title for product in products.values())
    contents = [[asdict(one) for one in ones] for ones in (products.values(), instructions, by_people)]
    digest = sha256_json([SCORING, tagger.name, *contents])[:12]
    return Catalogue(f"{kind}-{len(products)}-{digest}", tagger, tuple(products.values()), tuple(instructions), tuple(by_people))


def _product(row: dict[str, Any], about: Mapping[str, Any]) -> Product:
    bullets = row["small_description"]
    asin, shown, price = row["asin"], *_price(row["asin"], row.get("pricing"))
    options = {}
    for name, contents in (row.get("customization_options") or {}).items():
        if contents is not None:
            options[name.lower()] = tuple(content["value"].strip().replace("/", " | ").lower() for content in contents)
    if (combinations := math.prod(map(len, options.values()))) > MOST_COMBINATIONS:
        raise ValueError(f"its options have {combinations} combinations, each of which would be a goal")
    return Product(
        asin=asin,
        title=_text(row["name"]),
        category=_text(row["category"]),
        query=_text(row["query"]).lower().strip(),
        product_category=_text(row["product_category"]),
        description=_text(row["full_description"]),
        bullets=tuple(map(_text, bullets if isinstance(bullets, list) else [bullets])),
        attributes=_texts(about.get("attributes") or ["DUMMY_ATTR"]),
        options=options,
        shown_price=shown,
        price=price,
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {value!r:.80}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list of texts, found {value!r:.80}")
    return tuple(map(_text, value))


def _price(asin: str, pricing: Any) -> tuple[str, float]:
    """The price as shown, and as a number: drawn evenly from a range, seeded by the product's id.

    As in the original, whatever follows a `$` up to the next is a price by its digits and points: `$.99` is 0.99, and
    `$9.99 ($0.83 / Ounce)` a range from 9.99 to 0.83.
    """
    if pricing is None or not pricing.strip():
        return f"${_NO_PRICE}", _NO_PRICE
    try:
        prices = [float(Decimal(re.sub(r"[^\d.]", "", part))) for part in pricing.split("$")[1:]]
    except InvalidOperation:
        prices = []
    if not prices:
        raise ValueError(f"price {pricing!r:.80} is not like '$9.99' or '$9.99 to $19.99'")
    if len(prices) == 1:
        return f"${prices[0]}", prices[0]
    return f"${prices[0]} to ${prices[1]}", random.Random(f"price {asin}").uniform(prices[0], prices[1])


def _find(folder: Path, names: Iterable[str]) -> Path | None:
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; {HELP}")
    candidates = (folder / (name + ending) for name in names for ending in ("", ".xz"))
    return next((path for path in candidates if path.is_file()), None)


def _read(path: Path, kind: type) -> Any:
    try:
        with lzma.open(path) if path.suffix == ".xz" else open(path, "rb") as file:
            value = parse_json(file.read())
    except (OSError, ValueError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot be read ({error}); the download is not complete") from None
    if not isinstance(value, kind):
        raise DataError(f"{path}: holds no {'list of products' if kind is list else 'table by asin'}; it is not WebShop's")
    return value
