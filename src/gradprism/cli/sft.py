"""`gradprism sft`."""

from pathlib import Path
from typing import Annotated

import typer

from gradprism.cli.config_file import with_config_file
from gradprism.cli.options import Devices, DeviceTflops, DryRun, with_config
from gradprism.runtime.folders import OnExisting
from gradprism.training.sft_config import SftConfig


@with_config_file("sft")
@with_config(SftConfig)
def command(
    config: SftConfig,
    model: Annotated[str, typer.Option(help="Folder or hub id of the model to start from.")],
    data: Annotated[list[Path], typer.Option(help="Trajectories, for example ROUTE_FOLDER/sft.jsonl. May be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder for the model, its log and its checkpoints.")],
    eval_data: Annotated[
        list[Path] | None,
        typer.Option(help="Held-out trajectories, for the loss alone, in place of --eval-share."),
    ] = None,
    format_: Annotated[str | None, typer.Option("--format", help="Format of the data, where it should not be recognised.")] = None,
    context_length: Annotated[int | None, typer.Option(help="Tokens a trajectory may have; default the model's own limit.")] = None,
    chat_template: Annotated[Path | None, typer.Option(help="Template file with generation markers.")] = None,
    dtype: Annotated[str, typer.Option(help="Type of the weights.")] = "float32",
    attention: Annotated[
        str | None,
        typer.Option(help="How attention is computed: sdpa, eager, flash_attention_2, …; default the model's own choice."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    on_existing: Annotated[OnExisting, typer.Option(help="A folder in use: resume, replace or fail.")] = "resume",
    dry_run: DryRun = False,
    devices: Devices = None,
    device_tflops: DeviceTflops = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON and no progress.")] = False,
) -> None:
    """Trains on the response tokens only, the same ones that `gradprism inspect` shows and the probe counts.

    Kill it, and the same command goes on. Several devices: torchrun or accelerate launch, with accelerate's configuration (DDP, FSDP).
    """
    from gradprism.cli.options import print_json
    from gradprism.models import check_trainable, load_model
    from gradprism.runtime import progress
    from gradprism.training.folder import TRAINING
    from gradprism.training.processes import training_processes
    from gradprism.training.settings import check_trackers
    from gradprism.training.sft import train_sft
    from gradprism.trajectories.corpus import load_corpus
    from gradprism.trajectories.rendering import load_tokenizer

    progress.set_quiet(as_json)
    if dry_run:
        from gradprism.cli.options import print_estimate
        from gradprism.models import ModelSpec, check_context_length, load_config
        from gradprism.training.estimate import estimate_sft, hardware
        from gradprism.trajectories.rendering import Renderer

        machine = hardware(devices, device_tflops, device)
        trajectories = list(load_corpus(data, format=format_))
        held_out = list(load_corpus(eval_data, format=format_)) if eval_data else []
        renderer = Renderer(load_tokenizer(model, chat_template), check_context_length(load_config(model), context_length))
        estimate = estimate_sft(ModelSpec(model, dtype), renderer, trajectories, held_out, config, machine, attention)
        if machine.is_first:
            print_estimate(estimate, as_json)
        return
    with training_processes(device) as ranks:
        is_first = ranks is None or ranks.is_first
        if is_first:
            TRAINING.check(out, on_existing)
        check_trackers(config)
        trajectories = list(load_corpus(data, format=format_))
        held_out = list(load_corpus(eval_data, format=format_)) if eval_data else []
        check_trainable(model)
        summary = train_sft(
            load_model(model, dtype, "cpu", attention=attention),  # the trainer places it
            load_tokenizer(model, chat_template),
            trajectories,
            config,
            out=out,
            held_out=held_out,
            context_length=context_length,
            device=device,
            on_existing=on_existing,
        )
    if as_json and is_first:
        print_json(summary.to_json())
    elif is_first:
        losses, held = summary.values("loss"), ""
        if summary.evaluations:
            held = f", held out {summary.evaluations[0]['eval_loss']:.4f} → {summary.evaluations[-1]['eval_loss']:.4f}"
        done = "had finished already: " if summary.reused else ""
        print(f"{out}: {done}loss {losses[0]:.4f} → {losses[-1]:.4f}{held} in {summary.steps} steps")
