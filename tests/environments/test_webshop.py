"""WebShop's engine: files, goals, search, pages and reward, against worked examples and slow definitions."""

import json
import lzma
import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from gradprism.environments.registry import make_environment
from gradprism.environments.webshop.catalogue import make_catalogue, read_catalogue
from gradprism.environments.webshop.environment import WebshopEnvironment
from gradprism.environments.webshop.generated import generate_catalogue
from gradprism.environments.webshop.goals import make_goals, split_ranges
from gradprism.environments.webshop.nouns import words
from gradprism.environments.webshop.reward import option_hits, score_purchase, title_score
from gradprism.environments.webshop.search import K1, B, SearchIndex, analyse, stored_length
from gradprism.runtime.errors import ConfigError, DataError, MissingFileError

OFFICIAL = Path(__file__).parents[2].parent / "shared" / "data" / "webshop"


def item(asin: str, **fields) -> dict:
    return {
        "name": "Oak Console Table",
        "asin": asin,
        "full_description": "A table of solid oak.",
        "pricing": "$49.95",
        "product_category": "Home › Tables › Console Tables",
        "small_description": ["Easy to assemble", "Hand made"],
        "customization_options": {"Color": [{"value": "Light/Dark Brown"}, {"value": "navy blue"}], "size": None},
        "category": "garden",
        "query": "Console Tables ",
        **fields,
    }


WANTED = {
    "A1": {
        "attributes": ["solid wood", "easy assemble"],
        "instruction": "Find me a table",
        "instruction_attributes": ["solid wood"],
    },
    "A2": {"attributes": ["gluten free"]},
}
COOKIE = item(
    "A2",
    name="Wild Berry Cookies",
    full_description="Baked with oats.",
    pricing="$3.5 to $7.5",
    product_category="Food › Snacks › Cookies",
    small_description="Crisp",
    customization_options="",
    category="grocery",
    query="cookies",
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "items_shuffle_1000.json").write_text(json.dumps([item("A1"), COOKIE]))
    (tmp_path / "items_ins_v2_1000.json").write_text(json.dumps(WANTED))
    return tmp_path


def test_products_as_the_pages_show_them(folder):
    table, cookie = read_catalogue(folder).products
    assert table.options == {"color": ("light | dark brown", "navy blue")}
    assert (table.shown_price, table.price, table.query) == ("$49.95", 49.95, "console tables")
    assert (cookie.shown_price, cookie.bullets, cookie.options) == ("$3.5 to $7.5", ("Crisp",), {})
    assert 3.5 <= cookie.price <= 7.5 and cookie == read_catalogue(folder).products[1]
    free = make_catalogue("x", [item("A1", pricing="")], {}, {}).products[0]
    assert (free.shown_price, free.price, free.attributes) == ("$100.0", 100.0, ("DUMMY_ATTR",))


def test_ids_that_the_original_skips():
    rows = [item("A1"), item("A1", name="again"), item("nan"), item("A" * 11), item("A2")]
    assert [p.asin for p in make_catalogue("x", rows, {}, {}).products] == ["A1", "A2"]


def test_goals_one_for_each_combination_in_the_original_words(folder):
    goals = make_goals(read_catalogue(folder), human=False)
    assert Counter(goal.wanted_options for goal in goals) == {("light | dark brown",): 1, ("navy blue",): 1}
    for goal in goals:
        assert goal.price_upper in (60.0, 70.0, 80.0, 90.0)[1:]
        expected = f"Find me a table with color: {goal.wanted_options[0]}, and price lower than {goal.price_upper:.2f} dollars"
        assert goal.text == expected


def test_peoples_goals(folder):
    said = {
        "instruction": "i want a brown table.",
        "instruction_attributes": ["solid wood"],
        "instruction_options": ["light brown"],
    }
    (folder / "items_human_ins.json").write_text(json.dumps({"A1": [said, {**said, "instruction_attributes": []}]}))
    environment = WebshopEnvironment(data_dir=str(folder))
    [goal] = environment.store.goals
    assert goal.text.startswith("i want a brown table, and price lower than ") and goal.wanted_options == ("light brown",)
    assert environment.store.id.endswith("/human")
    assert len(WebshopEnvironment(data_dir=str(folder), goals="synthetic").store.goals) == 2


def test_splits_are_the_originals():
    assert {k: (len(r), r[0]) for k, r in split_ranges(6910).items()} == {
        "train": (5410, 1500),
        "eval": (1000, 500),
        "test": (500, 0),
    }
    small = split_ranges(41)
    assert sorted(n for numbers in small.values() for n in numbers) == list(range(41))


def test_analysis():
    assert analyse("The Women's running-shoes aren't 3.5 inch, 1,000 pcs!") == [
        "women", "run", "shoe", "aren't", "3.5", "inch", "1,000", "pc",
    ]  # fmt: skip
    assert analyse("宿 מלון café \x00 ''") == ["宿", "מלון", "café"]
    assert analyse("size:free _ a_b 锅巴 ❤️ ★ technology assembly incredible us") == [
        "size:fre", "a_b", "锅", "巴", "❤️", "★", "technolog", "assembl", "incred", "us",
    ]  # fmt: skip
    assert [len(term) for term in analyse("x" * 600)] == [255, 255, 90]
    assert [stored_length(n) for n in (0, 23, 39, 40, 41, 56, 57, 100, 1000)] == [0, 23, 39, 40, 40, 56, 56, 96, 984]


def slow_scores(documents: list[str], query: str) -> list[float]:
    """BM25 by its formula, a document at a time."""
    texts = [analyse(document) for document in documents]
    mean, scores = sum(map(len, texts)) / len(texts), []
    for terms in texts:
        score = 0.0
        for word in analyse(query):
            df, tf = sum(word in other for other in texts), terms.count(word)
            if tf:
                norm = K1 * (1 - B + B * stored_length(len(terms)) / mean)
                score += math.log(1 + (len(texts) - df + 0.5) / (df + 0.5)) * tf / (tf + norm)
        scores.append(score)
    return scores


def test_search_ranks_by_the_formula():
    rng = random.Random(0)
    vocabulary = [f"{a}{b}" for a in ("table", "lamp", "red", "oak") for b in ("", "x", "y")]
    documents = [" ".join(rng.choices(vocabulary, k=rng.randint(1, 90))) for _ in range(300)]
    index = SearchIndex(documents)
    for _ in range(25):
        query = " ".join(rng.choices([*vocabulary, "unknown"], k=rng.randint(1, 6)))
        expected = slow_scores(documents, query)
        found = index.search(query)
        assert len(found) == min(50, sum(score > 0 for score in expected))
        assert [expected[n] for n in found] == pytest.approx(sorted(expected, reverse=True)[: len(found)], rel=1e-5)


def test_ties_rank_in_the_documents_order():
    assert SearchIndex(["red lamp", "blue lamp", "red lamp", "table"]).search("lamp") == [0, 1, 2]
    assert SearchIndex(["lamp"] * 80).search("lamp") == list(range(50))
    assert SearchIndex(["lamp"]).search("the of ''") == []


@pytest.fixture
def shop(folder):
    environment = WebshopEnvironment(data_dir=str(folder))
    session = environment.session()
    task = environment.tasks("train", 1)[0]
    return session, session.reset(task.id), environment.store.goals[environment.store.number(task.id)]


def test_every_page_word_for_word(shop):
    session, start, goal = shop
    assert start.observation == f"WebShop [SEP] Instruction: [SEP] {goal.text} [SEP] Search"
    assert list(start.info.admissible) == ["search[<words>]"]
    head = f"Instruction: [SEP] {goal.text} [SEP] Back to Search [SEP] "
    first = "Page 1 (Total results: 1) [SEP] Next > [SEP] A1 [SEP] Oak Console Table [SEP] $49.95"
    item_page = (
        f"{head}< Prev [SEP] color [SEP] light | dark brown [SEP] navy blue [SEP] Oak Console Table [SEP] Price: $49.95 [SEP] "
        "Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
    )
    walk = {
        "search[Oak tables]": head + first,
        "click[Next >]": f"{head}Page 2 (Total results: 1) [SEP] < Prev [SEP] Next >",
        "click[< prev]": head + first,
        "click[a1]": item_page,
        "click[description]": f"{head}< Prev [SEP] A table of solid oak.",
        "click[< Prev] please": item_page,
        "click[features]": f"{head}< Prev [SEP] Easy to assemble [SEP] Hand made",
        "click[< prev]  ": item_page,
        "click[reviews]": f"{head}< Prev",
        "click[< prev]\n": item_page,
        "click[navy blue]": item_page,
    }
    for action, expected in walk.items():
        step = session.step(action)
        assert (step.observation, step.info.valid, step.reward, step.done) == (expected, True, 0.0, False), action
    assert list(step.info.admissible)[1:] == [
        f"click[{name}]"
        for name in ("back to search", "< prev", "description", "features", "reviews", "buy now", "light | dark brown", "navy blue")
    ]
    bought = session.step("click[buy now]")
    assert (
        bought.done
        and bought.observation.startswith("Thank you for shopping with us! [SEP] Your code: ")
        and "[SEP] asin [SEP] A1 [SEP]" in bought.observation
    )
    assert not session.step("click[buy now]").info.valid and session.step("search[oak]").reward == 0.0


def test_rich_text_marks_what_can_be_clicked(folder):
    environment = WebshopEnvironment(data_dir=str(folder), observation="text_rich", attributes=True)
    session = environment.session()
    session.reset(environment.tasks("train", 1)[0].id)
    assert "\n[button] A1 [button_]\nOak Console Table\n$49.95" in session.step("search[oak]").observation
    session.step("click[a1]")
    chosen = session.step("click[navy blue]").observation
    assert chosen.startswith("You have clicked navy blue.\n")
    assert "color\n  [button] light | dark brown [button_]\n  [clicked button] navy blue [clicked button_]\n" in chosen
    assert session.step("click[attributes]").observation.endswith(
        "\n solid wood\n easy assemble\ngarden\nconsole tables\nHome › Tables › Console Tables\n"
    )


def test_a_value_of_two_options_sets_the_last_and_names_rule_what_a_click_does(folder):
    options = {"Color": [{"value": "Wide"}, {"value": "features"}], "Size": [{"value": "wide"}, {"value": "next >"}]}
    rows = [item("A1", customization_options=options)]
    (folder / "items_shuffle_1000.json").write_text(json.dumps(rows))
    environment = WebshopEnvironment(data_dir=str(folder), observation="text_rich")
    session = environment.session()
    session.reset(environment.tasks("train", 1)[0].id)
    session.step("search[oak]")
    step = session.step("click[a1]")
    assert list(step.info.admissible)[1:] == [
        f"click[{n}]" for n in ("back to search", "< prev", "description", "features", "reviews", "buy now", "wide", "next >")
    ]
    chosen = session.step("click[wide]")
    assert session.visit.options == {"size": "wide"}
    # Both labels are marked, and a line told for each.
    assert (
        chosen.observation.startswith("You have clicked wide.\nYou have clicked wide.\n")
        and chosen.observation.count("[clicked button]") == 2
    )
    session.step("click[next >]")
    assert session.visit.options == {"size": "next >"} and session.visit.page == "item"
    assert not session.step("click[features]").observation.startswith("You have") and session.visit.page == "Features"
    assert session.step("click[< prev]").observation.startswith("You have clicked next >.\n")
    session.step("click[< prev]")
    again = session.step("click[a1]").observation
    assert "[clicked" not in again  # options are those of one look at an item
    assert "[clicked button] A1 [clicked button_]" in session.step("click[< prev]").observation


@pytest.mark.parametrize(
    "action",
    ["", "buy", "click[", "click[]", "search[]", "click[a2]", "click[search]", "think[x]", "Click[buy now]", " click[search]",
     "click[ a1 ]",
     "a" * 100_000, "search[" + "x" * 100_000 + "]",
     "\x00\x1b[31m", "click[\udcff]", "宿", "click[buy now]"],
)  # fmt: skip
def test_what_is_no_action_changes_nothing(shop, action):
    session, start, _ = shop
    step = session.step(action)
    assert (step.observation, step.reward, step.done, step.info.valid) == (start.observation, 0.0, False, False)
    assert session.step("search[oak]").info.valid


def test_rewards_worked_by_hand(folder):
    table, cookie = read_catalogue(folder).products
    goal = replace(make_goals(read_catalogue(folder), human=False)[0], options={"color": "navy blue"}, price_upper=60.0)
    both = replace(goal, attributes=("solid wood", "hand made", "waterproof"))

    def score(goal, product, options):
        return score_purchase(goal, product, options, words)

    assert score(goal, table, ["navy blue"]).reward == 1.0
    assert score(goal, table, ["dark blue"]).option_hits == 1  # chosen, it is `blue`, which is a word of the wanted pair
    assert score(goal, table, ["light | dark brown"]).reward == pytest.approx(2 / 3)
    assert score(both, table, []).reward == pytest.approx((2 + 0 + 1) / 5)  # hand made stands in a bullet point only
    assert score(replace(goal, price_upper=40.0), table, ["navy blue"]).reward == pytest.approx(2 / 3)
    other = score(goal, cookie, [])
    assert (other.r_type, other.title_score, other.reward) == (0.0, 0.0, 0.0)
    named = replace(cookie, title="Oak Cookies")  # one of three nouns of the goal's title
    assert score(goal, named, []).r_type == 1.0
    longer = replace(goal, product=replace(table, title="Oak Console Table Desk Stand Shelf Rack Board"))
    assert score(longer, named, []).r_type == 0.5  # one of eight
    assert score(longer, named, []).reward == pytest.approx(0.5 * 1 / 3)


def test_wanted_pairs_are_compared_as_text_and_peoples_values_by_their_colour():
    assert option_hits(("midnight blue",), ["sky blue"]) == 1 and option_hits({"color": "midnight blue"}, ["sky blue"]) == 1
    assert option_hits(("navy",), ["blue"]) == 0
    assert option_hits({"size": "x-large"}, ["large"]) == 1  # signs become blanks before texts are compared
    assert option_hits({"flavor name": "old fashioned"}, ["old fashioned"]) == 0  # chosen, it is `ash`; wanted, it is not reduced
    assert option_hits({"color": "red"}, ["red stripes"]) == 1  # a pair with a colour alone is that colour
    assert option_hits({"color": "red"}, ["dark red"]) == 0  # the first of the list, which is `dark`
    assert option_hits({"color": "ROSA ♥"}, ["rosa"]) == 1 and option_hits({}, ["blue"]) == 0


def test_title_scores_count_the_wanted_nouns_with_repeats():
    assert title_score(["table", "oak", "table", "table"], ["table"]) == 0.25
    assert title_score([], ["table"]) == 0.2 and title_score(["table"], []) == 0.0
    assert words("New Oak Table for 2 People, very quickly") == ("new", "oak", "table", "people", "quickly")


@pytest.mark.parametrize(
    ("pricing", "shown", "low", "high"),
    [
        ("$.99", "$0.99", 0.99, 0.99),
        ("$9.99 ($0.83 / Ounce)", "$9.99 to $0.83", 0.83, 9.99),
        ("$1,299.00", "$1299.0", 1299.0, 1299.0),
        ("$5.", "$5.0", 5.0, 5.0),
        ("$1.5 to $2.5 or $9", "$1.5 to $2.5", 1.5, 2.5),
    ],
)
def test_prices_are_read_as_the_original_reads_them(pricing, shown, low, high):
    product = make_catalogue("x", [item("A1", pricing=pricing)], {}, {}).products[0]
    assert product.shown_price == shown and low <= product.price <= high


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pricing": "cheap"}, "price 'cheap' is not like"),
        ({"pricing": "$1.2.3"}, "is not like"),
        ({"name": None}, "expected text, found None"),
        ({"customization_options": {"size": [{"price": 3}]}}, "KeyError: 'value'"),
        ({"asin": 5}, "has no asin"),
    ],
)
def test_a_broken_product_is_named(folder, change, words):
    (folder / "items_shuffle_1000.json").write_text(json.dumps([COOKIE, {**item("A1"), **change}]))
    with pytest.raises(DataError, match=words) as caught:
        read_catalogue(folder)
    assert f"{folder / 'items_shuffle_1000.json'}: product 1" in str(caught.value)


def test_a_broken_folder_is_said(folder, tmp_path):
    whole = (folder / "items_shuffle_1000.json").read_bytes()
    for content in (whole[:-20], b"", b"{}", b"[]", b"\xff\xfe"):
        (folder / "items_shuffle_1000.json").write_bytes(content)
        with pytest.raises(DataError, match=r"items_shuffle_1000\.json"):
            read_catalogue(folder)
    (folder / "items_shuffle_1000.json").unlink()
    (folder / "items_shuffle_1000.json.xz").write_bytes(lzma.compress(whole)[:-30])
    with pytest.raises(DataError, match=r"items_shuffle_1000\.json\.xz: cannot be read"):
        read_catalogue(folder)
    (folder / "items_shuffle_1000.json.xz").write_bytes(lzma.compress(whole))
    assert len(read_catalogue(folder).products) == 2
    (folder / "items_ins_v2_1000.json").unlink()
    for empty in (folder, tmp_path / "gone"):
        with pytest.raises(MissingFileError):
            read_catalogue(empty)


def test_tasks_of_another_catalogue_are_refused(folder):
    environment, other = WebshopEnvironment(data_dir=str(folder)), WebshopEnvironment(products=50)
    task = environment.tasks("train", 1)[0]
    assert environment.task(task.reference()) == task
    for name in (task.id, "x", other.store.id, f"{other.store.id}/-1", f"{other.store.id}/999999", f"{other.store.id}/²"):
        with pytest.raises(ConfigError, match="this catalogue's goals are"):
            other.session().reset(name)
    for options in ({"goals": "all"}, {"observation": "html"}, {"products": 0}):
        with pytest.raises(ConfigError):
            make_environment("webshop", **options)
    with pytest.raises(ConfigError, match="choose one of"):
        other.tasks("dev")
    with pytest.raises(ConfigError, match="task type 'cars': choose one of"):
        other.tasks("test", task_type="cars")
    with pytest.raises(ConfigError, match="so not those from"):
        other.tasks("test", 10_000)


def test_a_generated_catalogue_is_fixed_by_its_seed():
    first, again, other = (make_catalogue("g", *generate_catalogue(400, seed), {}) for seed in (0, 0, 1))
    assert first == again
    assert {p.title for p in first.products}.isdisjoint(p.title for p in other.products) or first.id != other.id
    assert len({p.title for p in first.products}) > 390 and len(first.products) == 400
    goals = make_goals(first, human=False)
    assert {goal.product.category for goal in goals} == {"beauty", "electronics", "fashion", "garden", "grocery"}
    for goal in goals:  # its own product, with the wanted options, fulfils it; but a chosen sandalwood is the colour `sand`
        reward = score_purchase(goal, goal.product, goal.wanted_options, words).reward
        assert (reward == 1.0) == ("sandalwood" not in goal.wanted_options)


def test_the_official_totals():
    if not OFFICIAL.is_dir():
        pytest.skip("the official catalogue is not here")
    store = WebshopEnvironment(data_dir=str(OFFICIAL)).store
    assert len(store.shop.by_asin) == 1000 and len(store.goals) == 6910
    met = [score_purchase(goal, goal.product, goal.wanted_options, store.shop.nouns) for goal in store.goals]
    assert min(terms.r_type for terms in met) == 1.0
    assert sum(terms.reward < 1.0 for terms in met) == 458


@pytest.mark.parametrize(
    ("product", "wanted", "says"),
    [
        ({}, {"instruction": 5}, "expected text, found 5"),
        ({}, {"instruction_attributes": "solid wood"}, "expected a list of texts, found 'solid wood'"),
        ({}, {"attributes": [None]}, "expected text, found None"),
        (
            {"customization_options": {str(i): [{"value": str(j)} for j in range(10)] for i in range(9)}},
            {},
            "1000000000 combinations",
        ),
    ],
)
def test_instructions_that_are_no_text_and_options_without_end_are_refused(product, wanted, says):
    with pytest.raises(DataError, match=says):
        make_catalogue("x", [item("A1", **product)], {"A1": {**WANTED["A1"], **wanted}}, {})
