"""`gradprism route`."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    probe: Annotated[Path, typer.Argument(metavar="DIR", help="Probe folder.")],
    out: Annotated[Path, typer.Option(help="Route folder to write; must be new or empty.")],
    metric: Annotated[str, typer.Option(help="Concentration of the norms: gini, cv or kurtosis.")] = "gini",
    policy: Annotated[str, typer.Option(help="concentration, inverse, random, magnitude, loss or length.")] = "concentration",
    threshold: Annotated[
        str, typer.Option(help="median, quantile (with --rl-share), or a score; scores above it go to RL.")
    ] = "median",
    rl_share: Annotated[float | None, typer.Option(help="Share that goes to RL, instead of the half above the median.")] = None,
    normalise: Annotated[str, typer.Option(help="Norms as they are (none), per_parameter or per_weight_norm.")] = "none",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random policy and of the audit's bootstrap.")] = 0,
    on_existing: Annotated[str, typer.Option(help="A folder in use: replace or fail.")] = "fail",
    as_json: Annotated[bool, typer.Option("--json", help="Print the routing and its audit as JSON.")] = False,
) -> None:
    """Scores every trajectory, cuts at the threshold, and writes the SFT set, the RL tasks and an audit of the split."""
    from gradprism import progress
    from gradprism.cli.options import print_json
    from gradprism.routing.folder import route_probe

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
        on_existing=on_existing,  # pyright: ignore[reportArgumentType] # checked there
    )
    if as_json:
        print_json(result)
        return
    routing = result["routing"]
    print(f"{out}: {routing['n_sft']} to SFT, {routing['n_rl']} to RL; {policy} of {metric}, threshold {routing['threshold']:.6g}")
    for warning in result["audit"]["warnings"]:
        print(f"warning: {warning}")
