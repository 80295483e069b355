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
    threshold: Annotated[
        str, typer.Option(help="median, quantile (with --rl-share), or a score; scores above it go to RL.")
    ] = "median",
    rl_share: Annotated[float | None, typer.Option(help="Share that goes to RL, instead of the half above the median.")] = None,
    normalise: Normalise = "none",
    pass_rates: PassRates = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what goes by chance, and of the audit's bootstrap.")] = 0,
    on_existing: Annotated[str, typer.Option(help="A folder in use: replace or fail.")] = "fail",
    as_json: Annotated[bool, typer.Option("--json", help="Print the routing and its audit as JSON.")] = False,
) -> None:
    """Scores every trajectory, cuts at the threshold, and writes the SFT set, the RL tasks and an audit of the split."""
    from gradprism.cli.options import print_json
    from gradprism.routing.folder import route_probe
    from gradprism.runtime import progress

    progress.set_quiet(as_json)
    result = route_probe(
        probe,
        out,
        metric=metric,
        policy=policy,
        threshold=threshold,
        rl_share=rl_share,
        normalise=normalise,
        seed=seed,
        pass_rates=pass_rates,
        on_existing=on_existing,  # pyright: ignore[reportArgumentType] # checked there
    )
    if as_json:
        print_json(result)
        return
    routing = result["routing"]
    print(f"{out}: {routing['n_sft']} to SFT, {routing['n_rl']} to RL; {policy} of {metric}, threshold {routing['threshold']:.6g}")
    for warning in result["audit"]["warnings"]:
        print(f"warning: {warning}")
