"""The committed results: every table, figure and number in prose is what results.json gives."""

import re
from pathlib import Path

import pytest

from gradprism.experiments.comparison import Comparison
from gradprism.experiments.config import load_config
from gradprism.experiments.experiment import Job, job_status
from gradprism.experiments.gain import read_gain
from gradprism.experiments.results import read_results
from gradprism.reporting.gain_page import fill_gain_blocks, gain_page
from gradprism.reporting.pages import fill_blocks, tables_are_current
from gradprism.runtime.errors import DataError

FOLDERS = sorted(path.parent for path in Path("results").glob("*/results.json"))
GAINS = sorted(path.parent for path in Path("results").glob("*/gain.json"))


def test_there_are_results_of_both_environments():
    assert {folder.name for folder in FOLDERS} >= {"alfworld-mini", "webshop-mini"}


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_tables_and_figures_are_current(folder):
    assert tables_are_current(folder) == []
    assert (folder / "README.md").is_file() and (folder / "config.json").is_file()


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_the_results_were_made_with_the_config_beside_them(folder):
    results, config = read_results(folder), load_config(folder / "config.json")
    assert [arm.name for arm in results.arms] == [arm.name for arm in config.arms]
    assert results.seeds == config.seeds
    assert [(split, len(tasks)) for split, tasks in results.tasks.items()] == list(config.evaluation.splits.items())
    by_name = {arm.name: arm for arm in results.arms}
    for arm in config.arms:
        seeds = [run.seed for run in by_name[arm.name].runs]
        assert seeds == config.seeds_of(arm)[: len(seeds)]
        assert len(seeds) >= (1 if arm.name == config.base_arm else 3) or arm.group != "table1"


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_the_results_can_be_extended_by_todays_code(folder, tmp_path):
    """Their runs have the keys that the same settings have now, so nothing is made again; another seed is all that it costs."""
    config = load_config(folder / "config.json", [f'out="{tmp_path}"', "evaluations=[]"])
    if not Path(config.model.path).is_dir():
        pytest.skip(f"{config.model.path} is not here: a script makes it, from a wheel")
    run = {arm.name for arm in read_results(folder).arms if arm.runs}  # the others are still to be run
    config = config.model_copy(update={"arms": [arm for arm in config.arms if arm.name in run]})
    assert job_status(Job(config, folder, extend=True)).pending == []
    more = config.model_copy(update={"seeds": [*config.all_seeds, 99]})
    assert 0 < len(job_status(Job(more, folder, extend=True)).pending) < len(job_status(Job(config, folder)).pending)


def shows_others(page: Path) -> bool:
    """Whether a results page shows numbers of the folders beside it."""
    return any(f"<!-- gradprism: {folder.name} " in page.read_text(encoding="utf-8") for folder in [*FOLDERS, *GAINS])


OTHER_PAGES = [
    "README.md",
    "docs/training.md",
    "results/README.md",
    *map(str, filter(shows_others, sorted(Path("results").glob("*/README.md")))),
]


@pytest.mark.parametrize("page", OTHER_PAGES)
def test_numbers_in_other_pages_come_from_the_results(page):
    text = Path(page).read_text(encoding="utf-8")
    named = set(re.findall(r"<!-- gradprism: (\S+) ", text)) & {folder.name for folder in [*FOLDERS, *GAINS]}
    assert named, "no number of the results is shown"
    for folder in FOLDERS:
        text = fill_blocks(text, Comparison(read_results(folder)), page, prefix=folder.name)
    for folder in GAINS:
        text = fill_gain_blocks(text, read_gain(folder), page, folder.name)
    assert text == Path(page).read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", GAINS, ids=str)
def test_pages_of_measured_gains_are_current(folder):
    measured, config = read_gain(folder), load_config(folder / "config.json")
    assert gain_page(measured) == (folder / "README.md").read_text(encoding="utf-8")
    assert (measured.name, measured.seeds, measured.planned_groups) == (config.name, config.all_seeds, config.gain.groups)


def test_numbers_of_measured_gains_are_those_of_their_page():
    folder = Path("results/gain-webshop")
    measured = read_gain(folder)

    def filled(name: str) -> str:
        return fill_gain_blocks(f"<!-- gradprism: g {name} --><!-- /gradprism -->", measured, "R.md", "g")

    table = (folder / "README.md").read_text().split("### RL: success")[1].split("###")[0]
    [row] = [line for line in table.splitlines() if line.startswith("| gini |")]
    assert row.split("|")[2].strip() in filled("rho rl success gini")
    assert (
        fill_gain_blocks("<!-- gradprism: h x --><!-- /gradprism -->", measured, "R.md", "g")
        == "<!-- gradprism: h x --><!-- /gradprism -->"
    )
    for wrong in ("rho rl success luck", "rho luck success gini", "reliability rl", "main"):
        with pytest.raises(DataError, match=f"R.md: no block is called '{wrong}'; see docs/gain.md"):
            filled(wrong)
