"""`gradprism init`."""

from pathlib import Path
from typing import Annotated

import typer

import gradprism as gp
from gradprism.package_data import EXTRAS
from gradprism.runtime.progress import tell


def command(
    template: Annotated[
        str, typer.Argument(metavar="alfworld|webshop|own", help="What to start from: a known environment, or your own.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path(),
) -> None:
    """Write a configuration that runs as it is, on a tiny model that comes with the package: change one thing after the other."""
    paths = gp.write_template(template, out)
    for path in paths:
        tell(str(path))
    install = f"pip install 'gradprism[{template}]', then " if template in EXTRAS else ""
    tell(f"next: {install}gradprism run {paths[0]} --dry-run")
