"""Environments by name: those of this package, of other installed packages, and classes as `package.module:Class`."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from gradprism.environments.protocol import Environment
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.registry import Registry

Kind = TypeVar("Kind", bound=type[Environment])

ENVIRONMENTS: Registry[type[Environment]] = Registry(
    "environment",
    {
        "alfworld": "gradprism.environments.alfworld.environment:AlfworldEnvironment",
        "dialogue": "gradprism.environments.dialogue.environment:DialogueEnvironment",
        "stories": "gradprism.environments.stories.environment:StoriesEnvironment",
        "webshop": "gradprism.environments.webshop.environment:WebshopEnvironment",
    },
)


def register_environment(name: str) -> Callable[[Kind], Kind]:
    """A decorator that adds a frozen dataclass derived from `Environment` under `name`, and calls it so.

    Worker processes import the class again, so it belongs into a module. Raises `ConfigError` where the name is taken.
    """

    def add(kind: Kind) -> Kind:
        kind.name = name
        return ENVIRONMENTS.register(name)(kind)

    return add


def make_environment(name: str, /, **options: object) -> Environment:
    """The environment called `name`, or `package.module:Class`, with `options` set.

    A value given as text, as on a command line, becomes the type of the option's default. Raises `ConfigError` for an unknown name or
    option and for a value that does not fit, `MissingDependencyError` where the environment's packages are not installed.
    """
    kind = ENVIRONMENTS[name]
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ConfigError(f"environment {name!r}: {kind!r} is not a dataclass")
    if not kind.name:
        raise ConfigError(f"environment {name!r}: {kind.__name__} has no name; decorate it with register_environment")
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    if unknown := sorted(options.keys() - fields.keys()):
        raise ConfigError(f"environment {name!r} has no option {unknown[0]!r}; it has {sorted(fields)}")
    return kind(
        **{key: _convert(f"environment {name!r}: option {key!r}", value, fields[key].default) for key, value in options.items()}
    )


def as_environment(given: object) -> Environment:
    """The environment itself, or the one of that name with its default options; raises `ConfigError` for anything else."""
    if isinstance(given, str):
        return make_environment(given)
    if not isinstance(given, Environment):
        raise ConfigError(f"environment {given!r}: give a name, or what make_environment gives")
    return given


def _convert(place: str, value: object, default: object) -> object:
    wanted = type(default)
    if not isinstance(value, str) or default is None or wanted is str:
        return value
    if wanted is bool:
        if value.lower() not in ("true", "false"):
            raise ConfigError(f"{place} is true or false, not {value!r}")
        return value.lower() == "true"
    try:
        return wanted(value)  # pyright: ignore[reportCallIssue]
    except ValueError:
        raise ConfigError(f"{place} is of type {wanted.__name__}, not {value!r}") from None
