"""`gradprism inspect`: what a corpus becomes in a model's eyes."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def command(
    data: Annotated[
        list[Path], typer.Option(help="Trajectories: JSONL, JSON or Parquet, plain or .gz, .xz, .zst; one or more files.")
    ],
    model: Annotated[str, typer.Option(help="Folder or hub id of the model whose tokenizer reads them.")],
    more_data: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Further files, as in `--data A B C`.")
    ] = None,
    format_: Annotated[str | None, typer.Option("--format", help="messages, eto, sharegpt or agenttraj; else recognised.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Trajectories to print; the summary is over all.")] = 3,
    context_length: Annotated[
        int | None, typer.Option(min=2, help="Cut longer trajectories to so many tokens; else no cut.")
    ] = None,
    chat_template: Annotated[Path | None, typer.Option(help="Template file with generation markers.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the summary, as JSON.")] = False,
) -> None:
    """Print trajectories with their response tokens marked, and a summary of the corpus."""
    from rich.console import Console

    from gradprism.cli.options import print_json
    from gradprism.runtime import progress
    from gradprism.trajectories import display
    from gradprism.trajectories.corpus import load_corpus
    from gradprism.trajectories.rendering import Renderer, load_tokenizer

    with progress.quiet(as_json):
        renderer = Renderer(load_tokenizer(model, chat_template), context_length)
        trajectories = list(load_corpus([*data, *(more_data or [])], format=format_))
        rendered = renderer.render_all(trajectories)
    unknown_id = renderer.tokenizer.unk_token_id
    summary = display.summarise(rendered, unknown_id)
    if as_json:
        print_json(asdict(summary))
        return
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    coloured = console.color_system is not None and not console.no_color
    for trajectory, one in list(zip(trajectories, rendered, strict=True))[:limit]:
        console.print(f"── {display.heading(trajectory, one, unknown_id)}", style="bold")
        console.print(display.mask_text(renderer.marked_text(trajectory), coloured))
    console.print(str(summary))
