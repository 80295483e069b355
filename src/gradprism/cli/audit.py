"""`gradprism audit`: can a probe's split be trusted?"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gradprism.cli.options import Metric, Normalise, PassRates, Policy, ProbeFolder


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
    """Audits the median split of a probe: what its score goes along with, and what the split depends on. Writes no route."""
    from gradprism.cli.options import print_json
    from gradprism.experiments.costs import projected_hours
    from gradprism.routing.stability import audit_probe
    from gradprism.runtime.errors import ConfigError
    from gradprism.runtime.files import write_json

    if run is not None:
        if full_rl_hours is not None or routed_hours is not None:
            raise ConfigError("--run and hours exclude each other; give one")
        full_rl_hours, routed_hours = projected_hours(run)
    audit = audit_probe(
        probe,
        metric=metric,
        policy=policy,
        normalise=normalise,
        seed=seed,
        compare=compare or (),
        pass_rates=pass_rates,
        full_rl_hours=full_rl_hours,
        routed_hours=routed_hours,
    )
    if out is not None:
        write_json(out, audit)
    if as_json:
        print_json(audit)
        return
    _print(audit)


def _print(audit: dict[str, Any]) -> None:
    """The audit for a person: tables, single figures, notes and warnings."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(f"{audit['probe']}: {audit['n_trajectories']} trajectories, {audit['policy']} of {audit['metric']}, median split")
    splits = audit["split_by"]
    confounds = [
        [name, _number(rho), *((splits[name]["rl"], *_overlap(splits[name])) if name in splits else ("", "", ""))]
        for name, rho in audit["spearman"].items()
    ]
    console.print(_table("The score against", ("", "Spearman", "its split: RL", "same side", "Jaccard"), confounds))
    if audit["task_type_eta_squared"] is not None:
        console.print(f"Share of the score's variance that task types explain (η²): {audit['task_type_eta_squared']:.3f}")
    error, share = audit["threshold_standard_error"], audit["share_within_one_standard_error"]
    if error is not None:
        console.print(f"Standard error of the median: {error:.4g}; within one of it: {share:.1%} of the trajectories")
    for kind, pairs in audit["agreement"].items():
        if pairs:
            rows = [[name, _number(pair["spearman"]), *_overlap(pair)] for name, pair in pairs.items()]
            console.print(_table(f"Agreement between {kind}", ("", "Spearman", "same side", "Jaccard"), rows))
    for name, pair in audit["agreement"]["probes"].items():
        changes = "; ".join(f"{key}: {_short(here)} → {_short(there)}" for key, (here, there) in pair["differs"].items())
        console.print(Text(f"{name}: {pair['shared']} shared trajectories; {changes or 'taken in the same way'}"))
    if audit["cost"]:
        cost = audit["cost"]
        console.print(f"The probe took {cost['probe_seconds']:.0f} s; routing saves {cost['saved_seconds']:.0f} s")
    for line in (*(f"note: {note}" for note in audit["notes"]), *(f"warning: {warning}" for warning in audit["warnings"])):
        console.print(Text(line))


def _short(value: Any) -> str:
    """A manifest's value; of a hash its beginning."""
    text = str(value)
    return text[:12] if len(text) == 64 else text


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _overlap(pair: dict[str, Any]) -> Iterator[str]:
    yield f"{pair['same_side']:.1%}"
    yield _number(pair["jaccard"])


def _table(title: str, headings: Sequence[str], rows: list[list[str]]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text, not str: a folder's name such as "[red]" is data, never markup.
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
