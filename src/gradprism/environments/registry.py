"""Environments by name."""

from gradprism.environments.protocol import Environment
from gradprism.errors import ConfigError

NAMES = ("alfworld",)


def make_environment(name: str, **options: str) -> Environment:
    """The environment called `name`; raises `ConfigError` for an unknown name or option."""
    if name == "alfworld":
        from gradprism.environments.alfworld.environment import AlfworldEnvironment

        try:
            return AlfworldEnvironment(**options)
        except TypeError:
            raise ConfigError(f"environment {name!r} takes the option 'difficulty', not {sorted(options)}") from None
    raise ConfigError(f"environment {name!r}: choose one of {list(NAMES)}")
