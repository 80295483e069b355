"""Disturbs every command in every way that a machine can, and compares what is left at the end with an undisturbed run, byte by byte.

    python scripts/campaign.py --kills 100 --out campaign/         # SIGKILL at random moments, then each disturbance once
    python scripts/campaign.py --only probe,rl --kills 10 --out campaign/

Each command runs in a forked child, so that it starts with everything imported and a kill meets its work and not its imports; a rank's
and Ray's processes start anew. Killed, the same command is given again until it ends; then its results are compared and it begins in a
new folder. Writes `campaign.json` (a row per command) as it goes, prints a table, and ends with code 1 where anything differed.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--env-option", "difficulty=tiny", "--workers", "1"]
MODEL = str(ROOT / "src/gradprism/data/alfworld-tiny")
PLAY = ["--max-steps", "4", "--context-length", "512"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gradprism"]


@dataclass(frozen=True)
class Case:
    """A command by its arguments, and which of its files must be the same at the end, as patterns below `--out`.

    `launcher` starts it in processes of its own. `ignored`: keys of JSON files that tell of time and place.
    """

    arguments: list[str]
    results: tuple[str, ...]
    launcher: tuple[str, ...] = ()
    out: str = "--out"


@dataclass
class Row:
    """What came of a command: kills that met it, runs that were finished and equal, and what was wrong."""

    command: str
    seconds: float = 0.0
    kills: int = 0
    finished: int = 0
    disturbances: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def cases(inputs: Path) -> dict[str, Case]:
    """The commands, on inputs that `prepare` has made."""
    corpus, probe, route = str(inputs / "corpus.jsonl"), str(inputs / "probe"), str(inputs / "route")
    probing = ["probe", "--model", MODEL, "--data", corpus, "--context-length", "512", "--batch-tokens", "600", "--threads", "1"]
    config = str(inputs / "run.json")
    return {
        "probe": Case(probing, ("norms.npy",)),
        "probe, 2 processes": Case(probing, ("norms.npy",), tuple(TORCHRUN)),
        "probe, Ray": Case(
            [*probing, "--executor", "ray", "--workers", "1"], ("norms.npy",), (sys.executable, "-m", "gradprism")
        ),
        "sft": Case(
            ["sft", "--model", MODEL, "--data", corpus, "--context-length", "512", "--max-steps", "6", "--save-steps", "1"],
            ("model.safetensors", "summary.json"),
        ),
        "rl": Case(
            ["rl", "--model", MODEL, "--tasks", f"{route}/rl.jsonl", *TINY, *PLAY, "--rounds", "4", "--tasks-per-round", "2",
             "--rollouts-per-task", "4", "--save-every", "1", "--temperature", "1.5", "--learning-rate", "1e-3"],
            ("model.safetensors", "summary.json"),
        ),
        "evaluate": Case(
            ["evaluate", "--model", MODEL, *TINY, *PLAY, "--split", "unseen", "--count", "12", "--in-flight", "2"],
            ("episodes.jsonl", "summary.json"),
        ),
        "collect": Case(["collect", *TINY, "--count", "12"], ("",)),
        "route": Case(["route", probe], ("routes.parquet", "sft.jsonl", "rl.jsonl", "routing.json", "audit.json")),
        "export": Case(["export", "verl", route], ("*.parquet", "tasks-*.json")),
        "run": Case(["run", config], ("results.json",), out="--set"),
    }  # fmt: skip


def prepare(inputs: Path) -> None:
    """Makes a corpus, a probe, a route and a configuration, each only once."""
    inputs.mkdir(parents=True, exist_ok=True)
    steps = [
        ("corpus.jsonl", ["collect", *TINY, "--count", "24"]),
        ("probe", ["probe", "--model", MODEL, "--data", str(inputs / "corpus.jsonl"), "--context-length", "512", "--threads", "1"]),
        ("route", ["route", str(inputs / "probe")]),
    ]
    for name, arguments in steps:
        if not (inputs / name).exists():
            code, said = wait(start([*arguments, "--out", str(inputs / name)], inputs / "log"), inputs / "log")
            if code:
                raise SystemExit(f"{name}: {said}")
    config = {
        "name": "campaign", "out": "", "seed": 0, "threads": 1, "model": {"path": MODEL, "context_length": 512},
        "environment": {"name": "alfworld", "options": {"difficulty": "tiny"}, "workers": 1},
        "corpus": {"files": [str(inputs / "corpus.jsonl")]}, "sft": {"max_steps": 2},
        "rl": {"rounds": 1, "tasks_per_round": 2, "rollouts_per_task": 2, "max_steps": 3},
        "evaluation": {"splits": {"unseen": 3}, "max_steps": 3},
    }  # fmt: skip
    (inputs / "run.json").write_text(json.dumps(config))


def arguments_for(case: Case, out: Path) -> list[str]:
    """The command line that writes into `out`."""
    return [*case.arguments, case.out, f"out={json.dumps(str(out))}" if case.out == "--set" else str(out)]


# --- children


def start(arguments: Sequence[str], log: Path, launcher: Sequence[str] = (), before: Callable[[], None] | None = None) -> int:
    """Starts the command in a process group of its own, forked or by `launcher`; its output goes to `log`. The child's pid."""
    if launcher:
        with open(log, "wb") as file:
            process = subprocess.Popen([*launcher, *arguments], stdout=file, stderr=file, start_new_session=True, env=environment())
        return process.pid
    if child := os.fork():
        return child
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 1
    try:
        if before is not None:
            before()
        sys.argv = ["gradprism", *arguments]
        from gradprism.cli.main import main

        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def environment() -> dict[str, str]:
    """One thread per process, and this checkout's sources."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), "RAY_DEDUP_LOGS": "0"}


def wait(child: int, log: Path, seconds: float | None = None) -> tuple[int | None, str]:
    """The child's exit code, None where it still runs after `seconds`, and the end of what it said."""
    until = time.monotonic() + (600 if seconds is None else seconds)
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")[-2000:]
        time.sleep(0.01)
    return None, ""


def kill(child: int) -> None:
    """SIGKILL to the child and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


def digest(case: Case, out: Path) -> str:
    """Hash of the results, without seconds and other accounts of the machine; of a probe, of ids and norms in their order."""
    found = hashlib.sha256()
    for pattern in case.results:
        if pattern == "norms.npy":
            import gradprism as gp

            probe = gp.Probe.load(out)
            assert len(set(probe.ids)) == len(probe.ids), "an id twice"
            found.update(json.dumps(list(probe.ids)).encode() + probe.norms.tobytes())
            continue
        paths = sorted(out.glob(pattern)) if pattern else [out]
        assert paths, f"{pattern}: is missing"
        for path in paths:
            found.update(path.name.encode() if pattern else b"")
            content = path.read_bytes()
            found.update(json.dumps(timeless(json.loads(content)), sort_keys=True).encode() if path.suffix == ".json" else content)
    leftover = [path.name for path in out.rglob("*.tmp")] if out.is_dir() else []
    assert not leftover, f"left behind: {leftover}"
    return found.hexdigest()


MACHINE = ("second", "usage", "earlier", "resumed_at", "version", "started", "machine", "peak", "wall", "cpu", "restarts", "source",
           "device", "created", "path", "probe", "out", "key", "stages", "code", "reused", "tokens_per", "cost", "speed")  # fmt: skip


def timeless(value: object) -> object:
    """A JSON value without the keys that tell of time, place and attempts."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not any(word in k for word in MACHINE)}
    return [timeless(v) for v in value] if isinstance(value, list) else value


# --- the campaign


def undisturbed(case: Case, folder: Path, row: Row) -> str:
    """The digest of a run that nothing disturbs, twice, which must agree."""
    digests = []
    for number in range(2):
        out, began = folder / f"whole-{number}" / "out", time.monotonic()
        out.parent.mkdir(parents=True)
        code, said = wait(start(arguments_for(case, out), folder / "log", case.launcher), folder / "log")
        row.seconds = time.monotonic() - began
        if code:
            raise AssertionError(f"undisturbed: exit {code}: {said}")
        digests.append(digest(case, out))
    if digests[0] != digests[1]:
        raise AssertionError("two undisturbed runs differ")
    return digests[0]


def killed(case: Case, folder: Path, row: Row, expected: str, kills: int, rng: random.Random) -> None:
    """Kills the command at random moments until so many kills have met it, and compares each time that it ends."""
    log, number = folder / "log", 0
    while row.kills < kills and not row.wrong:
        out, number, tries = folder / f"killed-{number}" / "out", number + 1, 0
        out.parent.mkdir(parents=True)
        while True:
            child, tries = start(arguments_for(case, out), log, case.launcher), tries + 1
            # Late tries are left alone: a command that keeps nothing of a killed attempt would never end.
            code, said = wait(child, log, rng.uniform(0, 1.1 * row.seconds) if tries <= 8 and row.kills < kills else None)
            if code is None:
                kill(child)
                row.kills += 1
            elif code == 0 or (code == 2 and "is not empty" in said):  # killed between its last rename and its end: it is whole
                break
            else:
                row.wrong.append(f"after {row.kills} kills: exit {code}: {said[-600:]}")
                return
        check(case, out, expected, row, f"after {row.kills} kills")
        row.finished += 1
        shutil.rmtree(out.parent, ignore_errors=True)


def check(case: Case, out: Path, expected: str, row: Row, what: str) -> bool:
    """Notes where the results are not those of the undisturbed run."""
    try:
        found = digest(case, out)
    except Exception as error:
        row.wrong.append(f"{what}: {error}")
        return False
    if found != expected:
        row.wrong.append(f"{what}: other results than undisturbed")
    return found == expected


def disturbed(case: Case, folder: Path, row: Row, expected: str) -> None:
    """Two jobs at once, a clock set back, a full disk, a read-only and a vanished folder."""
    log = folder / "log"

    def again(out: Path, what: str, before: Callable[[], None] | None = None) -> None:
        code, said = wait(start(arguments_for(case, out), log, case.launcher, before), log)
        if code and not (code == 2 and "is not empty" in said):  # a folder that is whole and was not to be written again
            row.wrong.append(f"{what}: given again: exit {code}: {said[-600:]}")
        elif check(case, out, expected, row, what):
            row.disturbances[what] = "equal"

    def refused(what: str, code: int | None, said: str) -> bool:
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        # A launcher adds its own account of ranks that failed, with a trace, and its own exit code.
        good = code != 0 and bool(lines) if case.launcher else code == 2 and len(lines) == 1 and "Traceback" not in said
        if not good:
            row.wrong.append(f"{what}: exit {code}: {said[-600:]}")
            return False
        return True

    out = folder / "two" / "out"
    out.parent.mkdir()
    children = [(start(arguments_for(case, out), path, case.launcher), path) for path in (log, folder / "log-2")]
    for code, said in [wait(child, path) for child, path in children]:
        if code and not refused("two jobs", code, said):
            return
    again(out, "two jobs")

    if not case.launcher:
        out = folder / "clock" / "out"
        out.parent.mkdir()
        child = start(arguments_for(case, out), log)
        if wait(child, log, 0.6 * row.seconds)[0] is None:
            kill(child)
        again(out, "clock set back", clock_back)

    out = folder / "vanished" / "out"
    out.parent.mkdir()
    child = start(arguments_for(case, out), log, case.launcher)
    code, said = wait(child, log, 0.6 * row.seconds)
    if code is None:
        shutil.rmtree(out.parent, ignore_errors=True)
        code, said = wait(child, log)
        if code != 0 and not refused("vanished", code, said):
            return
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    again(out, "vanished")

    for what in ("full disk", "read-only"):
        with small_disk(folder / what.replace(" ", "-"), full=what == "full disk") as disk:
            if disk is None:
                row.disturbances[what] = "not tried: no right to mount"
                continue
            out = disk / "out"
            code, said = wait(start(arguments_for(case, out), log, case.launcher), log)
            if not refused(what, code, said):
                return
            subprocess.run(["mount", "-o", "remount,rw,size=64m", str(disk)], check=True)
            again(out, what)


def clock_back() -> None:
    """Sets this process's clock a day back."""
    real = time.time
    time.time = lambda: real() - 86_400


@contextlib.contextmanager
def small_disk(path: Path, full: bool) -> Iterator[Path | None]:
    """A file system of 16 KiB, or one that is read-only; None where none can be mounted."""
    path.mkdir()
    options = "size=16k" if full else "size=1m,ro"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True).returncode == 0
    try:
        yield path if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=100, help="kills in all, shared among the commands")
    parser.add_argument("--only", help="commands, with commas; a prefix stands for all that begin so")
    parser.add_argument("--no-disturbances", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.chdir(ROOT)
    os.environ.update(environment())
    import torch

    import gradprism.cli.main  # noqa: F401 # with all that children would import
    from gradprism.training import rl, sft  # noqa: F401

    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    folder = given.out.resolve()
    prepare(folder / "inputs")
    wanted = [w.strip() for w in given.only.split(",")] if given.only else [""]
    chosen = {name: case for name, case in cases(folder / "inputs").items() if any(name.startswith(w) for w in wanted)}
    rows = []
    for number, (name, case) in enumerate(chosen.items()):
        row, work = Row(name), folder / f"work-{number}"
        rows.append(row)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            expected = undisturbed(case, work, row)
            share = -(-given.kills // len(chosen))
            killed(case, work, row, expected, share if not case.launcher else min(share, 6), random.Random(given.seed + number))
            if not given.no_disturbances:
                disturbed(case, work, row, expected)
        except AssertionError as error:
            row.wrong.append(str(error))
        shutil.rmtree(work, ignore_errors=True)
        (folder / "campaign.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
        other = "; ".join(f"{what}: {how}" for what, how in row.disturbances.items())
        print(
            f"| {name} | {row.seconds:.1f} | {row.kills} | {row.finished} | {other} | {'; '.join(row.wrong) or 'nothing'} |",
            flush=True,
        )
    print(f"{sum(row.kills for row in rows)} kills, {sum(row.finished for row in rows)} runs finished after them")
    sys.exit(any(row.wrong for row in rows))


if __name__ == "__main__":
    main()
