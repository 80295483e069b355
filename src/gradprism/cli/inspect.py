"""`gradprism inspect`: a corpus in a model's eyes."""

from dataclasses import asdict
from itertools import islice
from typing import Annotated

import typer
from rich.console import Console

import gradprism as gp
from gradprism.cli import options as o
from gradprism.trajectories import display


def command(
    data: o.Data,
    model: o.Model,
    more_data: o.MoreData = None,
    format_: o.Format = None,
    limit: Annotated[int, typer.Option(min=0, help="Trajectories to print; the summary is over all.")] = 3,
    context_length: Annotated[
        int | None, typer.Option(min=2, help="Cut longer trajectories to so many tokens; default no cut.")
    ] = None,
    chat_template: o.ChatTemplate = None,
    as_json: o.AsJson = False,
) -> None:
    """Response tokens are marked: the probe counts them, and SFT trains on them."""
    renderer = gp.Renderer(gp.load_tokenizer(model, chat_template), context_length)
    trajectories = list(gp.load_corpus([*data, *(more_data or [])], format=format_))
    rendered = renderer.render_all(trajectories)
    unknown_id = renderer.unknown_id
    summary = display.summarise(rendered, unknown_id)
    if as_json:
        o.print_json(asdict(summary))
        return
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    coloured = console.color_system is not None and not console.no_color
    for trajectory, one in islice(zip(trajectories, rendered, strict=True), limit):
        console.print(f"── {display.heading(trajectory, one, unknown_id)}", style="bold")
        console.print(display.mask_text(renderer.marked_text(trajectory), coloured))
    console.print(str(summary))
