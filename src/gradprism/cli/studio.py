"""`gradprism studio`."""

from pathlib import Path
from typing import Annotated

import typer

import gradprism as gp
from gradprism.cli import options as o
from gradprism.runtime.progress import tell


def command(
    paths: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Probe, route, run or results folders, or trees with some.")
    ],
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; default 8126, or a free one where that is taken.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the address in a browser.")] = True,
    export: Annotated[
        Path | None,
        typer.Option(metavar="FILE|DIR", help="Write the pages with their data inside (FILE.html or a folder), and end."),
    ] = None,
    device_tflops: Annotated[
        float | None, typer.Option(min=0.001, help="TFLOP/s of a device, to tell hours of training where no run tells them.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Model's folder, whose tokenizer splits texts into tokens; may be repeated.", parser=o.shipped_model),
    ] = None,
) -> None:
    """Pages over what the other commands wrote, for a browser on this machine: corpora, cuts, trajectories, comparisons, runs."""
    if export is not None:
        made = gp.export_studio(paths, export, device_tflops=device_tflops, models=model or ())
        size = sum(path.stat().st_size for path in (made.rglob("*") if made.is_dir() else [made]) if path.is_file())
        tell(f"{made}: {size / 2**20:.1f} MiB")
        return
    gp.serve_studio(paths, port=port, browser=browser, device_tflops=device_tflops, models=model or ())
