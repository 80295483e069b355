"""`gradprism init`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

import gradprism as gp


def command(
    template: Annotated[
        Literal["alfworld", "webshop", "own"], typer.Argument(help="What to start from: a known environment, or your own.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path(),
) -> None:
    """Write a configuration that runs as it is, on a tiny model that comes with the package: change one thing after the other."""
    paths = gp.write_template(template, out)
    for path in paths:
        print(path)
    print(f"next: gradprism run {paths[0]} --dry-run")
