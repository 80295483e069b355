"""`--config FILE`: a stage's options from the configuration of a whole run, where the command line does not give them."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import gradprism as gp
from gradprism.runtime.errors import ConfigError

Section = Literal["probe", "sft", "rl", "evaluation"]
_FILE, _SET = "config_file", "config_set"


def with_config_file(section: Section) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command `--config` and `--set`. The file is one that `gradprism run` takes; options on the command line win over it."""

    def read(context: typer.Context, parameter: Any, value: Any) -> Any:
        # Both options come before all others, in any order; with the second the file is read, for Click to take its defaults from.
        context.meta[parameter.name] = value
        if {_FILE, _SET} <= context.meta.keys() and context.meta[_FILE]:
            context.default_map = defaults(section, Path(context.meta[_FILE]), context.meta[_SET] or [])
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
    config = gp.load_config(path, overrides)
    values: dict[str, Any] = {**getattr(config, section).model_dump(mode="json"), **config.model.model_dump(mode="json")}
    values["model"] = values.pop("path")
    values |= values.pop("prompt", {})
    if section == "probe":
        values |= {"data": config.corpus.files, "format_": config.corpus.format}
    if section in ("rl", "evaluation"):
        del values["model"]  # the file names the base; RL begins with what SFT has made, and who plays is to be said
        options = dict(config.environment.options)
        values["data_dir"] = options.pop("data_dir", None)  # an option of its own, so that --data-dir wins
        values["env_option"] = [f"{key}={_text(value)}" for key, value in options.items()]
        values |= {"env": config.environment.name, "workers": config.environment.workers}
    if section == "evaluation":
        splits = values.pop("splits")
        if len(set(splits.values())) > 1:
            raise ConfigError(
                f"{path}: evaluation.splits: one command plays as many tasks of each split; choose one with "
                "--set 'evaluation.splits={NAME=COUNT}'"
            )
        values |= {"split": list(splits), "count": next(iter(splits.values()))}
    return {key: value for key, value in values.items() if value is not None}


def _text(value: str | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
