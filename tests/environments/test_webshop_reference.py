"""WebShop against its original: rewards, nouns, index terms, searches and pages of the official 1,000 products, value by value.

The expected values were made by running the original engine with Lucene and spaCy's `en_core_web_sm` 3.8.0; docs/webshop.md says more.
"""

import functools
import json
import lzma
import re
from dataclasses import replace
from pathlib import Path

import pytest

from gradprism.environments.webshop import nouns
from gradprism.environments.webshop.environment import Store, WebshopEnvironment, WebshopSession
from gradprism.environments.webshop.reward import score_purchase
from gradprism.environments.webshop.search import analyse
from gradprism.environments.webshop.shop import _document

OFFICIAL = Path(__file__).parents[2].parent / "shared" / "data" / "webshop"
REFERENCE = OFFICIAL / "reference"
pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the original's values are not here")


@functools.cache
def store() -> Store:
    return WebshopEnvironment(data_dir=str(OFFICIAL)).store


def lines(name: str) -> list[dict]:
    with lzma.open(REFERENCE / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def table(name: str) -> dict:
    with lzma.open(REFERENCE / name, "rt", encoding="utf-8") as file:
        return json.load(file)


def test_every_purchase_has_the_originals_reward_and_terms():
    rows = lines("webshop_reward_reference.jsonl.xz")
    assert len(rows) > 2000
    for row in rows:
        goal, product = store().goals[row["goal"]], store().shop.by_asin[row["asin"].lower()]
        assert goal.asin == row["goal_asin"]
        goal, product = replace(goal, price_upper=row["price_upper"]), replace(product, price=row["price"])
        terms = score_purchase(goal, product, row["options"].values(), store().shop.nouns)
        found = (terms.r_type, terms.attribute_hits, terms.option_hits, terms.price_fits)
        assert found == (row["r_type"], row["attribute_hits"], row["option_hits"], row["price_fits"]), row
        assert (terms.reward, terms.title_score) == pytest.approx((row["reward"], row["title_score"]), abs=1e-12), row


def test_the_shipped_nouns_are_the_models_own():
    expected = table("webshop_title_nouns_en_core_web_sm-3.8.0.json.xz")
    products = list(store().shop.by_asin.values())
    assert store().tagger == nouns.MODEL
    assert {p.asin: list(store().shop.nouns(p.title)) for p in products} == expected
    model = nouns.load_model()
    if model is not None and nouns.model_name(model) == nouns.MODEL:
        for product in products[:200]:
            assert list(nouns.tagged(model, product.title)) == expected[product.asin]


def test_documents_have_lucenes_terms():
    expected = table("webshop_lucene_tokens.json.xz")
    assert len(expected) == 1000
    for product in store().shop.by_asin.values():
        assert analyse(_document(product)) == expected[product.asin], product.asin


def test_searches_find_what_lucene_finds_in_its_order():
    rows = lines("webshop_search_reference.jsonl.xz")
    assert len(rows) > 700
    for row in rows:
        assert [product.asin for product in store().shop.search(row["query"])] == row["asins"], row["query"]


def results(pages: list[dict], actions: list[str]) -> list[list[str | None]]:
    """The ids that each search of a walk found, as far as its pages show them; the walks had another search engine than Lucene."""
    found: list[list[str | None]] = []
    for action, shown in zip(actions, pages[1:], strict=True):
        number = re.search(r"\[SEP\] Page (\d+) \(Total results: (\d+)\)", shown["text"])
        if number is not None:
            if re.match(r"search\[[^][]+\](?!\[)", action):
                found.append([None] * int(number[2]))
            rows = shown["text"].split("Next > [SEP] ")[1].split(" [SEP] ")[::3] if "Next > [SEP] " in shown["text"] else []
            first = 10 * (int(number[1]) - 1)
            found[-1][first : first + len(rows)] = rows
    return found


@pytest.mark.parametrize("rich", [False, True])
def test_walks_see_the_originals_pages_word_for_word(rich, monkeypatch):
    walks = lines("webshop_pages_reference.jsonl.xz")
    assert len(walks) >= 50
    shop = store().shop
    anything = next(iter(shop.by_asin.values()))
    for walk in walks:
        searches = iter(results(walk["pages"], walk["actions"]))
        monkeypatch.setattr(
            shop, "search", lambda _, searches=searches: [shop.by_asin[a.lower()] if a else anything for a in next(searches)]
        )
        session = WebshopSession(store(), rich, False)
        steps = [session.reset(f"{store().id}/{walk['goal']}"), *(session.step(action) for action in walk["actions"])]
        for action, step, expected in zip(["", *walk["actions"]], steps, walk["pages"], strict=True):
            assert step.observation == expected["rich" if rich else "text"], action
            assert (step.reward, step.done) == (expected["reward"], expected["done"])
            clicks = [name.removeprefix("click[")[:-1] for name in step.info.admissible if name.startswith("click[")]
            assert clicks == [name for name in expected["clickables"] if name != "search"]


def test_goals_that_their_own_product_does_not_fulfil_are_told():
    environment = WebshopEnvironment(data_dir=str(OFFICIAL))
    tasks = [task for split in environment.splits for task in environment.tasks(split)]
    assert environment.remarks(tasks) == [
        "458 of 6910 goals cannot be won with the product that they were made from, as in the original"
    ]
