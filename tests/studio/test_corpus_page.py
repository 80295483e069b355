"""The corpus's page in a browser: cuts, filters, the table, and overrides that the files keep."""

import json
import re

import numpy as np
import polars as pl
import pytest
from playwright.sync_api import expect

import gradprism as gp
from helpers.studio_pages import counts, parameter, served, settle

pytestmark = pytest.mark.slow  # a browser, and a server of its own

N = 12


def scores(tree, metric="gini"):
    return np.sort(gp.Probe.load(tree / "probe").scores(metric))


def shown_rows(page):
    settle(page)
    return page.locator(".table .grid-row").count()


def test_the_slider_moves_the_cut_and_the_link_keeps_it(pages, kept_tree):
    page = pages.corpus()
    assert counts(page) == {"sft": 6, "rl": 6}
    slider = page.get_by_role("slider", name="cut", exact=True)
    slider.focus()
    for _ in range(300):
        slider.press("ArrowRight")
    cut = float(parameter(page, "cut") or "nan")
    assert float(page.get_by_label("cut, exactly").input_value()) == pytest.approx(cut, rel=1e-5)
    expected = int((scores(kept_tree) > cut).sum())
    assert counts(page) == {"sft": N - expected, "rl": expected} and expected < 6
    page.reload()
    page.locator(".sides td.n").first.wait_for()
    assert counts(page) == {"sft": N - expected, "rl": expected}
    page.get_by_role("button", name="The lines that make what is shown").click()
    line = page.locator(".command pre").first.inner_text()
    threshold = re.search(r"--threshold (\S+)", line)
    assert threshold and (scores(kept_tree) > float(threshold[1])).sum() == expected


def test_a_cut_is_dragged_in_the_histogram(pages, kept_tree):
    page = pages.corpus()
    box = page.locator(".split .figure-box").bounding_box()
    low, high = scores(kept_tree)[[0, -1]]
    left, right = box["x"] + 54, box["x"] + box["width"] - 14
    at = left + (np.median(scores(kept_tree)) - low) / (high - low) * (right - left)
    page.mouse.move(at, box["y"] + 90)
    page.mouse.down()
    page.mouse.move(at - 60, box["y"] + 90, steps=4)
    page.mouse.up()
    settle(page)
    cut = low + (at - 60 - left) / (right - left) * (high - low)
    assert float(page.get_by_label("cut, exactly").input_value()) == pytest.approx(cut, abs=(high - low) / 100)


def test_two_cuts_leave_the_middle_to_neither(pages, kept_tree):
    ordered = scores(kept_tree)
    page = pages.corpus(f"?cut={(ordered[3] + ordered[4]) / 2},{(ordered[8] + ordered[9]) / 2}")
    assert counts(page) == {"sft": 4, "none": 5, "rl": 3}
    page.get_by_role("button", name="The lines that make what is shown").click()
    assert "--sides sft,none,rl" in page.locator(".command pre").first.inner_text()


def test_a_share_sets_the_cut_as_route_does(pages, kept_tree):
    page = pages.corpus()
    page.get_by_label("RL share").fill("25")
    page.get_by_label("RL share").press("Enter")
    assert counts(page) == {"sft": 9, "rl": 3}
    routed = gp.route(kept_tree / "probe", rl_share=0.25)
    assert float(parameter(page, "cut") or "nan") == routed.routing.threshold


def test_warnings_follow_the_cut(pages):
    page = pages.corpus("?cut=99")
    assert page.locator(".audit .notice").first.inner_text().startswith(f"All {N} trajectories go to SFT")


def test_a_stratum_filters_and_its_chip_takes_it_back(pages):
    page = pages.corpus("?by=task.source")
    assert shown_rows(page) == N
    page.locator(".strata-table").get_by_role("button", name="s1", exact=True).click()
    assert page.locator(".chip").inner_text().startswith("source: s1")
    assert shown_rows(page) == 4 and parameter(page, "f") == "task.source=s1"
    page.reload()
    page.locator(".chip").get_by_role("button").click()
    expect(page.locator(".table .grid-row")).to_have_count(N)


def test_a_lasso_filters_to_the_points_within(pages, kept_tree):
    page = pages.corpus("?x=gini&y=loss")
    box = page.locator(".scatter .figure-box").bounding_box()
    left, right, top, bottom = box["x"] + 54, box["x"] + box["width"] - 12, box["y"] + 8, box["y"] + box["height"] - 40
    middle = (left + right) / 2
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((middle, top), (middle, bottom), (left, bottom), (left, top)):
        page.mouse.move(x, y, steps=5)
    page.mouse.up()
    ordered = scores(kept_tree)
    pad = 0.03 * (ordered[-1] - ordered[0])
    expected = int((ordered < (ordered[0] - pad + ordered[-1] + pad) / 2).sum())
    page.locator(".chip", has_text="lasso").wait_for()
    assert abs(shown_rows(page) - expected) <= 1 and 0 < shown_rows(page) < N


def test_search_looks_at_ids_first_lines_and_all_texts(pages):
    page = pages.corpus()
    box = page.get_by_role("searchbox", name="Search")
    page.keyboard.press("/")
    page.keyboard.type("sample-0003")
    expect(page.locator(".table .grid-row")).to_have_count(1)
    box.fill("gnp.exe")
    box.press("Enter")
    page.locator(".chip", has_text="text has").wait_for()
    expect(page.locator(".table .grid-row")).to_have_count(1)


def test_the_table_is_used_by_keys(pages, kept_tree):
    page = pages.corpus("?sort=loss")
    losses = gp.Probe.load(kept_tree / "probe").measures().sort("loss")
    page.get_by_role("grid", name="Trajectories").focus()
    for key in ("ArrowDown", "Space", "ArrowDown", "Space"):
        page.keyboard.press(key)
    assert page.locator(".actions").inner_text().startswith("2 selected")
    page.keyboard.press("Enter")
    page.locator("h1").wait_for()
    assert page.locator("h1 .mono").inner_text() == losses["id"][2]
    page.keyboard.press("k")
    expect(page.locator("h1 .mono")).to_have_text(losses["id"][1])
    page.keyboard.press("u")
    page.get_by_role("grid", name="Trajectories").wait_for()


def test_tags_are_kept_and_filter(pages):
    page = pages.corpus("?by=task.source&f=task.source=s2")
    page.get_by_role("button", name="Tag").click()
    page.get_by_label("New tag").fill("odd")
    page.keyboard.press("Enter")
    page = pages.corpus("?f=tag=odd")
    assert shown_rows(page) == 3


def test_an_override_is_kept_in_the_route(own_tree, pages_of):
    with served(own_tree) as address:
        found = pages_of(address)
        page = found.corpus("?by=task.source&f=task.source=s0&sort=id")
        route = page.get_by_label("cut by").locator("option", has_text="route").get_attribute("value").removeprefix("r:")
        page = found.corpus(f"?f=task.source=s0&route={route}")
        before = counts(page)
        page.get_by_role("button", name="Send to …").click()
        page.get_by_role("group", name="Side").get_by_role("button", name="RL").click()
        page.get_by_label("Reason").fill("seen by hand")
        page.get_by_role("button", name="Override").click()
        page.locator(".override").first.wait_for()
        frame = gp.Routes.load(own_tree / "route").frame
        chosen = frame.filter(pl.col("id").is_in(["t0", "sample-0003", "t6", "t9"]))
        assert set(chosen["route"]) == {"rl"}
        assert "seen by hand" in str(frame.rows())
        assert counts(page)["rl"] >= before["rl"] and counts(page)["rl"] == (frame["route"] == "rl").sum()
        assert found.said == []


def test_an_exported_page_overrides_nothing_and_says_so(own_tree, pages_of, tmp_path):
    out = gp.export_studio(own_tree, tmp_path / "page.html")
    found = pages_of(out.as_uri())
    page = found.corpus("?f=task.source=s0")
    page.get_by_role("button", name="Send to …").click()
    assert "exported page changes nothing" in page.locator(".menu-panel").inner_text()


def test_figures_are_saved_as_pictures_and_numbers(pages, kept_tree):
    page = pages.corpus()
    for kind, begins in (("PNG", b"\x89PNG"), ("SVG", b"<svg"), ("CSV", b"id,gini,loss,side")):
        page.locator(".scatter .figure").hover()
        page.locator(".scatter .figure-save > .menu > button").click()
        with page.expect_download() as download:
            page.locator(".scatter .figure-save").get_by_role("button", name=re.compile(f"^{kind}")).click()
        content = download.value.path().read_bytes()
        assert content.startswith(begins)
    table = pl.read_csv(content)
    assert table.height == N
    assert np.sort(table["gini"]) == pytest.approx(scores(kept_tree))


def test_a_folder_that_changes_says_so_and_is_read_again(own_tree, pages_of):
    with served(own_tree) as address:
        page = pages_of(address).corpus()
        manifest = json.loads((own_tree / "probe" / "manifest.json").read_text())
        (own_tree / "probe" / "manifest.json").write_text(json.dumps(manifest, indent=3))
        page.locator(".notice", has_text="changed on disk").wait_for()
        for shard in (own_tree / "probe").glob("norms-*"):
            shard.write_bytes(shard.read_bytes()[:200])
        page.get_by_role("button", name="Load again").click()
        page.locator(".notice.bad").first.wait_for()
        assert "not probed yet" in page.locator("main .notice.bad").inner_text()
