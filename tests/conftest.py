"""What all tests share."""

import gc
import os
import sys
from pathlib import Path

import pytest

# Tests run small tensors, often beside worker processes: more threads than cores would only make them wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What the probe measures of this machine is kept here between runs of the tests, apart from the user's own.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parent.parent / ".pytest_cache" / "xdg")


def pytest_collection_finish():
    """All modules and tests stay to the end: Python need not look through them for garbage again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def cli(monkeypatch, capsys):
    """Runs the command line in this process; gives exit code, stdout and stderr."""
    from gradprism.cli.main import main
    from gradprism.runtime import progress

    def run(*arguments):
        capsys.readouterr()  # what a fixture said is not the command's
        monkeypatch.setattr(sys, "argv", ["gradprism", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
            sys.exit(0)
        progress.set_quiet(False)
        printed = capsys.readouterr()
        return stop.value.code or 0, printed.out, printed.err

    return run
