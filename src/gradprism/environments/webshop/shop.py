"""The shop's pages and what a click does: one visitor with one goal.

Pages: the start page with its search field, pages of ten results, an item, its sub-pages, and the end. Texts and behaviour are those of
the original's text environment: a search is taken on every page, `Next >` is always there, a page after the last result is empty.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gradprism.environments.webshop.catalogue import Product
from gradprism.environments.webshop.goals import Goal
from gradprism.environments.webshop.reward import Terms, score_purchase
from gradprism.environments.webshop.search import SearchIndex

BACK, PREVIOUS, NEXT, BUY = "Back to Search", "< Prev", "Next >", "Buy Now"
SUB_PAGES = ("Description", "Features", "Reviews")
ATTRIBUTES = "Attributes"
PER_PAGE, MOST_RESULTS = 10, 50
_ACTION = re.compile(r"(search|click)\[(.+)\]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a page's text; `kind` is text, field (the search), button, link (a product) or option.

    `chosen` marks an option that is selected.
    """

    text: str
    kind: str = "text"
    chosen: bool = False


class Shop:
    """The products, their index, and how they are found by id."""

    def __init__(self, products: Sequence[Product]) -> None:
        self.by_asin = {product.asin.lower(): product for product in products}
        self._order = list(products)
        self._index = SearchIndex([_document(product) for product in products])

    def search(self, query: str) -> list[Product]:
        """The best fifty products."""
        return [self._order[number] for number in self._index.search(query, MOST_RESULTS)]


def _document(product: Product) -> str:
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    return " ".join([product.title, product.description, product.bullets[0] if product.bullets else "", options])


@dataclass(frozen=True, slots=True)
class Visit:
    """Where a visitor is. `page` is start, results, item, end, or the name of a sub-page."""

    page: str = "start"
    results: tuple[Product, ...] = ()
    number: int = 1
    product: Product | None = None
    options: dict[str, str] = field(default_factory=dict)
    clicked: str = ""
    terms: Terms | None = None  # of the purchase, on the end page


def act(shop: Shop, goal: Goal, visit: Visit, action: str, attributes: bool = False) -> Visit | None:
    """Where an action leads, or None where it does nothing. `search[words]` and `click[text]` are actions, in any case."""
    match = _ACTION.fullmatch(action.strip().lower()) if visit.page != "end" else None
    if match is None:
        return None
    verb, argument = match.groups()
    if verb == "search":
        return Visit("results", tuple(shop.search(argument)))
    part = clickables(goal, visit, attributes).get(argument)
    if part is None:
        return None
    product, text = visit.product, part.text
    if part.kind == "link":
        return replace(visit, page="item", product=shop.by_asin[argument], options={}, clicked="")
    if part.kind == "option" and product is not None:
        name = next(name for name, values in product.options.items() if text in values)
        return replace(visit, options={**visit.options, name: text}, clicked=text)
    if text == BACK:
        return Visit()
    if text == NEXT:
        return replace(visit, number=visit.number + 1)
    if text == PREVIOUS:
        if visit.page == "results":
            return replace(visit, number=visit.number - 1)
        return replace(visit, page="results" if visit.page == "item" else "item", clicked="")
    if text == BUY and product is not None:
        return replace(visit, page="end", terms=score_purchase(goal, product, visit.options.values()))
    return replace(visit, page=text)


def clickables(goal: Goal, visit: Visit, attributes: bool = False) -> dict[str, Part]:
    """The parts of a page that can be clicked, by their text in lower case."""
    parts = [part for part in page(goal, visit, attributes) if part.kind not in ("text", "field")]
    return {part.text.lower(): part for part in parts}


def page(goal: Goal, visit: Visit, attributes: bool = False) -> list[Part]:
    """The parts of a page, in their order."""
    product = visit.product
    if visit.terms is not None and product is not None:
        score = f"{visit.terms.reward:.2f}".rstrip("0").rstrip(".")
        told = ["Thank you for shopping with us!", "Purchased", "asin", product.asin, "options", str(visit.options)]
        return [Part(text) for text in [*told, "Your score (min 0.0, max 1.0)", score]]
    opening = [Part("Instruction:"), Part(goal.text)]
    if visit.page == "start":
        return [Part("WebShop"), *opening, Part("Search", "field")]
    back = Part(BACK, "button")
    if visit.page == "results":
        parts = [*opening, back, Part(f"Page {visit.number} (Total results: {len(visit.results)})")]
        if visit.number > 1:
            parts.append(Part(PREVIOUS, "button"))
        parts.append(Part(NEXT, "button"))
        for found in visit.results[(visit.number - 1) * PER_PAGE : visit.number * PER_PAGE]:
            parts += [Part(found.asin, "link"), Part(found.title), Part(found.shown_price)]
        return parts
    parts = [*opening, back, Part(PREVIOUS, "button")]
    assert product is not None
    if visit.page == "item":
        for name, values in product.options.items():
            parts.append(Part(name))
            parts += [Part(value, "option", visit.options.get(name) == value) for value in values]
        parts += [Part(product.title), Part(f"Price: {product.shown_price}"), Part("Rating: N.A.")]
        sub_pages = (*SUB_PAGES, ATTRIBUTES) if attributes else SUB_PAGES
        return [*parts, *(Part(name, "button") for name in (*sub_pages, BUY))]
    texts = {SUB_PAGES[0]: (product.description,), SUB_PAGES[1]: product.bullets, SUB_PAGES[2]: (), ATTRIBUTES: product.attributes}
    return parts + [Part(text) for text in texts[visit.page]]


def text(parts: Sequence[Part], rich: bool, clicked: str = "") -> str:
    """A page as an agent reads it: `text` joins its parts by ` [SEP] `, `text_rich` gives each a line and marks what can be clicked."""
    if not rich:
        return " [SEP] ".join(part.text.strip() for part in parts if part.text.strip())
    lines = [f"You have clicked {clicked}."] if clicked else []
    for part in parts:
        if part.kind == "option":
            word = "clicked button" if part.chosen else "button"
            lines.append(f"  [{word}] {part.text} [{word}_]")
        elif part.kind == "link":
            lines.append(f"\n[button] {part.text} [button_]")
        else:
            lines.append(part.text if part.kind == "text" else f"[button] {part.text} [button_]")
    return "\n".join(lines)
