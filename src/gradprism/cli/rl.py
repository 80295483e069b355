"""`gradprism rl`."""

from pathlib import Path
from typing import Annotated

import typer

from gradprism.cli.config_file import with_config_file
from gradprism.cli.options import DataDir, Devices, DeviceTflops, DryRun, EnvOptions, with_config
from gradprism.environments.prompts import PromptTemplate
from gradprism.training.rl_config import RlConfig


@with_config_file("rl")
@with_config(PromptTemplate, name="prompt")
@with_config(RlConfig, leave_out=("prompt", "context_length"))
def command(
    config: RlConfig,
    prompt: PromptTemplate,
    model: Annotated[str, typer.Option(help="Folder or hub id of the model to start from, for example the SFT checkpoint.")],
    tasks: Annotated[Path, typer.Option(help="Tasks to train on: ROUTE_FOLDER/rl.jsonl.")],
    out: Annotated[Path, typer.Option(help="Folder for the model, its log and its checkpoints.")],
    env: Annotated[str, typer.Option(help="Environment.")] = "alfworld",
    data_dir: DataDir = None,
    env_option: EnvOptions = None,
    context_length: Annotated[int | None, typer.Option(help="Tokens an episode may have; default the model's own limit.")] = None,
    chat_template: Annotated[Path | None, typer.Option(help="Template file with generation markers.")] = None,
    dtype: Annotated[str, typer.Option(help="Type of the weights.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Environment processes; default one a core.")] = None,
    on_existing: Annotated[str, typer.Option(help="A folder in use: resume, replace or fail.")] = "resume",
    dry_run: DryRun = False,
    devices: Devices = None,
    device_tflops: DeviceTflops = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON and no progress.")] = False,
) -> None:
    """Plays each task several times and learns from the differences; gold actions are never read.

    Kill it, and the same command goes on. Several devices: torchrun or accelerate launch, with accelerate's configuration.
    """
    from gradprism.cli.options import environment_options, print_json
    from gradprism.environments.registry import make_environment
    from gradprism.models import check_context_length, check_trainable, load_model
    from gradprism.runtime import progress
    from gradprism.training.folder import TRAINING
    from gradprism.training.processes import training_processes
    from gradprism.training.rl import train_rl
    from gradprism.training.settings import check_trackers
    from gradprism.training.tasks import read_tasks
    from gradprism.trajectories.rendering import Renderer, load_tokenizer

    progress.set_quiet(as_json)
    config = config.model_copy(update={"prompt": prompt, "context_length": context_length})
    if dry_run:
        from gradprism.cli.options import print_estimate
        from gradprism.models import ModelSpec, load_config
        from gradprism.training.estimate import estimate_rl, hardware

        machine = hardware(devices, device_tflops, device)
        environment = make_environment(env, **environment_options(data_dir, env_option))
        limit = check_context_length(load_config(model), context_length)
        renderer = Renderer(load_tokenizer(model, chat_template), limit)
        estimate = estimate_rl(
            ModelSpec(model, dtype), renderer, environment, read_tasks(tasks, environment), config, machine, limit, workers
        )
        if machine.is_first:
            print_estimate(estimate, as_json)
        return
    with training_processes(device) as ranks:
        is_first = ranks is None or ranks.is_first
        if is_first:
            TRAINING.check(out, on_existing)  # pyright: ignore[reportArgumentType] # checked there
        check_trackers(config)
        environment = make_environment(env, **environment_options(data_dir, env_option))
        to_play = read_tasks(tasks, environment)
        check_trainable(model)
        tokenizer = load_tokenizer(model, chat_template)
        loaded = load_model(model, dtype, "cpu")  # the trainer places it
        summary = train_rl(
            loaded,
            tokenizer,
            environment,
            to_play,
            config,
            out=out,
            workers=workers,
            device=device,
            on_existing=on_existing,  # pyright: ignore[reportArgumentType] # checked there
        )
    if as_json and is_first:
        print_json(summary.to_json())
    elif is_first:
        done = "had finished already: " if summary.reused else ""
        print(f"{out}: {done}{summary.counts['episodes']:.0f} episodes in {config.rounds} rounds on {summary.examples} tasks")
