"""`gradprism advise`: how much to SFT, how much to RL, and chosen by what."""

from pathlib import Path
from typing import Annotated, Literal

import typer

import gradprism as gp
from gradprism.cli import options as o
from gradprism.runtime.errors import ConfigError


def command(
    probe: o.ProbeFolder,
    metric: o.Metric = "gini",
    pass_rates: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="episodes.jsonl of a `gradprism evaluate` of the base model on the corpus's tasks, or some of them.",
        ),
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Probe folder of the same corpus by another dtype or context length; may be repeated."),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Results folder of an own experiment, to count as the committed ones do; may be repeated."
        ),
    ] = None,
    prefer: Annotated[
        Literal["success", "price"],
        typer.Option(
            parser=str, metavar="[success|price]", help="The most success, or the cheapest way that keeps 90 % of its gain."
        ),
    ] = "success",
    group_size: Annotated[int | None, typer.Option(min=2, help="Episodes per group of RL; default that of `gradprism rl`.")] = None,
    env: Annotated[
        str | None,
        typer.Option(
            help="Environment of the tasks: asked which it knows, and played some episodes to estimate what pass rates would take."
        ),
    ] = None,
    data_dir: o.DataDir = None,
    env_option: o.EnvOptions = None,
    no_env: Annotated[bool, typer.Option("--no-env", help="There is no environment that plays the tasks.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Advises how much of a probed corpus goes to SFT and to RL, and chosen by what, with reasons and how sure they are. Trains nothing."""
    if env is not None and no_env:
        raise ConfigError("--env and --no-env exclude each other; give one")
    opened = gp.Probe.load(probe)
    environment = None if env is None else gp.make_environment(env, **o.environment_options(data_dir, env_option))
    found = gp.advise(
        opened,
        metric,
        pass_rates=pass_rates,
        compare=compare or (),
        results=results or (),
        group_size=group_size,
        prefer=prefer,
        playable=not no_env,
        environment=environment,
        episode_seconds=None if environment is None else _episode_seconds(opened, environment),
    )
    o.show(found.to_json(), str(found), as_json)


def _episode_seconds(probe: gp.Probe, environment: gp.Environment) -> float | None:
    """Seconds that an episode of the probed model takes, as `gradprism rl --dry-run` estimates them; None where there is no task."""
    tasks = [environment.task(t.task) for t in probe.trajectories if t.task and not environment.refusal(t.task)]
    if not tasks:
        return None
    model, config = probe.manifest.model, gp.RlConfig(rounds=1, evaluate_every=0)
    renderer = gp.Renderer(gp.load_tokenizer(model), probe.manifest.context_length)
    estimate = gp.estimate_rl(gp.ModelSpec(model), renderer, environment, tasks, config, gp.hardware())
    return 3600 * estimate["rollout hours"].value / estimate["episodes"].value
