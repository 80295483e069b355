"""`gradprism audit`: can a probe's split be trusted?"""

import math
from pathlib import Path
from typing import Annotated

import typer

import gradprism as gp
from gradprism.cli import options as o
from gradprism.experiments.costs import projected_hours
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.files import write_json


def command(
    probe: o.ProbeFolder,
    metric: o.Metric = "gini",
    policy: o.Policy = "concentration",
    normalise: o.Normalise = "none",
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Probe folder of the same corpus by another model, dtype or context length; may be repeated."
        ),
    ] = None,
    pass_rates: o.PassRates = None,
    target: o.Target = None,
    full_rl_hours: Annotated[
        float | None, typer.Option(help="Hours that RL on everything would take (with --routed-hours).")
    ] = None,
    routed_hours: Annotated[float | None, typer.Option(help="Hours that SFT and RL take as routed, without the probe.")] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of a `gradprism run` to project them from, instead of those hours.")
    ] = None,
    seed: o.Seed = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the audit there, as JSON.")] = None,
    as_json: o.AsJson = False,
) -> None:
    """Audits the median split of a probe: what its score correlates with, and what the split depends on. Writes no route."""
    if run is not None and (full_rl_hours is not None or routed_hours is not None):
        raise ConfigError("--run and hours exclude each other; give one")
    found = gp.audit(
        probe,
        metric,
        policy=policy,
        normalise=normalise,
        seed=seed,
        pass_rates=pass_rates,
        target=target,
        compare=compare or (),
        hours=_hours(full_rl_hours, routed_hours) if run is None else projected_hours(gp.read_results(run)),
    )
    if out is not None:
        write_json(out, found.to_json())
    o.show(found.to_json(), f"{probe}: {found}", as_json)


def _hours(full_rl: float | None, routed: float | None) -> tuple[float, float] | None:
    if full_rl is None and routed is None:
        return None
    if full_rl is None or routed is None:
        raise ConfigError("--full-rl-hours and --routed-hours: give both, or neither")
    for option, hours in (("--full-rl-hours", full_rl), ("--routed-hours", routed)):
        if not (math.isfinite(hours) and hours >= 0):
            raise ConfigError(f"{option} {hours}: must be a number of hours, 0 or more")
    return full_rl, routed
