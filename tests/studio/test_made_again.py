"""Scores by which a page cuts, colours and sorts, and the line that it lets a user copy: it makes what is shown."""

import json
import re
import shlex

import pytest

import gradprism as gp
from gradprism.routing.tasks import read_tasks
from helpers.studio_pages import counts, parameter, served, settle

pytestmark = pytest.mark.slow  # a browser, and a server of its own

WAYS = {
    "shares": {"metric": "effective_rank", "shares": (0.25, 0.25, 0.5), "sides": ("sft", "both", "rl"), "order": "ascending"},
    "share": {"rl_share": 0.25, "within": "length", "policy": "soft", "seed": 5},
    "cuts": {"metric": "hoyer", "cuts": (0.05, 0.1, 0.2), "sides": ("sft", "rl", "none", "both"), "order": "descending"},
    "threshold": {"policy": "inverse", "threshold": -0.3, "normalise": "per_parameter", "per_turn": True},
    "linear": {"weights": "linear", "policy": "loss"},
    "logistic": {"weights": "logistic", "temperature": 0.01},
}


@pytest.fixture
def page_of(kept_tree, tmp_path, pages_of):
    """The corpus's page in a state, with a route of each of `WAYS`, of which the state may name one: `{shares}`."""
    for name in ("probe", "model"):
        (tmp_path / name).symlink_to(kept_tree / name)
    for name, way in WAYS.items():
        gp.route(kept_tree / "probe", **way).save(tmp_path / "routes" / name)
    with served(kept_tree / "probe", tmp_path / "routes") as address:
        found = pages_of(address)
        page = found.corpus()
        options = page.get_by_label("cut by").locator("option").all()
        ids = {option.inner_text().replace("/", " ").split()[-1]: option.get_attribute("value")[2:] for option in options}
        yield lambda state: found.corpus(state.format(**{name: f"route={id}" for name, id in ids.items()}))
        assert found.said == []


def made_again(page, cli, out):
    """The routes that the copied line makes."""
    page.get_by_role("button", name="The lines that make what is shown").click()
    words = shlex.split(page.locator(".command pre").first.inner_text())
    page.keyboard.press("Escape")
    assert words[:2] == ["gradprism", "route"] and words[-2] == "--out"
    code, _, err = cli(*words[1:-1], out)
    assert code == 0, err
    return gp.Routes.load(out)


def shown_counts(page):
    return {side: n for side, n in counts(page).items() if n}


def of(routes):
    return dict(routes.frame["route"].value_counts().iter_rows())


def test_a_route_is_shown_as_it_was_made_and_its_line_makes_it_again(page_of, cli, tmp_path):
    for name in WAYS:
        page, routes = page_of(f"?{{{name}}}"), gp.Routes.load(tmp_path / "routes" / name)
        assert shown_counts(page) == of(routes), name
        again = made_again(page, cli, tmp_path / f"again-{name}")
        assert again.frame.equals(routes.frame) and again.routing == routes.routing, name
        weights = WAYS[name].get("weights")
        assert page.get_by_label("divide by").input_value() == (weights or "none")
        assert page.get_by_role("slider").count() == (0 if weights else len(routes.routing.cut.at))


def test_what_is_chosen_in_the_page_is_in_its_line(page_of, cli, tmp_path):
    page = page_of("?m=effective_rank")
    page.get_by_label("divide by").select_option("logistic")
    page.get_by_role("spinbutton", name="temperature").fill("0.02")
    page.get_by_role("spinbutton", name="temperature").press("Enter")
    settle(page)
    routing = made_again(page, cli, tmp_path / "weights").routing
    assert (routing.metric, routing.weights, routing.temperature) == ("effective_rank", "logistic", 0.02)
    page.get_by_label("divide by").select_option("none")
    page.get_by_role("button", name="Two cuts").click()
    page.get_by_label("then to").select_option(label="both")
    page.get_by_label("sets in").select_option("descending")
    assert parameter(page, "order") == "descending"
    page.reload()
    page.locator(".sides td.n").first.wait_for()
    routes = made_again(page, cli, tmp_path / "cuts")
    assert shown_counts(page) == of(routes) and routes.routing.n_both > 0
    assert (routes.routing.order, routes.routing.sides) == ("descending", ("sft", "both", "rl"))
    # From a route by weights back to the median, by shares, without its order.
    page = page_of("?{linear}&w=none")
    assert made_again(page, cli, tmp_path / "median").routing.weights is None and shown_counts(page) == {"sft": 6, "rl": 6}
    page = page_of("?{cuts}&order=corpus&w=linear")
    assert made_again(page, cli, tmp_path / "linear").routing.weights == "linear" and shown_counts(page) == {"both": 12}


def test_ranks_drawn_among_equal_pass_rates_are_cut_by_shares(kept_tree, tmp_path, pages_of, cli):
    """A number would cut the rates themselves."""
    ids = read_tasks(gp.Probe.load(kept_tree / "probe"))["task"]
    episodes = tmp_path / "EPISODES.jsonl"
    episodes.write_text("".join(json.dumps({"id": id, "success": n % 2 == 0}) + "\n" for n, id in enumerate(ids)))
    gp.route(kept_tree / "probe", policy="pass_rate", pass_rates=episodes, seed=2).save(tmp_path / "route")
    with served(kept_tree / "probe", tmp_path / "route") as address:
        page = pages_of(address).corpus()
        route = page.get_by_label("cut by").locator("option", has_text="route").get_attribute("value")
        page.get_by_label("cut by").select_option(route)
        page.get_by_label("RL share").fill("25")
        page.get_by_label("RL share").press("Enter")
        assert shown_counts(page) == {"sft": 9, "rl": 3}
        page.get_by_role("button", name="The lines that make what is shown").click()
        assert page.locator(".command-head span").first.inner_text() == "Route so, in a shell (with the pass rates of then)"
        words = shlex.split(page.locator(".command pre").first.inner_text().replace("EPISODES.jsonl", str(episodes)))
        assert cli(*words[1:-1], tmp_path / "again")[0] == 0
        assert of(gp.Routes.load(tmp_path / "again")) == {"sft": 9, "rl": 3}


def test_every_score_can_be_cut_by_sorted_by_and_coloured_by(pages):
    page = pages.corpus("?m=effective_rank&c=hoyer&sort=-theil_in_layers&cols=id,kurtosis,theil_in_layers,effective_rank")
    for label, prefix in (("cut by", "m:"), ("x", ""), ("y", ""), ("colour", "")):
        of_label = page.locator("label").filter(has_text=re.compile(f"^{label}")).locator("select").first
        offered = set(of_label.evaluate("select => Array.from(select.options, option => option.value)"))
        assert {f"{prefix}{name}" for name in ("gini", "hoyer", "theil_in_kinds", "effective_rank", "cv/per_parameter")} <= offered
    assert page.locator(".score-help").inner_text().startswith("exp(−Σp·ln p)")
    assert page.locator(".scatter .legend span").count() == 4
    heads = page.locator(".grid-head [title]").all()
    assert any("T the Theil index within a layer" in (head.get_attribute("title") or "") for head in heads)
