"""Environments by name, and their options."""

import sys

import pytest

from gradprism.environments.registry import environment_names, make_environment
from gradprism.runtime.errors import ConfigError
from helpers.broken_games import BrokenGames


def test_environments_are_found_by_their_folders():
    assert "alfworld" in environment_names()
    for name in environment_names():
        environment = make_environment(name)
        assert environment.name == name
        assert set(environment.evaluation_splits) <= set(environment.splits)


def test_a_class_of_ones_own():
    environment = make_environment("helpers.broken_games:BrokenGames", {"folder": "x"})
    assert environment == BrokenGames(folder="x")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("chess", {}, r"choose one of \['alfworld'"),
        ("pool", {}, "choose one of"),
        ("helpers.nowhere:Games", {}, "No module named"),
        ("helpers.broken_games:Nothing", {}, "no attribute 'Nothing'"),
        ("helpers.broken_games:BrokenSession", {}, "is not a dataclass"),
        ("alfworld", {"colour": "red"}, "has no option 'colour'; it has"),
        ("alfworld", {"difficulty": "huge"}, "difficulty 'huge'"),
        ("alfworld", {"games": "all"}, "choose generated or official"),
    ],
)
def test_what_is_refused(name, options, words):
    with pytest.raises(ConfigError, match=words):
        make_environment(name, options)


def test_a_built_in_environment_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradprism.environments.webshop.environment", None)
    with pytest.raises(ConfigError, match=r"environment 'webshop': .*; pip install 'gradprism\[webshop\]'"):
        make_environment("webshop")
