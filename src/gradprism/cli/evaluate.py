"""`gradprism evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gradprism.cli.config_file import with_config_file
from gradprism.cli.options import DataDir, EnvOptions, with_config
from gradprism.environments.prompts import PromptTemplate
from gradprism.evaluation.config import EvaluationConfig


@with_config_file("evaluation")
@with_config(PromptTemplate, name="prompt")
@with_config(EvaluationConfig, leave_out=("splits", "prompt", "context_length"))
def command(
    config: EvaluationConfig,
    prompt: PromptTemplate,
    out: Annotated[Path, typer.Option(help="Folder for episodes.jsonl and summary.json.")],
    agent: Annotated[
        str | None, typer.Option(help="expert, random, or a model: its folder or hub id. Exactly one of --agent and --model.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub id of the model that plays.")] = None,
    env: Annotated[str, typer.Option(help="Environment.")] = "alfworld",
    data_dir: DataDir = None,
    env_option: EnvOptions = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Split to play; may be repeated. Default: the environment's own choice.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Tasks of each split; default all there are, or 96.")] = None,
    context_length: Annotated[int | None, typer.Option(help="Tokens an episode may have; default the model's own limit.")] = None,
    chat_template: Annotated[Path | None, typer.Option(help="Template file with generation markers.")] = None,
    dtype: Annotated[str, typer.Option(help="Type of the weights.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Environment processes; default one a core.")] = None,
    on_existing: Annotated[str, typer.Option(help="A folder in use: resume, replace or fail.")] = "resume",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON and no progress.")] = False,
) -> None:
    """The same tasks in the same order every time; greedy unless a temperature is set. Kill it, and the same command goes on."""
    from gradprism.cli.options import environment_options, print_json
    from gradprism.environments.registry import make_environment
    from gradprism.evaluation.agents import ScriptedAgent
    from gradprism.evaluation.run import FOLDER, evaluate
    from gradprism.runtime import progress
    from gradprism.runtime.errors import ConfigError

    progress.set_quiet(as_json)
    if (agent is None) == (model is None):
        raise ConfigError("give either --agent (expert, random or a model) or --model")
    FOLDER.check(out, on_existing)  # pyright: ignore[reportArgumentType] # checked there
    environment = make_environment(env, **environment_options(data_dir, env_option))
    splits = {}
    for name in split or environment.evaluation_splits:
        size = environment.size(name)  # an unknown split is said before a model is loaded
        splits[name] = count or (96 if size is None else size - config.start)
        environment.tasks(name, splits[name], config.start, config.task_type)
    config = config.model_copy(update={"splits": splits, "prompt": prompt, "context_length": context_length})
    if model is None and agent in ("expert", "random"):
        player = ScriptedAgent(agent)  # pyright: ignore[reportArgumentType]
    else:
        player = _model_agent(str(model or agent), chat_template, dtype, device)
    summary = evaluate(player, environment, config, out=out, workers=workers, on_existing=on_existing)  # pyright: ignore[reportArgumentType]
    if as_json:
        print_json(summary.to_json())
        return
    for row in summary.rows:
        interval = f"[{100 * row.low:.1f}, {100 * row.high:.1f}]"
        success = f"{row.successes:4d}/{row.episodes:<4d} {100 * row.success:5.1f} % {interval:14s}"
        score = f"score {100 * row.score:5.1f} [{100 * row.score_low:.1f}, {100 * row.score_high:.1f}]"
        failed = f", {row.failures} failed in the engine" if row.failures else ""
        print(
            f"{row.split:12s} {row.task_type:32s} {success} {score:25s} {row.mean_steps:5.1f} steps, "
            f"{100 * row.invalid_share:.1f} % refused{failed}"
        )


def _model_agent(name: str, chat_template: Path | None, dtype: str, device: str) -> Any:
    from gradprism.evaluation.agents import ModelAgent
    from gradprism.models import load_model, tokenizer_source
    from gradprism.trajectories.rendering import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_source(name), chat_template)
    return ModelAgent(load_model(name, dtype, device), tokenizer)
