"""`gradprism collect`."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    out: Annotated[Path, typer.Option(help="JSONL file to write, in the `messages` format.")],
    env: Annotated[str, typer.Option(help="Environment.")] = "alfworld",
    difficulty: Annotated[str, typer.Option(help="Size of generated rooms: tiny, small or full.")] = "small",
    split: Annotated[str, typer.Option(help="Split of the tasks: train, seen, unseen or base.")] = "train",
    count: Annotated[int, typer.Option(min=1, help="Number of tasks, task types in turn.")] = 240,
    start: Annotated[int, typer.Option(min=0, help="Index of the first task of each type.")] = 0,
    max_steps: Annotated[int, typer.Option(min=1, help="Actions an episode; a task not solved by then is left out.")] = 50,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; default one a core.")] = None,
) -> None:
    """Plays tasks with the environment's expert. The same arguments give the same bytes."""
    from gradprism.environments.demonstrations import collect
    from gradprism.environments.registry import make_environment
    from gradprism.trajectories.readers import write_messages_jsonl

    environment = make_environment(env, difficulty=difficulty)
    trajectories = collect(environment, environment.tasks(split, count, start), max_steps, workers)
    write_messages_jsonl(out, trajectories)
    print(f"{out}: {len(trajectories)} of {count} tasks solved by the expert")
