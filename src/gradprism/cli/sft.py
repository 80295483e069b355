"""`gradprism sft`."""

from pathlib import Path
from typing import Annotated

import typer

import gradprism as gp
from gradprism.checkpoints import check_trainable, load_config
from gradprism.cli import options as o
from gradprism.cli.config_file import ConfigFile, ConfigSet
from gradprism.models import check_context_length
from gradprism.runtime.ranks import Ranks
from gradprism.training.sft_config import SftConfig
from gradprism.trajectories.corpus import SKIPPED, write_skipped
from gradprism.trajectories.mapping import read_settings


@o.with_config(SftConfig)
@o.with_chat
def command(
    config: SftConfig,
    chat: o.Chat,
    model: o.Model,
    data: Annotated[
        list[str],
        typer.Option(help="Trajectories, for example ROUTE_FOLDER/sft.jsonl. May be repeated.", parser=o.shipped_file),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the model, its log and its checkpoints.")],
    eval_data: Annotated[
        list[str] | None,
        typer.Option(help="Held-out trajectories, for the loss alone, in place of --eval-share.", parser=o.shipped_file),
    ] = None,
    format_: o.Format = None,
    map_: o.Map = None,
    on_bad: o.OnBad = "fail",
    context_length: o.ContextLength = None,
    dtype: o.Dtype = "float32",
    attention: Annotated[
        str | None,
        typer.Option(help="How attention is computed: sdpa, eager, flash_attention_2, …; default the model's own choice."),
    ] = None,
    device: o.Device = "auto",
    on_existing: o.OnExisting = "resume",
    dry_run: o.DryRun = False,
    devices: o.Devices = None,
    device_tflops: o.DeviceTflops = None,
    config_file: ConfigFile = None,
    config_set: ConfigSet = None,
    as_json: o.AsJson = False,
) -> None:
    """Trains on the response tokens only, the same ones that `gradprism inspect` shows and the probe counts.

    Kill it, and the same command goes on. Several devices: torchrun or accelerate launch, with accelerate's configuration (DDP, FSDP).
    """
    names = read_settings(map_)
    corpus, eval_corpus = (gp.load_corpus(files, format=format_, mapping=names, on_bad=on_bad) for files in (data, eval_data or []))
    if dry_run:
        check_trainable(model)
        limit = check_context_length(load_config(model), context_length)
        renderer = gp.Renderer(gp.load_tokenizer(model, chat), limit)
        machine = gp.hardware(devices, device_tflops, device)
        spec = gp.ModelSpec(model, dtype, attention=attention)
        estimate = gp.estimate_sft(spec, renderer, corpus, eval_corpus, config, machine)
        o.show(estimate.to_json(), o.estimate_text(estimate), as_json)
        return
    with gp.training_processes(device):
        check_trainable(model)  # before the corpus is read
        summary = gp.train_sft(
            gp.ModelSpec(model, dtype, chat_template=chat, attention=attention),
            None,
            corpus,
            config,
            out=out,
            held_out=eval_corpus,
            context_length=context_length,
            device=device,
            on_existing=on_existing,
        )
        ranks = Ranks.from_environment()
        if ranks is None or ranks.is_first:
            write_skipped(out / SKIPPED, [corpus, eval_corpus])
    losses, held = summary.values("loss"), [row["eval_loss"] for row in summary.evaluations]
    # Each loss is of the weights before its step: of one step there is nothing to compare.
    loss = f"{losses[0]:.4f} → {losses[-1]:.4f}" if len(losses) > 1 else f"{losses[0]:.4f} before the step"
    held_out = f", held out {held[0]:.4f} → {held[-1]:.4f}" if held else ""
    steps = f"{summary.steps} step{'s' if summary.steps > 1 else ''}"
    text = f"{out}: {'had finished already: ' if summary.reused else ''}loss {loss}{held_out} in {steps}"
    o.show(summary.to_json(), text, as_json)
