"""Runs every check of the project on two cores and stops at the first that fails.

python scripts/check.py          # all but what is slow and says little more, about a quarter of an hour
python scripts/check.py --all    # that too
python scripts/check.py --fast   # style, types, layers and the quick tests: under a minute
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = [sys.executable, "-m"]

STATIC = [
    [*PYTHON, "ruff", "check", "."],
    [*PYTHON, "ruff", "format", "--check", "."],
    [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
    [*PYTHON, "pyright"],
]
DOCS = [*PYTHON, "mkdocs", "build", "--strict", "--site-dir", "build/site"]  # --quiet would hide the warnings from --strict
PYTEST = [*PYTHON, "pytest", "--durations=15"]
# Tests are spread over two processes, those that measure time or need both cores come after them, by themselves.
SPREAD = [*PYTEST, "-n", "2", "--dist", "worksteal", "-m"]
# Of the few files that have such tests: reading all of them takes longer than the tests.
ALONE = [
    *PYTEST,
    "-m",
    "alone",
    *(str(path) for path in sorted(ROOT.glob("tests/**/test_*.py")) if "mark.alone" in path.read_text()),
]
# Of rooms whose tests take seconds; the rest of a minute is pyright's.
QUICK_ROOMS = [
    "runtime",
    "routing",
    "trajectories",
    "reporting",
    "cli/test_help.py",
    "cli/test_init.py",
    "test_concentration.py",
]
QUICK = [*PYTEST, "-m", "not alone and not slow", *(f"tests/{room}" for room in QUICK_ROOMS)]

# A fixed hash seed, and one thread per process: two processes of two threads each only wait for each other.
SETTINGS = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}


def check(command: list[str], *, at_once: bool = False) -> int:
    """Runs one command and gives its exit code; `at_once` prints as it goes, else all together when it ends."""
    begin = time.monotonic()
    output = None if at_once else subprocess.PIPE
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **SETTINGS}, stdout=output, stderr=subprocess.STDOUT)
    name = " ".join(Path(word).name if word.startswith("/") else word for word in command if word != "-m")
    said = (done.stdout or b"").decode(errors="replace")
    print(f"{said}== {name}: exit {done.returncode} after {time.monotonic() - begin:.0f} s", flush=True)
    return done.returncode


def main() -> None:
    if "--fast" in sys.argv[1:]:
        statics, tests = [QUICK, *STATIC], []
    else:
        which = "not alone" if "--all" in sys.argv[1:] else "not alone and not rare"
        statics, tests = [*STATIC, DOCS], [[*SPREAD, which], ALONE]
    with ThreadPoolExecutor(2) as pool:
        if any(list(pool.map(check, statics))):
            sys.exit(1)
    for command in tests:
        if check(command, at_once=True):
            sys.exit(1)


if __name__ == "__main__":
    main()
