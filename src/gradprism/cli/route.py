"""`gradprism route`."""

from pathlib import Path
from typing import Annotated

import typer

import gradprism as gp
from gradprism.cli import options as o
from gradprism.routing.split import check_order
from gradprism.runtime.errors import ConfigError


def command(
    probe: o.ProbeFolder,
    out: Annotated[Path, typer.Option(help="Route folder to write; must be new or empty.")],
    metric: o.Metric = "gini",
    policy: o.Policy = "concentration",
    rl_share: Annotated[float, typer.Option(help="Share that goes to RL; 0.5 is what scores above the median.")] = 0.5,
    threshold: Annotated[
        float | None, typer.Option(help="Send what scores above this number to RL, whatever share that is.")
    ] = None,
    cuts: Annotated[
        str | None, typer.Option(help="Several numbers in place of a threshold, ascending: 0.1,0.7. Needs --sides.")
    ] = None,
    shares: Annotated[
        str | None,
        typer.Option(help="Shares of the trajectories in place of cuts, lowest scores first: 0.4,0.2,0.4. Needs --sides."),
    ] = None,
    sides: Annotated[
        str | None, typer.Option(help="Where each range of scores goes, lowest first: sft, rl, none or both, as in sft,both,rl.")
    ] = None,
    within: Annotated[
        list[str] | None,
        typer.Option(help="Rank scores within fifths of the response length (length), or within task_type. May be repeated."),
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(metavar="[ascending|descending]", help="Write both sets in the order of their scores, for a curriculum."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="[linear|logistic]", help="In place of sides: weights of SFT's loss and of RL's draws, by the score's rank."
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of logistic weights, default 0.1; a small one is nearly the median's split.")
    ] = None,
    normalise: o.Normalise = "none",
    pass_rates: o.PassRates = None,
    target: o.Target = None,
    per_turn: Annotated[
        bool,
        typer.Option("--per-turn", help="Add statistics of single turns' scores to the table; the probe must have --per-turn."),
    ] = False,
    seed: o.Seed = 0,
    on_existing: o.OnExistingOutput = "fail",
    as_json: o.AsJson = False,
) -> None:
    """Scores every trajectory, cuts at the threshold, and writes the SFT set, the RL tasks and an audit of the split."""
    routes = gp.route(
        probe,
        metric,
        policy=policy,
        rl_share=rl_share,
        threshold=threshold,
        cuts=_numbers("cuts", cuts),
        shares=_numbers("shares", shares),
        sides=[side.strip() for side in sides.split(",")] if sides else (),
        within=within or (),
        order=check_order(order),
        weights=weights,  # pyright: ignore[reportArgumentType] # which says what it may be
        temperature=temperature,
        normalise=normalise,
        seed=seed,
        pass_rates=pass_rates,
        target=target,
        per_turn=per_turn,
    )
    routes.save(out, on_existing)
    audit = routes.audit()
    lines = [f"{out}: {routes.routing}", *(f"warning: {warning}" for warning in audit.warnings)]
    if order:
        lines.append("the sets are in that order; `gradprism sft` and `gradprism rl` keep it with --order given")
    o.show({"routing": routes.routing.model_dump(), "audit": audit.to_json()}, "\n".join(lines), as_json)


_EXAMPLES = {"cuts": "0.1,0.7", "shares": "0.4,0.2,0.4"}


def _numbers(option: str, text: str | None) -> list[float]:
    try:
        return [float(number) for number in text.split(",")] if text else []
    except ValueError:
        raise ConfigError(f"--{option} {text!r}: expected numbers, for example {_EXAMPLES[option]}") from None
