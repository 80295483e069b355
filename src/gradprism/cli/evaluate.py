"""`gradprism evaluate`."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

import gradprism as gp
from gradprism.cli import options as o
from gradprism.cli.config_file import ConfigFile, ConfigSet
from gradprism.environments.prompts import PromptTemplate
from gradprism.environments.protocol import Environment, Task
from gradprism.evaluation.agents import ServerAgent
from gradprism.evaluation.config import PlayConfig
from gradprism.evaluation.summary import parts_text, solved_text
from gradprism.rollouts.server import TIMEOUT, Server
from gradprism.runtime.errors import ConfigError, DataError
from gradprism.training.rl_config import other_prompt
from gradprism.training.tasks import read_tasks
from gradprism.trajectories.chat_options import other_options

# Options that have no effect where no model plays.
_OF_CHAT = ("chat_template", "thoughts", "merge", "calls", "template_date", "template_arg")
_OF_MODELS = ("dtype", "device", "max_action_tokens", "context_length", *PromptTemplate.model_fields, *_OF_CHAT)


@o.with_config(PlayConfig, leave_out=("splits",))
@o.with_chat
def command(
    context: typer.Context,
    config: PlayConfig,
    chat: o.Chat,
    out: Annotated[Path, typer.Option(help="Folder for episodes.jsonl and summary.json.")],
    agent: Annotated[
        str | None,
        typer.Option(
            help="expert, random, or a model: its folder or hub id. Exactly one of --agent and --model.", parser=o.shipped_model
        ),
    ] = None,
    model: o.ModelOrNone = None,
    server: Annotated[
        str | None, typer.Option(help="Address of a server that plays the model (vllm serve, SGLang); --model names its tokenizer.")
    ] = None,
    served_name: Annotated[str | None, typer.Option(help="Name under which the server serves it; default that of --model.")] = None,
    server_timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Wait so long for one answer of the server, then ask again; default 600."),
    ] = None,
    env: o.Env = "alfworld",
    data_dir: o.DataDir = None,
    env_option: o.EnvOptions = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Split to play; may be repeated. Default: the environment's own choice.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Tasks of each split; default all there are, or 96.")] = None,
    tasks: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Play the tasks of this corpus (PROBE_FOLDER/corpus.jsonl) or rl.jsonl, in place of splits."
        ),
    ] = None,
    dtype: o.Dtype = "float32",
    device: o.Device = "auto",
    workers: o.Workers = None,
    on_existing: o.OnExisting = "resume",
    config_file: ConfigFile = None,
    config_set: ConfigSet = None,
    as_json: o.AsJson = False,
) -> None:
    """The same tasks in the same order every time; greedy unless a temperature is set. Kill it, and the same command goes on.

    Several devices: torchrun or accelerate launch, whose processes share the tasks.
    """
    if (agent is None) == (model is None):
        raise ConfigError("give either --agent (expert, random or a model) or --model")
    scripted = model is None and agent in ("expert", "random")
    if server is not None and model is None:
        raise ConfigError("--server needs --model, whose tokenizer and chat template it is asked with")
    if server is None and (served_name is not None or server_timeout is not None):
        raise ConfigError(f"--{'served-name' if served_name is not None else 'server-timeout'} needs --server")
    if server_timeout is not None and not 0 < server_timeout < math.inf:
        raise ConfigError(f"--server-timeout {server_timeout}: must be a number of seconds, more than 0")
    if scripted:
        of_models = (*_OF_MODELS, "temperature") if agent == "expert" else _OF_MODELS
        for option in _given(context, of_models):
            raise ConfigError(f"{option}: is of models, and --agent {agent} plays; leave it out")
    elif server is not None:
        for option in _given(context, ("dtype", "device")):
            raise ConfigError(f"{option}: is of a model that is loaded here, and --server plays; leave it out")
    environment = gp.make_environment(env, **o.environment_options(data_dir, env_option))
    to_play = None if tasks is None else _tasks_of(tasks, environment, context)
    splits = {}
    for name in split or environment.evaluation_splits:
        size = environment.size(name)  # an unknown split is said before a model is loaded
        splits[name] = count or (96 if size is None else size - config.start)
    config = config.model_copy(update={"splits": splits})
    name = "" if scripted else str(model or agent)
    player = agent if scripted else gp.ModelSpec(name, dtype, device, chat_template=chat)
    if server is not None:
        asked = Server(server, served_name or name, server_timeout or TIMEOUT)
        player = ServerAgent(asked, gp.ModelSpec(name, chat_template=chat))
    remarks = [] if scripted else _remarks(name, config, chat)
    evaluation = gp.evaluate(
        player,
        environment,
        config,
        tasks=to_play,
        out=out,
        workers=workers,
        on_existing=on_existing,
        remarks=remarks,
        together=True,
    )
    lines = []
    for row in evaluation.rows:
        interval = f"[{100 * row.low:.1f}, {100 * row.high:.1f}]"
        success = f"{row.successes:4d}/{row.episodes:<4d} {100 * row.success:5.1f} % {interval:14s}"
        score = f"score {100 * row.score:5.1f} [{100 * row.score_low:.1f}, {100 * row.score_high:.1f}]"
        ended = o.ended(row.failures, row.cut_by_context, row.out_of_steps)
        lines.append(
            f"{row.split:12s} {row.task_type:32s} {success} {score:25s} {row.mean_steps:5.1f} steps, "
            f"{100 * row.invalid_share:.1f} % refused{ended}{solved_text(row)}"
        )
        if row.task_type == "all" and row.parts:
            lines.append(f"{row.split:12s} {'parts of the score':32s} {parts_text(row)}")
    o.show(evaluation.to_json(), "\n".join([*lines, *evaluation.remarks]), as_json)


def _given(context: typer.Context, names: Iterable[str]) -> Iterable[str]:
    """Those of the options that the command line gives; what --config gives is for other evaluations."""
    for name in names:
        source = context.get_parameter_source(name)
        if source and source.name == "COMMANDLINE":
            yield f"--{name.replace('_', '-')}"


def _tasks_of(path: Path, environment: Environment, context: typer.Context) -> list[Task]:
    """Those of a file; raises `ConfigError` for options beside it that choose others, and `DataError` where there is none."""
    for option in _given(context, ("split", "count", "start", "task_type")):
        raise ConfigError(f"{option}: chooses tasks of splits, and --tasks names those to play; give one of them")
    if not (found := read_tasks(path, environment, of_corpus=True)):
        raise DataError(f"{path}: names no task; give the corpus.jsonl of a probe folder, or the rl.jsonl of a route folder")
    return found


def _remarks(model: str, config: PlayConfig, chat: o.Chat) -> list[str]:
    others = {
        "another prompt": other_prompt(model, config.prompt),
        "other options of its chat template": other_options(model, chat),
    }
    return [f"the model was trained with {what} than it plays with here ({other})" for what, other in others.items() if other]
