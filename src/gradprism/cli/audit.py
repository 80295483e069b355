"""`gradprism audit`: can a probe's split be trusted?"""

import math
from pathlib import Path
from typing import Annotated

import typer

from gradprism.cli.options import Metric, Normalise, PassRates, Policy, ProbeFolder
from gradprism.runtime.errors import ConfigError


def command(
    probe: ProbeFolder,
    metric: Metric = "gini",
    policy: Policy = "concentration",
    normalise: Normalise = "none",
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Probe folder of the same corpus by another model, dtype or context length; may be repeated."
        ),
    ] = None,
    pass_rates: PassRates = None,
    full_rl_hours: Annotated[
        float | None, typer.Option(help="Hours that RL on everything would take (with --routed-hours).")
    ] = None,
    routed_hours: Annotated[float | None, typer.Option(help="Hours that SFT and RL take as routed, without the probe.")] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of a `gradprism run` to project them from, instead of those hours.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what goes by chance, and of the bootstrap.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the audit there, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the audit as JSON.")] = False,
) -> None:
    """Audits the median split of a probe: what its score correlates with, and what the split depends on. Writes no route."""
    from gradprism.cli.options import print_json
    from gradprism.experiments.costs import projected_hours
    from gradprism.experiments.results import read_results
    from gradprism.routing.stability import audit
    from gradprism.runtime.files import write_json

    if run is not None and (full_rl_hours is not None or routed_hours is not None):
        raise ConfigError("--run and hours exclude each other; give one")
    found = audit(
        probe,
        metric,
        policy=policy,
        normalise=normalise,
        seed=seed,
        pass_rates=pass_rates,
        compare=compare or (),
        hours=_hours(full_rl_hours, routed_hours) if run is None else projected_hours(read_results(run)),
    )
    if out is not None:
        write_json(out, found.to_json())
    if as_json:
        print_json(found.to_json())
        return
    print(f"{probe}: {found}")


def _hours(full_rl: float | None, routed: float | None) -> tuple[float, float] | None:
    if full_rl is None and routed is None:
        return None
    if full_rl is None or routed is None:
        raise ConfigError("--full-rl-hours and --routed-hours: give both, or neither")
    for option, hours in (("--full-rl-hours", full_rl), ("--routed-hours", routed)):
        if not (math.isfinite(hours) and hours >= 0):
            raise ConfigError(f"{option} {hours}: must be a number of hours, 0 or more")
    return full_rl, routed
