"""The run book as commands: a step with what is carried for it, within its seconds, its results packed after each of its commands.

    python3 benchmarks/device/book.py               # the steps, what each carries and does, and the seconds of all
    python3 benchmarks/device/book.py 1             # the first

Nothing but Python is needed for it. The results are packed into `$OUT`, or build/device, as `step-N.tar.gz`, which is cut into parts
of 15 MiB where it is larger (`cat step-N.tar.gz.* | tar -xz`).
"""

import argparse
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path("build") / "device"
RUN = "benchmarks/device/run.py"
ALL = 1800  # seconds of the device
STARTS = 200  # of these, for the machine's start and the transfers between steps
TRIES = 3  # of a measurement after which the device is lost
LOST = 3  # what `run.py` ends with then
TRIED = (0, 4, 5)  # and where it has tried what it could
# Seconds before its end at which a measurement's budget is spent (a case that is running is stopped 15 later), and at which any command is
# told to end.
MARGIN, PATIENCE = 40, 12
MOST = 15 * 2**20  # bytes of a file that is brought back
# What a training or an experiment keeps for going on, which is no result.
LEFT_THERE = ("arms/run", "arms/base-model")


@dataclass(frozen=True, slots=True)
class Command:
    """Words after `python3`, and the seconds after which they are ended. A measurement is given a budget, and again where it loses the
    device; what is none must succeed."""

    words: str
    seconds: int

    @property
    def measures(self) -> bool:
        """Whether it is a measurement."""
        return self.words.startswith(RUN)


def _install(load: str) -> Command:
    return Command(f"-m pip install -q --no-index --no-deps --no-compile build/device/carry/{load}/*.whl", 40)


# What is carried for a step, and what it does.
STEPS: tuple[tuple[str, tuple[Command, ...]], ...] = (
    (
        "wheels-1",
        (
            _install("wheels-1"),
            Command(f"{RUN} probe corpus --smoke --device cuda --out build/device/smoke-cuda", 100),
            Command(f"{RUN} agreement", 90),
            Command(f"{RUN} probe", 220),
        ),
    ),
    (
        "wheels-2",
        (
            _install("wheels-2"),
            Command(f"{RUN} training --smoke --device cuda --out build/device/smoke-cuda", 70),
            Command(f"{RUN} corpus", 220),
        ),
    ),
    ("model-1", (Command(f"{RUN} training", 290),)),
    (
        "model-2",
        (
            Command("benchmarks/device/model.py build/device/carry build/device/smollm2-135m", 80),
            Command(f"{RUN} arms", 260),
        ),
    ),
    ("wheels-3", (_install("wheels-3"), Command(f"{RUN} probe agreement --retry", 150))),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", nargs="?", type=int, choices=range(1, len(STEPS) + 1), help="without one the steps are listed")
    step = parser.parse_args(arguments).step
    if step is None:
        print(listed())
        return 0
    out = Path(os.environ.get("OUT") or ROOT / BUILD)
    return carry_out(STEPS[step - 1][1], out / f"step-{step}.tar.gz")


def listed() -> str:
    """The steps, with their seconds and the sum."""
    lines = []
    for number, (load, commands) in enumerate(STEPS, 1):
        lines.append(f"{number}. with {load}, at most {sum(command.seconds for command in commands)} s")
        lines += [f"   {command.seconds:4d} s  python3 {command.words}" for command in commands]
    whole = sum(command.seconds for _, commands in STEPS for command in commands)
    return "\n".join([*lines, f"{whole} s in all, and {ALL - whole} of {ALL} for the machine's start and the transfers"])


def carry_out(commands: Sequence[Command], archive: Path) -> int:
    """Runs the commands one after another and packs after each; one that is no measurement must succeed, or it ends there.

    Returns 0, or 1 where a command did not do its work: cases that fail or are pending are no such thing.
    """
    worst = 0
    for command in commands:
        print(f"--- at most {command.seconds} s: python3 {command.words}", flush=True)
        status = _measure(command) if command.measures else _end(_start(command.words), command.seconds)
        pack(ROOT / BUILD, archive)
        if status and not command.measures:
            print(f"python3 {command.words}: ended with {status}; the step ends here", file=sys.stderr)
            return 1
        worst = max(worst, status not in TRIED)
    return int(worst)


def _measure(command: Command) -> int:
    """Its exit code, of the last of at most `TRIES` times."""
    end, status = time.monotonic() + command.seconds, LOST
    for _ in range(TRIES):
        left = end - time.monotonic()
        if status != LOST or left <= MARGIN:
            break
        status = _end(_start(f"{command.words} --budget {left - MARGIN:.0f}"), left)
    return status


def _start(words: str) -> subprocess.Popen[bytes]:
    """Python with these words, in which a pattern stands for the files that it fits."""
    spread = [found for word in words.split() for found in (sorted(map(str, ROOT.glob(word))) if "*" in word else [word])]
    # Without a network a question to the models' hub would wait for its time limits.
    return subprocess.Popen([sys.executable, *spread], cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def _end(process: subprocess.Popen[bytes], seconds: float) -> int:
    """The exit code of a process, which is told to end `PATIENCE` before `seconds` have passed, and killed after them."""
    for limit, act in ((seconds - PATIENCE, process.terminate), (PATIENCE, process.kill)):
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            act()
    return process.wait()


def pack(folder: Path, archive: Path, most: int = MOST) -> list[Path]:
    """Packs the results in `folder`, without the models in them; the archive, or where it is larger than `most` bytes its parts."""

    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if entry.name.endswith(LEFT_THERE) or "/.training-" in entry.name else entry

    archive.parent.mkdir(parents=True, exist_ok=True)
    for old in archive.parent.glob(f"{archive.name}*"):
        old.unlink()
    with tarfile.open(archive, "w:gz") as file:
        for name in ("results", "smoke-cuda"):
            if (folder / name).is_dir():
                file.add(folder / name, name, filter=wanted)
    if archive.stat().st_size <= most:
        return [archive]
    parts = []
    with archive.open("rb") as whole:
        while data := whole.read(most):
            parts.append(archive.with_name(f"{archive.name}.{len(parts) + 1}"))
            parts[-1].write_bytes(data)
    archive.unlink()
    return parts


if __name__ == "__main__":
    sys.exit(main())
