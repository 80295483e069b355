"""The `gradprism` command: parses, calls the public functions of the package, prints."""

import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

import gradprism as gp
from gradprism.cli import commands
from gradprism.cli.help import new_app
from gradprism.runtime.errors import GradprismError
from gradprism.runtime.progress import warn

app = new_app(help="Decide, before training, which agent trajectories a language model learns by imitation (SFT) and which by RL.")

SETTINGS = {
    # Threads that spin while they wait make an oversubscribed machine ten times slower; this must be set before torch is loaded.
    "OMP_WAIT_POLICY": "PASSIVE",
    # When one process of several has failed, torch tells of each connection to it at length; our own line says what went wrong.
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # Hugging Face libraries log and draw bars of their own; ours say what a person needs.
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"gradprism {gp.__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options that come before the command."""


def main() -> None:
    """Entry point: deliberate errors, wrong options among them, become one line on stderr and exit code 2."""
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft loads it; it tells of kernels that only 4-bit inference uses
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # between TRL and transformers, not ours
    sys.path.append(str(Path.cwd()))  # where a person's own environments, metrics and formats are looked for last
    try:
        commands.register(app, sys.argv[1:])
        sys.exit(app(standalone_mode=False))
    except TyperException as error:
        text = error.format_message()
        if text.lstrip().startswith("Usage:"):  # the help page, for a command that lacks its own
            print(text, file=sys.stderr)
        else:
            warn(f"error: {' '.join(text.splitlines())}")
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)
    except GradprismError as error:
        if os.environ.get("GRADPRISM_TRACEBACK"):
            traceback.print_exc()
        warn(f"error: {' '.join(str(error).splitlines())}")
        sys.exit(2)
    except OSError as error:  # a folder that cannot be written, a full disk
        warn(f"error: {error.filename or 'operating system'}: {error.strerror or error}")
        sys.exit(2)
