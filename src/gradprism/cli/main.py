"""The `gradprism` command: parses, calls, prints. Every command imports what it needs inside its function."""

import logging
import os
import sys
import warnings

import typer

from gradprism import __version__
from gradprism.runtime.errors import GradprismError

app = typer.Typer(
    name="gradprism",
    help="Decide, before training, which agent trajectories a language model learns by imitation (SFT) and which by RL.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"gradprism {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    """Options that come before the command."""


def main() -> None:
    """Entry point: deliberate errors become one line on stderr and exit code 2."""
    # Threads that spin while they wait make an oversubscribed machine ten times slower; this must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # When one process of several has failed, torch tells of each connection to it at length; our own line says what went wrong.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Hugging Face libraries log and draw bars of their own; ours say what a person needs.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft loads it; it tells of kernels that only 4-bit inference uses
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # between TRL and transformers, not ours
    from gradprism.cli import commands

    try:
        commands.register(app, sys.argv[1:])
        app()
    except GradprismError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a folder that cannot be written, a full disk
        print(f"error: {error.filename or 'operating system'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
