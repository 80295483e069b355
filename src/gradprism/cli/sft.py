"""`gradprism sft`."""

from pathlib import Path
from typing import Annotated

import typer

from gradprism.cli.options import with_config
from gradprism.training.sft import SftConfig


@with_config(SftConfig)
def command(
    config: SftConfig,
    model: Annotated[str, typer.Option(help="Folder or hub id of the model to start from.")],
    data: Annotated[list[Path], typer.Option(help="Trajectories, for example ROUTE_FOLDER/sft.jsonl. May be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint; must be new or empty.")],
    format_: Annotated[str | None, typer.Option("--format", help="Format of the data, where it should not be recognised.")] = None,
    context_length: Annotated[int | None, typer.Option(help="Tokens a trajectory may have; default the model's own limit.")] = None,
    chat_template: Annotated[Path | None, typer.Option(help="Template file with generation markers.")] = None,
    dtype: Annotated[str, typer.Option(help="Type of the weights.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON and no progress.")] = False,
) -> None:
    """Trains on the response tokens only, the same ones that `gradprism inspect` shows and the probe counts."""
    from gradprism import progress
    from gradprism.cli.options import print_json
    from gradprism.files import claim_output_folder
    from gradprism.models import check_context_length, check_trainable, load_model
    from gradprism.training.sft import train_sft
    from gradprism.trajectories.readers import read_trajectories
    from gradprism.trajectories.rendering import Renderer, load_tokenizer

    progress.set_quiet(as_json)
    trajectories = read_trajectories(data, format_)
    check_trainable(model)
    tokenizer = load_tokenizer(model, chat_template)
    loaded = load_model(model, dtype, device)
    renderer = Renderer(tokenizer, check_context_length(loaded, context_length))
    summary = train_sft(loaded, renderer, trajectories, config, claim_output_folder(out))
    if as_json:
        print_json(summary)
    else:
        print(f"{out}: loss {summary['first_loss']:.4f} → {summary['last_loss']:.4f} in {summary['steps']} steps")
