"""Environments by name: a folder beside this file, or a class of the user's own as `package.module:Class`."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import gradprism.environments
from gradprism.environments.protocol import Environment
from gradprism.runtime.errors import ConfigError


def environment_names() -> list[str]:
    """Environments that come with the package."""
    return sorted(module.name for module in pkgutil.iter_modules(gradprism.environments.__path__) if module.ispkg)


def make_environment(name: str, options: Mapping[str, Any] | None = None) -> Environment:
    """The environment called `name`, or `package.module:Class`, with `options` set.

    A value given as text, as on a command line, becomes the type of the option's default. Raises `ConfigError` for an unknown name or
    option, and for a value that does not fit.
    """
    kind, options = _find(name), dict(options or {})
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    unknown = sorted(set(options) - set(fields))
    if unknown:
        raise ConfigError(f"environment {name!r} has no option {unknown[0]!r}; it has {sorted(fields)}")
    return kind(**{key: _convert(name, key, value, fields[key].default) for key, value in options.items()})


def _find(name: str) -> Any:
    if ":" in name:
        module, _, attribute = name.partition(":")
    elif name in environment_names():
        module, attribute = f"gradprism.environments.{name}.environment", "ENVIRONMENT"
    else:
        raise ConfigError(f"environment {name!r}: choose one of {environment_names()}, or name a class as package.module:Class")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        # A built-in environment has an extra of its name.
        install = "" if ":" in name else f"; pip install 'gradprism[{name}]'"
        raise ConfigError(f"environment {name!r}: {error}{install}") from None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ConfigError(f"environment {name!r}: {attribute} is not a dataclass")
    return kind


def _convert(name: str, key: str, value: Any, default: Any) -> Any:
    wanted = type(default)
    if not isinstance(value, str) or default is None or wanted is str:
        return value
    if wanted is bool:
        if value.lower() not in ("true", "false"):
            raise ConfigError(f"environment {name!r}: option {key!r} is true or false, not {value!r}")
        return value.lower() == "true"
    try:
        return wanted(value)
    except ValueError:
        raise ConfigError(f"environment {name!r}: option {key!r} is of type {wanted.__name__}, not {value!r}") from None
