"""`gradprism alfworld`: what only ALFWorld needs."""

from pathlib import Path
from typing import Annotated

import typer

from gradprism.cli.help import Command, new_app
from gradprism.cli.options import AsJson, DataDir, Format, Map, environment_options, show
from gradprism.environments.alfworld.environment import AlfworldEnvironment
from gradprism.environments.alfworld.replay import replay
from gradprism.runtime.files import write_json
from gradprism.trajectories.corpus import load_corpus, write_messages_jsonl
from gradprism.trajectories.mapping import read_settings

app = new_app()


@app.callback()
def group() -> None:
    """Commands that only ALFWorld needs."""


@app.command("replay", cls=Command)
def replay_command(
    data: Annotated[list[Path], typer.Option(help="Trajectories that name their `game_file`, in any format. May be repeated.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write, in the `messages` format.")],
    data_dir: DataDir = None,
    format_: Format = None,
    map_: Map = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many trajectories.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON file for those that do not replay.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; default one per core.")] = None,
    as_json: AsJson = False,
) -> None:
    """Plays an older corpus again on the official games, in the text of the installed ALFWorld."""
    environment = AlfworldEnvironment(games="official", **environment_options(data_dir, None))
    replayed = replay(environment, list(load_corpus(data, format=format_, limit=limit, mapping=read_settings(map_))), workers)
    write_messages_jsonl(out, replayed.kept)
    told = replayed.report()
    if report is not None:
        write_json(report, told)
    lines = [f"{one.id}: step {one.step}, {one.action!r}: {one.why}" for one in replayed.lost]
    n = len(replayed.kept) + len(replayed.lost)
    lines.append(f"{out}: {len(replayed.kept)} of {n} trajectories kept ({100 * replayed.share:.2f} %)")
    show(told, "\n".join(lines), as_json)
