"""`gradprism rl`."""

from pathlib import Path
from typing import Annotated

import typer

import gradprism as gp
from gradprism.checkpoints import check_trainable, load_config
from gradprism.cli import options as o
from gradprism.cli.config_file import ConfigFile, ConfigSet
from gradprism.models import check_context_length
from gradprism.runtime.errors import ConfigError
from gradprism.training.rl_config import RlConfig
from gradprism.training.tasks import read_tasks


@o.with_config(RlConfig)
@o.with_chat
def command(
    config: RlConfig,
    chat: o.Chat,
    model: o.Model,
    tasks: Annotated[Path, typer.Option(help="Tasks to train on: ROUTE_FOLDER/rl.jsonl.")],
    out: Annotated[Path, typer.Option(help="Folder for the model, its log and its checkpoints.")],
    env: o.Env = "alfworld",
    data_dir: o.DataDir = None,
    env_option: o.EnvOptions = None,
    dtype: o.Dtype = "float32",
    device: o.Device = "auto",
    workers: o.Workers = None,
    on_existing: o.OnExisting = "resume",
    dry_run: o.DryRun = False,
    devices: o.Devices = None,
    device_tflops: o.DeviceTflops = None,
    config_file: ConfigFile = None,
    config_set: ConfigSet = None,
    as_json: o.AsJson = False,
) -> None:
    """Plays each task several times and learns from the differences; gold actions are never read.

    Kill it, and the same command goes on. Several devices: torchrun or accelerate launch, with accelerate's configuration.
    """
    environment = gp.make_environment(env, **o.environment_options(data_dir, env_option))
    if config.evaluate_every and config.evaluate_split not in ("", *environment.splits):
        has = ", ".join(environment.splits)
        raise ConfigError(f"rl.evaluate_split {config.evaluate_split!r}: environment {env} has no such split; it has {has}")
    if dry_run:
        check_trainable(model)
        machine = gp.hardware(devices, device_tflops, device)
        limit = check_context_length(load_config(model), config.context_length)
        renderer = gp.Renderer(gp.load_tokenizer(model, chat), limit)
        to_play = read_tasks(tasks, environment)
        estimate = gp.estimate_rl(gp.ModelSpec(model, dtype), renderer, environment, to_play, config, machine, workers)
        o.show(estimate.to_json(), o.estimate_text(estimate), as_json)
        return
    with gp.training_processes(device):
        check_trainable(model)  # before the tasks are read
        spec, to_play = gp.ModelSpec(model, dtype, chat_template=chat), read_tasks(tasks, environment)
        summary = gp.train_rl(
            spec, None, environment, to_play, config, out=out, workers=workers, device=device, on_existing=on_existing
        )
    done = "had finished already: " if summary.reused else ""
    counts = summary.counts
    ended = o.ended(counts["failed_episodes"], counts["cut_by_context"], counts["out_of_steps"])
    ended += f"; ended early by the alarm {summary.stopped}" if summary.stopped else ""
    text = f"{out}: {done}{counts['episodes']:.0f} episodes in {counts['rounds']:.0f} rounds on {summary.examples} tasks{ended}"
    o.show(summary.to_json(), text, as_json)
