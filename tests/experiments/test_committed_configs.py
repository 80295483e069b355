"""All configurations that are committed, also those that are added later: read, planned, and fit for what they are there for."""

import tomllib
from collections import Counter
from pathlib import Path

import pytest

import gradprism as gp
from gradprism.environments.registry import make_environment
from gradprism.experiments.config import load_config
from gradprism.experiments.gain import GainPlan
from gradprism.experiments.plan import Plan
from gradprism.experiments.stage import with_needs

FILES = sorted(Path("configs").glob("*.toml"))
CONFIGS = {file.stem: load_config(file) for file in FILES}
# Models from a hub have tests of their own, with small ones in their place: tests/training/test_real_size.py.
LOCAL = [name for name, config in CONFIGS.items() if Path(config.model.path).is_dir()]
GAIN = [name for name in LOCAL if "gain" in tomllib.loads(Path(f"configs/{name}.toml").read_text())]
EXPERIMENTS = [name for name in LOCAL if CONFIGS[name].arms]
FURTHER = {file.stem: load_config(file) for file in sorted(Path("configs/further").glob("*.toml"))}
SEARCHES = sorted(Path("configs/search").glob("*.toml"))


def test_all_that_are_there_are_looked_at():
    assert len(CONFIGS) == len(FILES) and {"quickstart", "alfworld-mini", "gain-webshop"} <= set(LOCAL)
    assert set(CONFIGS) - set(LOCAL) == {file.stem for file in Path("configs").glob("*-*b.toml")}, "which test_real_size.py lists"
    assert set(GAIN) & set(EXPERIMENTS) == set() != set(EXPERIMENTS)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_called_as_its_file(name):
    assert CONFIGS[name].name == name


@pytest.mark.parametrize("name", FURTHER)
def test_an_experiment_with_a_question_of_its_own_asks_it_beforehand(name):
    config = FURTHER[name]
    assert config.name == name and config.claims and len(config.all_seeds) >= 3 and config.evaluation.seed == 0
    if Path(config.model.path).is_dir():  # a pretrained model is made by a script, and is not everywhere
        planned = Plan(config)
        assert {run.arm.name for run in planned.runs} == {arm.name for arm in config.arms}


@pytest.mark.parametrize("name", [name for name in LOCAL if name not in GAIN])
def test_every_arm_is_planned_with_every_seed(name):
    config = CONFIGS[name]
    planned = Plan(config)
    runs = Counter((run.arm.name, run.seed) for run in planned.runs)
    assert set(runs.values()) == {1} and {arm for arm, _ in runs} >= {arm.name for arm in config.arms}
    for arm in config.arms:
        assert [seed for of, seed in runs if of == arm.name] == list(config.seeds_of(arm))
    stages = with_needs(planned.wanted())
    for run in planned.runs:
        assert run.evaluation.name in stages and run.evaluation.config.splits == config.evaluation.splits
        assert {stage.name for stage in run.stages} <= stages.keys()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_has_table_1(name):
    config = CONFIGS[name]
    assert {arm.name for arm in config.arms if arm.group == "table1"} >= {
        *("base", "sft", "grpo", "sft-then-rl", "random", "pass-rate", "gini", "cv", "kurtosis")
    }
    assert all(len(config.seeds_of(arm)) >= 3 for arm in config.arms if arm.name != "base" and arm.group != "sweep")
    assert all(config.seeds_of(arm) == config.seeds for arm in config.arms if arm.group == "table1" and arm.name != "base")
    assert config.evaluation.seed == 0, "evaluations of all arms draw alike"
    assert {file.name for file in Path("configs/search").glob(f"{config.environment.name}*")}, "its recipe was searched for"


@pytest.mark.parametrize("name", GAIN)
def test_a_measurement_of_gain_trains_every_group_both_ways_with_every_seed(name):
    config = CONFIGS[name]
    planned = GainPlan.of(config)
    assert len(planned.trained) == 2 * len(config.all_seeds) * config.gain.groups
    assert len({stage.name for stage in planned.stages}) == len(planned.stages)


@pytest.mark.parametrize("file", SEARCHES, ids=lambda file: file.stem)
def test_recipes_of_a_search_can_be_trained(file):
    search = tomllib.loads(file.read_text())
    environment = make_environment(search["environment"], **search.get("options", {}))
    assert gp.shipped(search["model"]).is_dir() and environment.dev_split
    for settings in search["starts"].values():
        gp.SftConfig.model_validate({key: value for key, value in settings.items() if key != "tasks"})
    for recipe in search["recipes"].values():
        assert recipe["from"] in ("base", *search["starts"])
        gp.RlConfig.model_validate({**search["rl"], **{key: recipe[key] for key in recipe.keys() - {"from", "tasks"}}})
