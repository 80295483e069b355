"""`gradprism route`."""

from pathlib import Path
from typing import Annotated

import typer

from gradprism.cli.options import Metric, Normalise, PassRates, Policy, ProbeFolder


def command(
    probe: ProbeFolder,
    out: Annotated[Path, typer.Option(help="Route folder to write; must be new or empty.")],
    metric: Metric = "gini",
    policy: Policy = "concentration",
    rl_share: Annotated[float, typer.Option(help="Share that goes to RL; 0.5 is what scores above the median.")] = 0.5,
    threshold: Annotated[
        float | None, typer.Option(help="Send what scores above this number to RL, whatever share that is.")
    ] = None,
    normalise: Normalise = "none",
    pass_rates: PassRates = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what goes by chance, and of the audit's bootstrap.")] = 0,
    on_existing: Annotated[str, typer.Option(help="A folder in use: replace or fail.")] = "fail",
    as_json: Annotated[bool, typer.Option("--json", help="Print the routing and its audit as JSON.")] = False,
) -> None:
    """Scores every trajectory, cuts at the threshold, and writes the SFT set, the RL tasks and an audit of the split."""
    from gradprism.cli.options import print_json
    from gradprism.routing.routes import route
    from gradprism.runtime import progress

    progress.set_quiet(as_json)
    routes = route(
        probe,
        metric,
        policy=policy,
        rl_share=rl_share,
        threshold=threshold,
        normalise=normalise,
        seed=seed,
        pass_rates=pass_rates,
    )
    routes.save(out, on_existing)  # pyright: ignore[reportArgumentType] # checked there
    if as_json:
        print_json({"routing": routes.routing.model_dump(), "audit": routes.audit().to_json()})
        return
    print(f"{out}: {routes.routing}")
    for warning in routes.audit().warnings:
        print(f"warning: {warning}")
