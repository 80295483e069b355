"""Trajectories, comparisons, runs and results in a browser, served and exported."""

import re
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

import gradprism as gp
from helpers.studio import ATTACK
from helpers.studio_pages import served, settle

pytestmark = pytest.mark.slow  # a browser, and a server of its own

RESULTS = Path(__file__).parents[2] / "results" / "alfworld-mini"
SHOWN_ATTACK = ATTACK.replace("\x1b", "␛").replace("\u202e", "⟨U+202E⟩")


@pytest.fixture(scope="module")
def results_address():
    with served(RESULTS) as address:
        yield address


def link(page, name):
    """The address of the first folder's page of that name."""
    return page.locator(".folders .pages a", has_text=name).first.get_attribute("href")


def test_folders_are_found_with_their_pages(pages):
    page = pages.open()
    page.locator(".folders tbody tr").first.wait_for()
    kinds = set(page.locator(".folders .kind").all_inner_texts())
    assert {"probe", "route", "run"} <= kinds
    page.get_by_label("Filter folders").fill("route")
    settle(page)
    assert set(page.locator(".folders .kind").all_inner_texts()) == {"route"}


def test_a_trajectory_is_read_turn_by_turn(pages, kept_tree):
    page = pages.corpus()
    page.locator(".table .grid-row", has_text="sample-0003").click()
    expect(page.locator("h1 .mono")).to_have_text("sample-0003")
    page.locator(".turn").first.wait_for()
    turns = page.locator(".turn.counted").count()
    assert turns == page.locator(".strip-bars button").count() > 0  # each was probed by itself
    ranks = page.locator(".ranks tr", has_text="gini").first
    scores = gp.Probe.load(kept_tree / "probe").scores("gini")
    assert int(ranks.locator("td").nth(2).inner_text()) == 1 + (scores < scores[3]).sum()
    for table, side in zip(page.locator(".neighbours").all(), ("SFT", "RL"), strict=True):
        distances = [float(text) for text in table.locator("td:nth-child(2)").all_inner_texts()]
        assert side in table.locator("thead").inner_text() and distances == sorted(distances) and len(distances) >= 5
    expect(page.locator("aside .figure .readout").first).to_contain_text("highest:")
    page.get_by_role("button", name="As the model reads it").click()
    page.locator(".token-text span.own").first.wait_for()
    assert page.locator(".token-text span.own").count() < page.locator(".token-text span").count()
    assert page.url.endswith("view=tokens")


def test_the_profile_is_less_the_corpus_mean(pages, kept_tree):
    norms = gp.Probe.load(kept_tree / "probe").norms.astype(float)
    profiles = norms / norms.sum(1, keepdims=True) * norms.shape[1]
    page = pages.corpus()
    page.locator(".table .grid-row", has_text="sample-0003").click()
    figure = page.locator("aside .figure").first
    figure.hover()
    figure.locator(".figure-save > .menu > button").click()
    with page.expect_download() as download:
        figure.get_by_role("button", name=re.compile("^CSV")).click()
    rows = download.value.path().read_text().splitlines()[1:]
    values = [float(row.split(",")[2].lstrip("'")) for row in rows]
    assert values == pytest.approx(profiles[3] - profiles.mean(0), abs=2e-3)  # they come with four digits


def test_hostile_texts_stay_texts(pages):
    page = pages.corpus("?sort=-n_tokens")
    page.locator(".table .grid-row", has_text="alert(1)").first.click()
    page.locator(".turn").nth(4).wait_for()
    assert SHOWN_ATTACK in page.locator(".turn.system .text").inner_text()
    assert SHOWN_ATTACK in page.locator(".call .mono").first.inner_text()
    assert "\u202e" not in page.locator("body").inner_text() and "\x1b" not in page.locator("body").inner_text()
    assert page.locator("main img, main script, main iframe").count() == 0
    assert page.locator("a[href^='javascript:']").count() == 0


def test_a_turn_of_megabytes_is_folded(browser, tmp_path, pages_of):
    long = [{"role": "user", "content": "x" * 5_000_000}, {"role": "assistant", "content": "go"}]
    short = [{"role": "user", "content": "y"}, {"role": "assistant", "content": "go"}]
    records = [{"id": "long", "messages": long, "task": {}}, {"id": "short", "messages": short, "task": {}}]
    from helpers.probes import make_probe

    make_probe(tmp_path / "probe", trajectories=list(gp.load_corpus(records)))
    with served(tmp_path) as address:
        found = pages_of(address)
        page = found.open()
        page.locator(".folders tbody a").first.wait_for()
        page = found.open(f"{link(page, 'corpus')}/trajectory/long")
        expect(page.get_by_role("button", name=re.compile("Show .* more"))).to_contain_text("5.0\u00a0MB left", timeout=30_000)
        assert page.evaluate("document.body.innerText.length") < 20_000
        assert found.said == []


def test_two_metrics_are_compared(pages, kept_tree):
    probe = gp.Probe.load(kept_tree / "probe")
    a, b = ((values := probe.scores(metric)) > np.median(values) for metric in ("gini", "kurtosis"))
    page = pages.corpus()
    corpus = page.url.partition("corpus/")[2].partition("?")[0]
    page = pages.open(f"#/compare?a={corpus}&b={corpus}&ma=gini&mb=kurtosis")
    page.locator(".numbers strong").first.wait_for()
    said = dict(
        zip(page.locator(".numbers span").all_inner_texts(), page.locator(".numbers strong").all_inner_texts(), strict=True)
    )
    assert float(said["Jaccard of RL"]) == pytest.approx((a & b).sum() / (a | b).sum(), abs=1e-3)
    assert int(said["SFT → RL"]) == (~a & b).sum() and int(said["RL → SFT"]) == (a & ~b).sum()
    expect(page.locator(".table .grid-row")).to_have_count(int((a != b).sum()))


def test_a_run_shows_its_stages_alarms_and_episodes(pages):
    page = pages.open()
    page.locator(".folders tbody a").first.wait_for()
    page = pages.open(link(page, "run"))
    page.locator(".stages tbody tr").first.wait_for()
    expect(page.locator(".notice strong").first).to_be_visible()
    assert "refused" in page.locator(".notice strong").all_inner_texts()
    page.locator(".multiple canvas").first.wait_for()
    page.get_by_role("link", name="episodes").click()
    expect(page.locator(".grid-row")).to_have_count(6)
    page.get_by_label("outcome").select_option("success")
    expect(page.locator(".grid-row")).to_have_count(3)
    page.locator(".grid-row").first.click()
    page.locator(".step").first.wait_for()
    assert page.locator(".step.refused").count() == 1
    assert "r att" in page.locator(".reward").inner_text() and SHOWN_ATTACK in page.locator(".step .text").first.inner_text()


def test_results_show_arms_claims_and_any_two_arms(results_address, pages_of):
    found = pages_of(results_address)
    page = found.open()
    page.locator(".folders tbody a").first.wait_for()
    page = found.open(link(page, "experiment"))
    page.locator(".claims tbody tr").first.wait_for(timeout=90_000)  # statistics of 28 arms
    results = gp.read_results(RESULTS)
    assert page.locator(".claims tbody tr").count() == len(results.claims)
    arms = {arm.name: arm for arm in results.arms}
    split = next(iter(results.tasks))
    page.get_by_label("first").select_option("sft")
    page.get_by_label("second").select_option("grpo")
    settle(page)
    sft, grpo = (np.mean([[int(c) for c in run.success[split]] for run in arms[name].runs], axis=0) for name in ("sft", "grpo"))
    said = page.locator(".table .fine").first.inner_text()
    assert f"in {(sft > grpo).sum()}," in said and f"in {(sft < grpo).sum()};" in said
    assert found.said == []


@pytest.mark.parametrize("out", ["page.html", "folder"])
def test_an_export_opens_from_a_disk(kept_tree, tmp_path, pages_of, out):
    made = gp.export_studio(kept_tree, tmp_path / out, models=[str(kept_tree / "model")])
    found = pages_of((made / "index.html" if made.is_dir() else made).as_uri(), offline=True)
    asked = []
    found.page.on("request", lambda request: asked.append(request.url))
    page = found.corpus()
    assert page.locator(".table .grid-row").count() == 12
    page.get_by_role("searchbox", name="Search").fill("gnp.exe")
    page.get_by_role("searchbox", name="Search").press("Enter")
    expect(page.locator(".table .grid-row")).to_have_count(1)
    page.get_by_role("button", name="Remove the filter").click()
    page.locator(".table .grid-row", has_text="sample-0003").click()
    page.locator(".neighbours tbody tr").first.wait_for()
    page.get_by_role("button", name="As the model reads it").click()
    page.locator(".token-text span.own").first.wait_for()
    page = found.open()
    page.locator(".folders tbody a").first.wait_for()
    page = found.open(f"{link(page, 'run')}")
    page.get_by_role("link", name="episodes").click()
    page.locator(".grid-row").first.click()
    page.locator(".step").first.wait_for()
    assert found.said == []
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "about"}
