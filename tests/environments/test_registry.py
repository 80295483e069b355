"""Environments by name, and their options."""

import subprocess
import sys

import pytest

from gradprism.environments.protocol import Task
from gradprism.environments.registry import ENVIRONMENTS, make_environment
from gradprism.runtime.errors import ConfigError, MissingDependencyError
from helpers.broken_games import BrokenGames


def test_the_packages_own_environments():
    assert {"alfworld", "dialogue", "stories", "webshop"} <= set(ENVIRONMENTS)
    for name in ("alfworld", "dialogue", "stories", "webshop"):
        environment = make_environment(name)
        assert environment.name == name
        assert set(environment.evaluation_splits) <= set(environment.splits)


def test_a_class_of_ones_own():
    environment = make_environment("helpers.broken_games:BrokenGames", folder="x")
    assert environment == BrokenGames(folder="x")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("chess", {}, "choose one of alfworld, .*webshop"),
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
        make_environment(name, **options)


def test_a_built_in_environment_that_is_not_installed_says_how_to_install_it(monkeypatch):
    for module in [name for name in sys.modules if name.startswith("gradprism.environments.webshop")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(ENVIRONMENTS, "_known", {})
    monkeypatch.setitem(sys.modules, "rapidfuzz", None)
    with pytest.raises(MissingDependencyError, match=r"environment 'webshop': .*rapidfuzz.*; pip install 'gradprism\[webshop\]'"):
        make_environment("webshop")


def test_engines_are_not_imported_until_they_play():
    code = """
import subprocess
import sys
from gradprism.environments.registry import ENVIRONMENTS, make_environment
assert "webshop" in ENVIRONMENTS and not any(name.startswith("gradprism.environments.webshop") for name in sys.modules)
make_environment("alfworld").tasks("train", 3)
assert not {"torch", "textworld", "rapidfuzz"} & sys.modules.keys(), sys.modules.keys()
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def test_a_class_without_a_name_is_told_to_register():
    with pytest.raises(ConfigError, match="has no name; decorate it with register_environment"):
        make_environment("helpers.unnamed_games:Games")


def test_only_a_reference_to_a_task_of_the_environment_is_followed():
    environment = make_environment("helpers.unnamed_games:Named")
    assert environment.task({"env": "named games", "id": "test/7"}) == Task("named games", "test/7", "named games", "test")
    for reference in (
        {},
        {"env": "webshop", "id": "test/7"},
        {"env": "named games", "id": 7},
        {"env": "named games", "id": "dev/7"},
    ):
        with pytest.raises(ConfigError, match="task "):
            environment.task(reference)
    with pytest.raises(ConfigError, match=r"split 'dev': choose one of \['train', 'test'\]"):
        environment.tasks("dev")
    with pytest.raises(ConfigError, match="split 'test': has 9 tasks, so not those from 8 to 10"):
        environment.tasks("test", 2, start=8)
    with pytest.raises(ConfigError, match="has no expert"):
        environment.expert()
