"""`gradprism export`: route folders for other trainers."""

from pathlib import Path
from typing import Annotated

import typer

from gradprism.cli.help import Command, new_app

app = new_app()


@app.callback()
def group() -> None:
    """Route folders for other trainers."""


@app.command("verl", cls=Command)
def verl_command(
    route: Annotated[Path, typer.Argument(metavar="DIR", help="Route folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must be new or empty.")],
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of WebShop's official files, to name the product and options of each goal.")
    ] = None,
    on_existing: Annotated[str, typer.Option(help="A folder in use: replace or fail.")] = "fail",
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Writes the SFT set and the RL tasks as verl's and verl-agent's Parquet files, with the list of tasks that RL may draw."""
    from gradprism.cli.options import print_json
    from gradprism.exporting.verl import export_verl
    from gradprism.runtime import progress

    progress.set_quiet(as_json)
    export = export_verl(route, out, data_dir=data_dir, on_existing=on_existing)  # pyright: ignore[reportArgumentType] # checked there
    if as_json:
        print_json(export)
        return
    tasks = "".join(
        f", {about['tasks']} {env} tasks to RL ({about['official']} in the list)" for env, about in export["rl"].items()
    )
    print(f"{out}: {export['sft']['trajectories']} trajectories to SFT{tasks}")
    for warning in export["warnings"]:
        print(f"warning: {warning}")
