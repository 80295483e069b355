"""`gradprism evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from gradprism.cli.options import with_config
from gradprism.evaluation import EvaluationConfig


@with_config(EvaluationConfig, leave_out=("splits",))
def command(
    config: EvaluationConfig,
    model: Annotated[str, typer.Option(help="Folder or hub id of the model.")],
    out: Annotated[Path, typer.Option(help="Folder for episodes.jsonl and summary.json; must be new or empty.")],
    env: Annotated[str, typer.Option(help="Environment.")] = "alfworld",
    difficulty: Annotated[str, typer.Option(help="Size of generated rooms: tiny, small or full.")] = "small",
    split: Annotated[list[str] | None, typer.Option(help="Split to play; may be repeated. Default: unseen and seen.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Tasks of each split, task types in turn.")] = 96,
    context_length: Annotated[int | None, typer.Option(help="Tokens an episode may have; default the model's own limit.")] = None,
    chat_template: Annotated[Path | None, typer.Option(help="Template file with generation markers.")] = None,
    dtype: Annotated[str, typer.Option(help="Type of the weights.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Environment processes; default one a core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON and no progress.")] = False,
) -> None:
    """The same tasks in the same order every time; greedy unless a temperature is set."""
    from gradprism import progress
    from gradprism.cli.options import print_json
    from gradprism.environments.registry import make_environment
    from gradprism.evaluation import evaluate
    from gradprism.files import claim_output_folder
    from gradprism.models import check_context_length, load_model, tokenizer_source
    from gradprism.trajectories.rendering import Renderer, load_tokenizer

    progress.set_quiet(as_json)
    environment = make_environment(env, difficulty=difficulty)
    config = config.model_copy(update={"splits": dict.fromkeys(split or ["unseen", "seen"], count)})
    for name in config.splits:
        environment.tasks(name, 1)  # an unknown split is said before a model is loaded
    tokenizer = load_tokenizer(tokenizer_source(model), chat_template)
    loaded = load_model(model, dtype, device)
    limit = check_context_length(loaded, context_length)
    summary = evaluate(
        loaded, Renderer(tokenizer, limit), environment, config, claim_output_folder(out), context_length=limit, workers=workers
    )
    if as_json:
        print_json(summary)
        return
    for row in summary["rows"]:
        interval = f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        success = f"{row['successes']:3d}/{row['episodes']:<3d} {100 * row['success']:5.1f} % {interval:14s}"
        print(
            f"{row['split']:8s} {row['task_type']:32s} {success} {row['mean_steps']:5.1f} steps, {100 * row['invalid_share']:.1f} % refused"
        )
