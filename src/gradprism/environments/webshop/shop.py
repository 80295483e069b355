"""The shop's pages and what a click does: one visitor with one goal.

Pages: the start page with its search field, pages of ten results, an item, its sub-pages, and the end. Texts, actions and behaviour are
those of the original's text environment (Yao et al. 2022): a search is taken on every page, `Next >` is always there, a page after the
last result is empty.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from gradprism.environments.webshop.catalogue import Product
from gradprism.environments.webshop.goals import Goal
from gradprism.environments.webshop.reward import Terms, score_purchase
from gradprism.environments.webshop.search import SearchIndex

BACK, PREVIOUS, NEXT, BUY = "Back to Search", "< Prev", "Next >", "Buy Now"
SUB_PAGES = ("Description", "Features", "Reviews")
ATTRIBUTES = "Attributes"
PER_PAGE, MOST_RESULTS = 10, 50
_ACTION = re.compile(r"(.+)\[(.+)\]")  # greedy, from the beginning, to the last bracket; what follows is ignored


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a page's text; `kind` is text, field (the search), button, link (a product) or option.

    `chosen` marks an option that is selected, or a product that was opened.
    """

    text: str
    kind: str = "text"
    chosen: bool = False


class Shop:
    """The products, their index, how they are found by id, and what gives the nouns of their titles."""

    def __init__(self, products: Sequence[Product], nouns: Callable[[str], Sequence[str]]) -> None:
        self.nouns = nouns
        self.by_asin = {product.asin.lower(): product for product in products}
        self._order = sorted(products, key=lambda product: product.asin)  # equal scores rank by id
        self._index = SearchIndex([_document(product) for product in self._order])

    def search(self, query: str) -> list[Product]:
        """The best fifty products."""
        return [self._order[number] for number in self._index.search(query, MOST_RESULTS)]


def _document(product: Product) -> str:
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    return " ".join([product.title, product.description, product.bullets[0] if product.bullets else "", options])


@dataclass(frozen=True, slots=True)
class Visit:
    """Where a visitor is. `page` is start, results, item, end, or the name of a sub-page; `query` is the search in lower case."""

    page: str = "start"
    query: str = ""
    results: tuple[Product, ...] = ()
    number: int = 1
    product: Product | None = None
    options: dict[str, str] = field(default_factory=dict)
    visited: frozenset[str] = frozenset()  # ids of products that were opened
    terms: Terms | None = None  # of the purchase, on the end page

    def shows_as_chosen(self, value: str) -> bool:
        """Whether an item's page marks a value as clicked: the original asks whether the page's address has it in quotes.

        So a value is marked under every option that has it, one that is not ASCII never is, and words searched for in quotes are.
        """
        return f'"{value}"' in f"{'+'.join(self.query.split(' '))}/{json.dumps(self.options)}"


def act(shop: Shop, goal: Goal, visit: Visit, action: str, attributes: bool = False) -> Visit | None:
    """Where an action leads, or None where it does nothing: `search[words]`, or `click[text]` for what the page offers, in any case."""
    match = _ACTION.match(action) if visit.page != "end" else None
    if match is None:
        return None
    verb, argument = match[1], match[2].lower()
    if verb == "search":
        return Visit("results", argument, tuple(shop.search(argument)), visited=visit.visited)
    part = clickables(goal, visit, attributes).get(argument) if verb == "click" else None
    if part is None:
        return None
    if part.kind == "link":
        return replace(visit, page="item", product=shop.by_asin[argument], visited=visit.visited | {part.text})
    return _click(shop, goal, visit, argument)


def _click(shop: Shop, goal: Goal, visit: Visit, name: str) -> Visit:
    """The page behind a button or an option, by its name alone, as in the original: an option called `features` opens the features."""
    product, on_results = visit.product, visit.page == "results"
    if name == BUY.lower() and product is not None:
        return replace(visit, page="end", terms=score_purchase(goal, product, visit.options.values(), shop.nouns))
    if name == BACK.lower():
        return Visit()
    if name == NEXT.lower() and on_results:
        return replace(visit, number=visit.number + 1)
    if name == PREVIOUS.lower():
        if on_results:
            return replace(visit, number=visit.number - 1)
        if visit.page == "item":
            return replace(visit, page="results", product=None, options={})
        return replace(visit, page="item")
    sub_page = next((page for page in (*SUB_PAGES, ATTRIBUTES) if page.lower() == name), None)
    if sub_page is not None:
        return replace(visit, page=sub_page)
    assert product is not None
    # A value that several options have sets the last of them.
    option = next(option for option, values in reversed(list(product.options.items())) if name in values)
    return replace(visit, options={**visit.options, option: name})


def clickables(goal: Goal, visit: Visit, attributes: bool = False) -> dict[str, Part]:
    """The parts of a page that can be clicked, by their text in lower case: buttons, then products, then options."""
    parts = page(goal, visit, attributes)
    return {part.text.lower(): part for kind in ("button", "link", "option") for part in parts if part.kind == kind}


def page(goal: Goal, visit: Visit, attributes: bool = False) -> list[Part]:
    """The parts of a page, in their order."""
    product = visit.product
    if visit.terms is not None and product is not None:
        return _end(product, visit)
    if visit.page == "start":
        return [Part("WebShop"), Part("Instruction: "), Part(goal.text), Part("Search", "field")]
    opening = [Part("Instruction:"), Part(goal.text)]
    back = Part(BACK, "button")
    if visit.page == "results":
        parts = [*opening, back, Part(f"Page {visit.number} (Total results: {len(visit.results)})")]
        if visit.number > 1:
            parts.append(Part(PREVIOUS, "button"))
        parts.append(Part(NEXT, "button"))
        for found in visit.results[(visit.number - 1) * PER_PAGE : visit.number * PER_PAGE]:
            parts += [Part(found.asin, "link", found.asin in visit.visited), Part(found.title), Part(found.shown_price)]
        return parts
    parts = [*opening, back, Part(PREVIOUS, "button")]
    assert product is not None
    if visit.page == "item":
        for name, values in product.options.items():
            parts.append(Part(name))
            parts += [Part(value, "option", visit.shows_as_chosen(value)) for value in values]
        parts += [Part(product.title), Part(f"Price: {product.shown_price}"), Part("Rating: N.A.")]
        sub_pages = (*SUB_PAGES, ATTRIBUTES) if attributes else SUB_PAGES
        return [*parts, *(Part(name, "button") for name in (*sub_pages, BUY))]
    return parts + _sub_page(product, visit.page)


def _sub_page(product: Product, name: str) -> list[Part]:
    """A sub-page's own parts; list entries have a blank before their text, so that an empty one is still a part."""
    if name == "Description":
        return [Part(product.description)]
    if name == "Features":
        return [Part(f" {bullet}") for bullet in product.bullets]
    if name == ATTRIBUTES:
        kept = [Part(text) for text in (product.category, product.query, product.product_category)]
        return [*(Part(f" {attribute}") for attribute in product.attributes), *kept]
    return []


def _end(product: Product, visit: Visit) -> list[Part]:
    """The page after the purchase; the original's has empty tables for people who were paid to shop."""
    assert visit.terms is not None
    options = json.dumps(visit.options, sort_keys=True)
    for mark in "<>&'":  # as a template writes JSON into a page
        options = options.replace(mark, f"\\u{ord(mark):04x}")
    thanks = ["Thank you for shopping with us!", "Your code: ", "None", " (Paste it in your MTurk interface.)"]
    bought = ["Purchased", "asin", product.asin, "options", options, "attrs", "None", "category", "None", "query", "None"]
    wanted = ["asin", "options", "attrs", "price upper", "instuction text", "category", "product category", "query"]
    score = ["Reward", "Your score (min 0.0, max 1.0)", str(visit.terms.reward), "Reward Details ", "None"]
    return [Part(text) for text in [*thanks, *bought, "product category", "None", "Target", *wanted, "Goal ", "None", *score]]


def text(parts: Sequence[Part], rich: bool) -> str:
    """A page as an agent reads it: `text` joins its parts by ` [SEP] `, `text_rich` gives each a line and marks what can be clicked."""
    parts = [part for part in parts if part.text]
    if not rich:
        return " [SEP] ".join(part.text.strip() for part in parts)
    lines = []
    for part in parts:
        word = "clicked button" if part.chosen else "button"
        if part.kind == "text":
            lines.append(part.text)
        else:
            before = {"option": "  ", "link": "\n"}.get(part.kind, "")
            lines.append(f"{before}[{word}] {part.text} [{word}_]")
        if part.kind == "option" and part.chosen:
            lines.insert(0, f"You have clicked {part.text}.")
    return "\n".join([*lines, ""])
