"""`gradprism rl`."""

from pathlib import Path
from typing import Annotated

import typer

from gradprism.cli.options import DataDir, EnvOptions, with_config
from gradprism.environments.prompts import PromptTemplate
from gradprism.training.rl_config import RlConfig


@with_config(PromptTemplate, name="prompt")
@with_config(RlConfig, leave_out=("prompt",))
def command(
    config: RlConfig,
    prompt: PromptTemplate,
    model: Annotated[str, typer.Option(help="Folder or hub id of the model to start from, for example the SFT checkpoint.")],
    tasks: Annotated[Path, typer.Option(help="Tasks to train on: ROUTE_FOLDER/rl.jsonl.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint; must be new or empty.")],
    env: Annotated[str, typer.Option(help="Environment.")] = "alfworld",
    data_dir: DataDir = None,
    env_option: EnvOptions = None,
    context_length: Annotated[int | None, typer.Option(help="Tokens an episode may have; default the model's own limit.")] = None,
    chat_template: Annotated[Path | None, typer.Option(help="Template file with generation markers.")] = None,
    dtype: Annotated[str, typer.Option(help="Type of the weights.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Environment processes; default one a core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON and no progress.")] = False,
) -> None:
    """Plays each task several times and learns from the differences; gold actions are never read."""
    from gradprism import progress
    from gradprism.cli.options import environment_options, print_json
    from gradprism.environments.registry import make_environment
    from gradprism.files import claim_output_folder
    from gradprism.models import check_context_length, check_trainable, load_model
    from gradprism.training.rl import read_tasks, train_rl
    from gradprism.trajectories.rendering import Renderer, load_tokenizer

    progress.set_quiet(as_json)
    environment = make_environment(env, environment_options(data_dir, env_option))
    to_play = read_tasks(tasks, environment)
    check_trainable(model)
    tokenizer = load_tokenizer(model, chat_template)
    loaded = load_model(model, dtype, device)
    limit = check_context_length(loaded, context_length)
    summary = train_rl(
        loaded,
        Renderer(tokenizer, limit),
        environment,
        to_play,
        config.model_copy(update={"prompt": prompt}),
        claim_output_folder(out),
        context_length=limit,
        workers=workers,
    )
    if as_json:
        print_json(summary)
    else:
        print(f"{out}: {summary['episodes']} episodes in {summary['steps']} steps on {summary['tasks']} tasks")
