"""`gradprism collect`."""

from pathlib import Path
from typing import Annotated

import typer

import gradprism as gp
from gradprism.cli import options as o
from gradprism.environments.demonstrations import default_tasks
from gradprism.runtime.progress import tell
from gradprism.trajectories.corpus import write_messages_jsonl


def command(
    out: Annotated[Path, typer.Option(help="JSONL file to write, in the `messages` format.")],
    env: o.Env = "alfworld",
    data_dir: o.DataDir = None,
    env_option: o.EnvOptions = None,
    split: Annotated[str | None, typer.Option(help="Split of the tasks; default the environment's training split.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Number of tasks, types in turn; default all there are, or 240.")] = None,
    start: Annotated[int, typer.Option(min=0, help="Place of the first task; of each type where tasks are generated.")] = 0,
    task_type: Annotated[str | None, typer.Option(help="Only tasks of this type.")] = None,
    max_steps: Annotated[int, typer.Option(min=1, help="Actions per episode; a task not solved by then is left out.")] = 50,
    workers: o.Workers = None,
) -> None:
    """Plays tasks with the environment's expert. The same arguments give the same bytes."""
    environment = gp.make_environment(env, **o.environment_options(data_dir, env_option))
    tasks = default_tasks(environment, split, count, start, task_type)
    trajectories = gp.collect(environment, tasks, max_steps=max_steps, workers=workers)
    write_messages_jsonl(out, trajectories)
    tell(f"{out}: {len(trajectories)} of {len(tasks)} tasks solved by the expert")
    for remark in environment.remarks(tasks):
        tell(remark)
