"""`gradprism advise`: how much to SFT, how much to RL, and chosen by what."""

from pathlib import Path
from typing import Annotated, Literal

import typer

import gradprism as gp
from gradprism.cli import options as o


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
    no_env: Annotated[bool, typer.Option("--no-env", help="There is no environment that plays the tasks.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Advises how much of a probed corpus goes to SFT and to RL, and chosen by what, with reasons and how sure they are. Trains nothing."""
    found = gp.advise(
        probe,
        metric,
        pass_rates=pass_rates,
        compare=compare or (),
        results=results or (),
        group_size=group_size,
        prefer=prefer,
        playable=not no_env,
    )
    o.show(found.to_json(), str(found), as_json)
