"""Runs every check of the project, the quick ones first, and stops at the first that fails.

python scripts/check.py          # everything
python scripts/check.py --fast   # without the tests marked slow
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    fast = ["-m", "not slow"] if "--fast" in sys.argv[1:] else []
    python = sys.executable
    checks = [
        [python, "-m", "ruff", "check", "."],
        [python, "-m", "ruff", "format", "--check", "."],
        [python, "-m", "pyright"],
        [python, "-m", "pytest", "--durations=10", *fast],
    ]
    for command in checks:
        shown = " ".join(command[2:])
        print(f"== {shown}", flush=True)
        begin = time.monotonic()
        status = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "0"}).returncode
        print(f"== {shown}: exit {status} after {time.monotonic() - begin:.0f} s", flush=True)
        if status:
            sys.exit(status)


if __name__ == "__main__":
    main()
