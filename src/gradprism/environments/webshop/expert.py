"""An expert that knows only the pages it has seen: it searches, compares, looks at promising items, chooses options and buys.

Results are opened in the order of the search, those that cost too much last. The first item is bought whose options are just those that
the instruction names, or, where it names none, whose texts hold the instruction's words; otherwise the best that was seen within the
actions allowed.
"""

import re
from dataclasses import dataclass, field

from rapidfuzz import fuzz

from gradprism.environments.protocol import Step
from gradprism.runtime.errors import ConfigError, EnvironmentPlayError

ACTIONS = 15  # as papers allow
LOOKS = 6  # items opened at most
SEPARATOR = " [SEP] "
BUTTONS = frozenset(["back to search", "< prev", "next >", "description", "features", "reviews", "attributes", "buy now"])
_PRICE = re.compile(r",? and price lower than ([\d.]+) dollars")
_MONEY = re.compile(r"\$([\d.]+)")
_WORD = re.compile(r"[a-z0-9]+")
_IDLE_TEXT = (
    "a an and are as at be for find from i in is it me my of on or want need looking look that the to which with would like"
)
_IDLE = frozenset(_IDLE_TEXT.split())


@dataclass(slots=True)
class _Item:
    """A result, and what was seen of it since."""

    asin: str
    title: str
    price: float
    worth: float
    choice: dict[str, str] = field(default_factory=dict)  # option name -> the value that the instruction wants
    text: str = ""
    seen: bool = False


class WebshopExpert:
    """Plays one episode of `observation="text"`: call `act` with each step in turn."""

    def __init__(self, actions: int = ACTIONS) -> None:
        self._left = actions
        self._instruction = ""
        self._words: frozenset[str] = frozenset()
        self._bound = float("inf")
        self._items: list[_Item] = []
        self._current: _Item | None = None
        self._plan: list[str] = []  # clicks to make whatever the pages say

    def act(self, step: Step) -> str:
        """The next action; raises `EnvironmentPlayError` where no product can be found, `ConfigError` for pages as rich text."""
        self._left -= 1
        parts = step.observation.split(SEPARATOR)
        if not self._instruction:
            return self._begin(parts)
        if self._plan:
            return self._plan.pop(0)
        if "Next >" in parts:
            return self._compare(parts)
        if self._current is not None and not self._current.seen:
            return self._look(step, parts)
        return self._read(parts)

    def _begin(self, parts: list[str]) -> str:
        if len(parts) < 4 or parts[1] != "Instruction:":
            raise ConfigError("the expert reads WebShop's pages as plain text only; set observation=text")
        self._instruction = parts[2].lower()
        price = _PRICE.search(self._instruction)
        self._bound = float(price[1]) if price else self._bound
        self._wanted = _PRICE.sub("", self._instruction).strip(" .")
        # The options' names and values are asked of the options, the rest of the texts.
        self._about = re.split(r" with [\w '/&+-]+: ", self._wanted)[0]
        self._words = _words(self._about)
        return f"search[{self._wanted.removeprefix('find me ')}]"

    def _compare(self, parts: list[str]) -> str:
        """On a page of results: the next item to open, or the way to the best one."""
        if not self._items:
            rows = parts[parts.index("Next >") + 1 :]
            for rank in range(len(rows) // 3):
                asin, title, shown = rows[3 * rank : 3 * rank + 3]
                price = min((float(value) for value in _MONEY.findall(shown)), default=float("inf"))
                worth = 0.2 * self._cover(title) - 0.03 * rank - (price > self._bound)
                self._items.append(_Item(asin.lower(), title, price, worth))
            if not self._items:
                raise EnvironmentPlayError(f"the expert's search found nothing: {self._wanted!r}")
        unseen = [item for item in self._items if not item.seen]
        looked = len(self._items) - len(unseen)
        best = max(self._items, key=lambda item: (item.seen, item.worth))
        # A look takes two clicks, or four with the features; then the best one is opened, its options chosen, and bought.
        if unseen and looked < LOOKS and self._left >= 4 + 1 + len(best.choice) + 1:
            self._current = max(unseen, key=lambda item: item.worth)
        else:
            self._current = best
            self._plan = self._purchase(best)
        return f"click[{self._current.asin}]"

    def _look(self, step: Step, parts: list[str]) -> str:
        """On an item's page, seen for the first time: which values are wanted, and whether it is the one."""
        item = self._current
        assert item is not None
        clicks = {action[len("click[") : -1] for action in step.info.admissible if action.startswith("click[")} - BUTTONS
        groups: dict[str, list[str]] = {}
        name = ""
        for part in parts[parts.index("< Prev") + 1 :]:
            if part == item.title.strip():
                break
            if part.lower() in clicks and name:
                groups[name].append(part)
            else:
                name = part
                groups[name] = []
        fits = [self._choose(item, name, values) for name, values in groups.items() if values]
        asked = len(re.findall(r"[\w'/&+-]+: ", self._wanted[len(self._about) :]))
        item.seen, item.text = True, item.title
        fit = sum(fits) / max(asked, len(fits)) if asked or fits else 1.0
        item.worth = fit + 0.3 * self._cover(item.text) - 0.5 * (item.price > self._bound)
        if fit == 1 and asked and item.price <= self._bound:
            self._plan = self._purchase(item)
            return self._plan.pop(0)
        return "click[features]" if fit == 1 else "click[< prev]"

    def _choose(self, item: _Item, name: str, values: list[str]) -> float:
        """Writes down the wanted value of one option; 1 where the instruction names it, less where it only resembles one."""

        def likeness(value: str) -> float:
            if f"{name.lower()}: {value.lower()}" in self._wanted:
                return 2 + len(value) / 1000  # the longest of those that are named: `blue` stands in `blue white`
            if re.search(rf"(?<!\w){re.escape(value.lower())}(?!\w)", self._wanted):
                return 1 + len(value) / 1000
            return fuzz.token_set_ratio(value.lower(), self._wanted) / 100 - 0.1

        best = max(values, key=likeness)
        fit = likeness(best)
        if fit > 0.5:
            item.choice[name] = best
        return 1.0 if fit >= 2 else 0.5 * min(1.0, max(0.0, fit))

    def _read(self, parts: list[str]) -> str:
        """On a sub-page: what it adds to the item; then the next text, the purchase, or back to the results."""
        item = self._current
        assert item is not None
        item.text += " " + " ".join(parts[parts.index("< Prev") + 1 :])
        item.worth = 1 + self._cover(item.text) - 0.5 * (item.price > self._bound)
        self._plan = self._purchase(item) if item.worth > 1.9 else ["click[< prev]"]
        return "click[< prev]"

    def _purchase(self, item: _Item) -> list[str]:
        return [*(f"click[{value.lower()}]" for value in item.choice.values()), "click[buy now]"]

    def _cover(self, text: str) -> float:
        """Share of the instruction's words in a text."""
        return len(self._words & _words(text)) / max(1, len(self._words))


def _words(text: str) -> frozenset[str]:
    """Words without plural endings and those that say nothing."""
    return frozenset(word.removesuffix("s") for word in _WORD.findall(text.lower()) if word not in _IDLE)
