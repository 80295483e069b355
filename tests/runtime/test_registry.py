"""Names that users add: by decorator, by an entry point of another package, and never one over another."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from gradprism.concentration import METRICS
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.registry import Registry


def test_a_decorated_function_is_found_by_its_name_and_listed() -> None:
    registry: Registry[object] = Registry("metric")

    @registry.register("one")
    def one() -> int:
        return 1

    assert registry["one"] is one
    assert list(registry) == ["one"]
    assert "one" in registry and "two" not in registry


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    registry: Registry[object] = Registry("policy")
    registry.register("first")(object())
    with pytest.raises(ConfigError, match="policy 'third': choose one of first"):
        registry["third"]


def test_a_taken_name_is_refused_and_the_same_definition_may_come_again() -> None:
    registry: Registry[object] = Registry("metric")

    def make(name: str) -> object:
        def function() -> None: ...

        function.__qualname__ = name
        return function

    again = make("again")
    registry.register("a")(make("again"))
    assert registry.register("a")(again) is again
    with pytest.raises(ConfigError, match="metric 'a': is registered already"):
        registry.register("a")(make("other"))
    assert registry["a"] is again


def test_an_entry_point_of_an_installed_package_is_loaded_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[gradprism.policies]\nfound = other_package:thing\nbroken = other_package:nothing\nmissing = no_such_package:thing\n"
    )
    (tmp_path / "other_package.py").write_text("thing = 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry: Registry[object] = Registry("policy")
    assert list(registry) == ["broken", "found", "missing"]
    assert "other_package" not in sys.modules
    assert registry["found"] == 42
    for name in ("broken", "missing"):
        with pytest.raises(ConfigError, match=f"policy '{name}': .* cannot be loaded"):
            registry[name]


def test_a_thing_of_the_packages_own_is_listed_first_and_loaded_when_it_is_asked_for() -> None:
    registry: Registry[object] = Registry("format", {"late": "wave:Error"})
    registry.register("early")(int)
    sys.modules.pop("wave", None)
    assert list(registry) == ["late", "early"] and "late" in registry and "wave" not in sys.modules
    with pytest.raises(ConfigError, match="format 'late': is registered already, by wave:Error"):
        registry.register("late")(int)
    late = registry["late"]
    assert isinstance(late, type) and late.__qualname__ == "Error"
    assert registry.register("late")(late) is late
    assert list(registry) == ["late", "early"]


def test_an_unregistered_thing_is_named_by_its_module() -> None:
    registry: Registry[object] = Registry("metric")
    assert registry["math:sqrt"](9) == 3  # pyright: ignore[reportCallIssue]
    assert list(registry) == []
    for name in ("math:nothing", "no_such_module:thing"):
        with pytest.raises(ConfigError, match=f"metric '{name}': .* cannot be loaded"):
            registry[name]


def test_a_decorator_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"register_thing: give a name"):
        Registry("thing").register(len)  # pyright: ignore[reportArgumentType]


def test_what_an_own_metric_raises_is_one_line_that_names_it():
    registry: Registry[Any] = Registry("metric")
    registry.register("broken")(lambda norms: norms / 0)
    with pytest.raises(ConfigError, match=r"^metric 'broken': raised ZeroDivisionError: division by zero$") as caught:
        registry.call("broken", 1)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_entry_point_that_a_builtin_hides_is_said_once(monkeypatch, capsys):
    point = EntryPoint("gini", "my_metrics:gini", "gradprism.metrics")
    monkeypatch.setattr("gradprism.runtime.registry.entry_points", lambda **_: [point])
    monkeypatch.setattr(METRICS, "_asked", set())
    assert METRICS["gini"] is METRICS["gini"]
    assert capsys.readouterr().err == (
        "warning: metric 'gini' is gradprism's own; my_metrics:gini has the same name and is not used, rename it\n"
    )
