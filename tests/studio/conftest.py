"""A browser and a served tree of folders, for the tests of pages."""

import shutil

import pytest

from helpers.studio import make_run, make_tree
from helpers.studio_pages import Pages, served

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed; Debian's package is called chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def kept_tree(tmp_path_factory):
    """A model, a probe with single turns, a route and a run, all with hostile texts."""
    folder = tmp_path_factory.mktemp("studio")
    make_tree(folder)
    make_run(folder / "run")
    return folder


@pytest.fixture(scope="session")
def shown(kept_tree):
    """The address of the tree; tests that use it change nothing in it."""
    with served(kept_tree, options=("--model", str(kept_tree / "model"))) as address:
        yield address


@pytest.fixture
def own_tree(kept_tree, tmp_path):
    """A copy of the tree that a test may change."""
    shutil.copytree(kept_tree, tmp_path / "tree")
    return tmp_path / "tree"


@pytest.fixture
def pages(browser, shown, request):
    """The served tree in a window of its own."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    found = Pages(context, shown)
    yield found
    context.close()
    assert found.said == []


@pytest.fixture
def pages_of(browser):
    """Pages of other addresses."""
    contexts = []

    def make(address, **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        return Pages(contexts[-1], address)

    yield make
    for context in contexts:
        context.close()
