"""`--config FILE`: a stage's options from the configuration of a whole run, where the command line does not give them."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gradprism.errors import ConfigError

Section = Literal["probe", "sft", "rl"]
_FILE, _SET = "config_file", "config_set"


def with_config_file(section: Section) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command `--config` and `--set`. The file is one that `gradprism run` takes; options on the command line win over it."""

    def read(context: typer.Context, parameter: Any, value: Any) -> Any:
        # Both options come before all others, in any order. What Click takes for a default is theirs once the file is known.
        context.meta[parameter.name] = value
        if context.meta.get(_FILE):
            context.default_map = defaults(section, Path(context.meta[_FILE]), context.meta.get(_SET) or [])
        return value

    options = [
        inspect.Parameter(
            _FILE,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                Path | None,
                typer.Option(
                    "--config", is_eager=True, callback=read, help="TOML file as of `gradprism run`: defaults of all options."
                ),
            ],
        ),
        inspect.Parameter(
            _SET,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                list[str] | None,
                typer.Option("--set", is_eager=True, callback=read, help="Override a value of the file: section.key=value."),
            ],
        ),
    ]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def command(**arguments: Any) -> None:
            if arguments.pop(_SET) and not arguments[_FILE]:
                raise ConfigError("--set: overrides a value of --config FILE, which is not given")
            del arguments[_FILE]
            function(**arguments)

        signature = inspect.signature(function)
        command.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *options])  # pyright: ignore[reportFunctionMemberAccess]
        command.__doc__ = function.__doc__
        return command

    return decorate


def defaults(section: Section, path: Path, overrides: list[str]) -> dict[str, Any]:
    """The options of a stage's command, by parameter, from a run's configuration."""
    from gradprism.experiments.config import load_config

    config = load_config(path, overrides)
    values: dict[str, Any] = {**getattr(config, section).model_dump(mode="json"), **config.model.model_dump(mode="json")}
    values["model"] = values.pop("path")
    values |= values.pop("prompt", {})
    if section == "probe":
        values |= {"data": config.corpus.files, "format_": config.corpus.format}
    if section == "rl":
        options = [f"{key}={_text(value)}" for key, value in config.environment.options.items()]
        values |= {"env": config.environment.name, "env_option": options, "workers": config.environment.workers}
    return {key: value for key, value in values.items() if value is not None}


def _text(value: str | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
