"""The table of commands. Only the one that was asked for is imported, so that `gradprism --help` stays fast."""

import importlib
from collections.abc import Sequence

import typer

from gradprism.cli.help import Command, new_app

# In the order of the pipeline, which is the order of `gradprism --help`. The module gradprism.cli.<name> holds `command`.
COMMANDS = {
    "quickstart": "Run the whole method on the shipped model and corpus, in minutes and without a GPU.",
    "init": "Write a commented configuration to start from: alfworld, webshop or own.",
    "run": "Run the whole pipeline of a config file: probe, route, SFT, RL, evaluation, report.",
    "collect": "Write expert trajectories of an environment's tasks as a corpus.",
    "inspect": "Show trajectories with the tokens that training and the probe count as response.",
    "probe": "Measure where each trajectory's gradient falls in a frozen model.",
    "route": "Send each probed trajectory to SFT or to RL.",
    "export": "Write a route folder in the format of another trainer, such as verl.",
    "audit": "Show what a probe's split correlates with, and how stable it is.",
    "advise": "Advise how much of a corpus goes to SFT and to RL, and chosen by what.",
    "sft": "Fine-tune a model on trajectories.",
    "rl": "Train a model with GRPO or GiGPO on an environment's tasks.",
    "evaluate": "Play an environment's tasks with a model, the expert or at random, and report success with intervals.",
    "studio": "Show corpora, cuts, trajectories and runs in a browser, or export the pages.",
    "report": "Render a run folder as tables and one HTML page.",
}
# Groups of commands: the module gradprism.cli.<name> holds a Typer `app`.
GROUPS = {
    "experiment": "Compare arms: train and evaluate every arm with every seed, with uncertainty and cost.",
    "alfworld": "ALFWorld's own: replay corpora of the older text version.",
    "webshop": "WebShop's own: play it in a browser, write a generated catalogue.",
}


def register(app: typer.Typer, arguments: Sequence[str]) -> None:
    """Adds every command to `app`; all but the one named in `arguments` as mere help lines."""
    chosen = next((a for a in arguments if not a.startswith("-")), None)
    for name, line in COMMANDS.items():
        command = importlib.import_module(f"gradprism.cli.{name}").command if name == chosen else _unused
        app.command(name, cls=Command, help=command.__doc__ if name == chosen else line)(command)
    for name, line in GROUPS.items():
        group = importlib.import_module(f"gradprism.cli.{name}").app if name == chosen else new_app()
        if name != chosen:
            group.callback()(_unused)
        app.add_typer(group, name=name, help=line)


def _unused() -> None:
    raise AssertionError("only the chosen command is called")
