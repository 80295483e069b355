"""`--config FILE`: a stage's options from the configuration of a whole run, where the command line does not give them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import gradprism as gp
from gradprism.runtime.errors import ConfigError
from gradprism.trajectories.mapping import FieldMap

SECTIONS = {"probe": "probe", "sft": "sft", "rl": "rl", "evaluate": "evaluation"}  # of the file, by command


def _read(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
    """Both options come before all others, in any order; with the second the file is read, for Click to take its defaults from."""
    given = context.meta
    given[str(parameter.name)] = value
    if {"config_file", "config_set"} <= given.keys():
        file, overrides = given["config_file"], given["config_set"] or []
        if overrides and not file:
            raise ConfigError("--set: overrides a value of --config FILE, which is not given")
        if file:
            context.default_map = defaults(SECTIONS[str(context.info_name)], Path(file), overrides)
    return value


# A command has them as `config_file` and `config_set`, and needs do nothing with them.
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", is_eager=True, callback=_read, help="TOML file as of `gradprism run`: defaults of all options."),
]
ConfigSet = Annotated[
    list[str] | None,
    typer.Option("--set", is_eager=True, callback=_read, help="Override a value of the file: section.key=value."),
]


def defaults(section: str, path: Path, overrides: list[str]) -> dict[str, Any]:
    """The options of a stage's command, by parameter, from a run's configuration."""
    config = gp.load_config(path, overrides)
    values: dict[str, Any] = {**getattr(config, section).model_dump(mode="json"), **config.model.model_dump(mode="json")}
    values["model"] = values.pop("path")
    for name in ("merge", "scores"):  # one option each, of names with commas between
        values[name] = ",".join(values.get(name) or []) or None
    values["template_arg"] = [f"{key}={json.dumps(value)}" for key, value in values.pop("template_args").items()] or None
    values |= values.pop("prompt", {})
    if section == "probe":
        names = FieldMap.of(config.corpus.map).to_json()
        values |= {"data": config.corpus.files, "format_": config.corpus.format, "on_bad": config.corpus.on_bad}
        values["map_"] = [f"{name}={own}" for name, own in names.items()] or None
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
