"""`gradprism export`."""

from pathlib import Path
from typing import Annotated

import typer

import gradprism as gp
from gradprism.cli.options import AsJson, OnExistingOutput, environment_options, show

_FORMATS = "axolotl, datasets, llamafactory, ms-swift, nemo-rl, openrlhf, prime-rl, skyrl, tinker, trl, verl, or one of your own."


def command(
    format_: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help=_FORMATS,
        ),
    ],
    route: Annotated[Path, typer.Argument(metavar="DIR", help="Route folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must be new or empty.")],
    data_dir: Annotated[
        Path | None, typer.Option(help="verl: folder of WebShop's official files, to name the product and options of each goal.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An exporter's own option; may be repeated.")
    ] = None,
    on_existing: OnExistingOutput = "fail",
    as_json: AsJson = False,
) -> None:
    """Writes a route's SFT set and RL tasks for another trainer. What a trainer cannot be told is refused or counted."""
    export = gp.export(route, format_, out, on_existing=on_existing, **environment_options(data_dir, option, "--option"))
    routing = export.routing
    said = f"{out}: {routing.n_sft} trajectories to SFT, {routing.n_rl} to RL, in {', '.join(export.files)}"
    show(export.model_dump(), "\n".join([said, *(f"warning: {warning}" for warning in export.warnings)]), as_json)
