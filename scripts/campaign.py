"""Disturbs every command in every way that a machine can, and compares what is left at the end with an undisturbed run, byte by byte.

    python scripts/campaign.py --kills 120 --out campaign/                    # SIGKILL at random moments, and each disturbance
    python scripts/campaign.py --commands probe,rl --kills 10 --out campaign/ # those whose names begin so; `,` within a name is left out
    python scripts/campaign.py --list

Each command runs in a forked child, so that it starts with everything imported and a kill meets its work and not its imports; ranks, Ray's
processes and those with another clock start anew. Killed, the same command is given again until it ends; then its results are compared
and it begins in a new folder. `campaign.json` has a row per command as soon as it is through; given again, a command that has enough kills
there is not repeated. Prints a table, and ends with code 1 where anything differed.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from campaign_cases import ROOT, Case, cases, clock_library, digest, prepare
from campaign_processes import environment, kill, kill_part, start, wait

SLOW_KILLS = 4  # of a slow command, at most; the others share the rest


@dataclass
class Row:
    """What came of a command: kills that met it, runs that were finished and equal, and what was wrong.

    `seconds`: one undisturbed run. `total_seconds`: all that was done with the command.
    """

    command: str
    seconds: float = 0.0
    total_seconds: float = 0.0
    kills: int = 0
    finished: int = 0
    disturbances: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        """A row of the table."""
        how: dict[str, list[str]] = {}
        for what, came in self.disturbances.items():
            how.setdefault(came, []).append(what)
        other = "; ".join(f"{came}: {', '.join(whats)}" for came, whats in how.items())
        cells = [self.command, f"{self.seconds:.1f}", f"{self.total_seconds:.0f}", str(self.kills), str(self.finished), other]
        return f"| {' | '.join([*cells, '; '.join(self.wrong) or 'nothing'])} |"


HEADINGS = (
    "| command | s undisturbed | s in all | kills | finished and equal | disturbances | wrong |\n|---|--:|--:|--:|--:|---|---|"
)


class Campaign:
    """One command's: `work` is a folder of its own, `row` what came of it."""

    def __init__(self, name: str, case: Case, work: Path, seed: int) -> None:
        self.case, self.work, self.row, self.rng = case, work, Row(name), random.Random(f"{seed} {name}")
        self.log = work / "log"
        self.expected = ""

    def run(self, kills: int, disturbances: bool) -> Row:
        """Undisturbed, killed, disturbed."""
        began = time.monotonic()
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        try:
            self.undisturbed()
            self.killed(kills)
            for disturb in (self.two_jobs, self.clock, self.part, self.vanished, self.disks) if disturbances else ():
                disturb()
        except AssertionError as error:
            self.row.wrong.append(" ".join(str(error).split())[-600:])
        shutil.rmtree(self.work, ignore_errors=True)
        self.row.total_seconds = time.monotonic() - began
        return self.row

    def start(self, out: Path, log: Path | None = None) -> int:
        """Starts the command that writes `out`."""
        return start(self.case.line(out), log or self.log, self.case.launcher)

    def digest(self, out: Path) -> str:
        """The results' hash, taken in a child: a thread that reading starts here would be missing in commands that are forked later."""
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            return pool.submit(digest, self.case, out).result()

    def folder(self, name: str) -> Path:
        """What the command is to write, in a new folder."""
        out = self.work / name / "out"
        out.parent.mkdir()
        return out

    def undisturbed(self) -> None:
        """Two runs that nothing disturbs, which must agree."""
        digests = []
        for number in range(2):
            out, began = self.folder(f"whole-{number}"), time.monotonic()
            code, said = wait(self.start(out), self.log)
            self.row.seconds = time.monotonic() - began
            assert code == 0, f"undisturbed: exit {code}: {said}"
            digests.append(self.digest(out))
        assert digests[0] == digests[1], "two undisturbed runs differ"
        self.expected = digests[0]

    def killed(self, kills: int) -> None:
        """Kills the command at random moments until so many kills have met it, and compares each time that it ends."""
        row, number = self.row, 0
        while row.kills < kills:
            out, number, tries = self.folder(f"killed-{number}"), number + 1, 0
            while True:
                child, tries = self.start(out), tries + 1
                # Late tries are left alone: a command that keeps nothing of a killed attempt would never end.
                seconds = self.rng.uniform(0, 1.1 * row.seconds) if tries <= 8 and row.kills < kills else None
                code, said = wait(child, self.log, seconds)
                if code is None:
                    kill(child)
                    assert seconds is not None, f"after {row.kills} kills: hangs"
                    row.kills += 1
                elif is_whole(code, said):
                    break
                else:
                    raise AssertionError(f"after {row.kills} kills: exit {code}: {said}")
            self.check(out, f"after {row.kills} kills")
            row.finished += 1
            shutil.rmtree(out.parent, ignore_errors=True)

    def check(self, out: Path, what: str) -> None:
        """Raises `AssertionError` where the results are not those of the undisturbed run."""
        try:
            found = self.digest(out)
        except Exception as error:
            raise AssertionError(f"{what}: {error}") from None
        assert found == self.expected, f"{what}: other results than undisturbed"

    def again(self, out: Path, what: str, child: int | None = None) -> None:
        """The command once more (or the `child` that is it), which must end with the same results."""
        code, said = wait(self.start(out) if child is None else child, self.log)
        assert is_whole(code, said), f"{what}: given again: exit {code}: {said}"
        self.check(out, what)
        self.row.disturbances[what] = "equal"

    def refused(self, what: str, code: int | None, said: str) -> None:
        """Raises `AssertionError` unless the command ended with one line of error."""
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        # A launcher adds its own account of ranks that failed, with a trace, and its own exit code.
        good = code != 0 and bool(lines) if self.is_launched else code == 2 and len(lines) == 1 and "Traceback" not in said
        assert good, f"{what}: exit {code}: {said}"

    @property
    def is_launched(self) -> bool:
        """Whether ranks do the work."""
        return "torch.distributed.run" in self.case.launcher

    def two_jobs(self) -> None:
        """The same command twice at once, in one folder."""
        out = self.folder("two")
        children = [(self.start(out, log), log) for log in (self.log, self.work / "log-2")]
        for child, log in children:
            code, said = wait(child, log)
            if code != 0:
                self.refused("two jobs", code, said)
        self.again(out, "two jobs")

    def clock(self) -> None:
        """A command that is killed and then finds the clock a day back."""
        library, out = clock_library(), self.folder("clock")
        child = self.start(out)
        if wait(child, self.log, 0.6 * self.row.seconds)[0] is None:
            kill(child)
        if self.case.launcher:  # for all Python processes that it starts
            (self.work / "sitecustomize.py").write_text("import time\n\nreal = time.time\ntime.time = lambda: real() - 86_400\n")
            launcher, variables = self.case.launcher, {"PYTHONPATH": f"{self.work}{os.pathsep}{ROOT / 'src'}"}
        else:
            launcher, variables = (sys.executable, "-m", "gradprism"), {"LD_PRELOAD": library or "", "FAKETIME": "-1d"}
        late = start(self.case.line(out), self.log, launcher if library or self.case.launcher else (), variables, shim=True)
        self.again(out, "clock set back", late)

    def part(self) -> None:
        """One process of several is killed: the command ends with all results, or in one line and with all results when given again."""
        met, what = 0, "a killed process of several"
        for number in range(12 if self.case.part else 0):
            out = self.folder(f"part-{number}")
            child, until = self.start(out), time.monotonic() + self.rng.uniform(0.1, 1) * self.row.seconds
            while wait(child, self.log, 0.02)[0] is None:
                if time.monotonic() > until and kill_part(child, self.case.part, self.rng):
                    break
            else:
                continue  # it ended first
            code, said = wait(child, self.log)
            met += 1
            if self.is_launched:
                assert code is not None, f"{what}: hangs"  # the other ranks end as the launcher ends them
            elif code != 0:
                self.refused(what, code, said)
            self.again(out, what)
            if met == (1 if self.case.slow else 3):
                break
        if self.case.part:
            assert met, f"{what}: none was met"
            self.row.disturbances[f"{what} ({met} times)"] = self.row.disturbances.pop(what)

    def vanished(self) -> None:
        """The folder is deleted while the command works."""
        out = self.folder("vanished")
        child = self.start(out)
        code, said = wait(child, self.log, 0.6 * self.row.seconds)
        if code is None:
            shutil.rmtree(out.parent, ignore_errors=True)
            code, said = wait(child, self.log)
            if code != 0:
                self.refused("vanished", code, said)
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        self.again(out, "vanished")

    def disks(self) -> None:
        """A disk that is full, and one that cannot be written; then room is made."""
        for what in ("full disk", "read-only"):
            with small_disk(self.work / what.replace(" ", "-"), full=what == "full disk") as disk:
                if disk is None:
                    self.row.disturbances[what] = "not tried: no right to mount"
                    continue
                out = disk / "out"
                code, said = wait(self.start(out), self.log)
                self.refused(what, code, said)
                subprocess.run(["mount", "-o", "remount,rw,size=64m", str(disk)], check=True)
                self.again(out, what)


def is_whole(code: int | None, said: str) -> bool:
    """Whether a command has ended well, or refuses a folder that is whole: it was killed between its last rename and its end."""
    return code == 0 or (code == 2 and "is not empty" in said)


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


def shares(chosen: Mapping[str, Case], kills: int) -> dict[str, int]:
    """How many of the kills each command gets: the same, but slow ones `SLOW_KILLS` at most where others can take the rest."""
    slow = [name for name, case in chosen.items() if case.slow]
    each = -(-kills // len(chosen))
    few = min(each, SLOW_KILLS) if len(slow) < len(chosen) else each
    rest = -(-(kills - few * len(slow)) // max(1, len(chosen) - len(slow)))
    return {name: few if case.slow else rest for name, case in chosen.items()}


def earlier_rows(path: Path) -> dict[str, Row]:
    """Rows of a campaign that was begun in the same folder, by command."""
    return {row["command"]: Row(**row) for row in json.loads(path.read_text())} if path.is_file() else {}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required="--list" not in sys.argv)
    parser.add_argument("--kills", type=int, default=120, help="kills in all, shared among the commands")
    parser.add_argument("--commands", help="the beginnings of names, with commas; default all")
    parser.add_argument("--no-disturbances", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="print the commands' names")
    given = parser.parse_args()
    if given.list:
        print("\n".join(cases(Path())))
        return
    os.chdir(ROOT)
    os.environ.update(environment())
    given.out.mkdir(parents=True, exist_ok=True)
    folder = given.out.resolve()
    report = folder / "campaign.json"
    wanted = [word.strip() for word in given.commands.split(",")] if given.commands else [""]
    chosen = {
        name: case
        for name, case in cases(folder / "inputs").items()
        if any(name.replace(",", "").startswith(word) for word in wanted)
    }
    import torch

    import gradprism.cli.main  # noqa: F401 # with all that children would import
    from gradprism.training import rl, sft  # noqa: F401

    torch.set_num_threads(1)
    for path, arguments in prepare(folder / "inputs"):
        if not path.exists():
            code, said = wait(start(arguments, folder / "inputs" / "log"), folder / "inputs" / "log")
            if code:
                raise SystemExit(f"{path.name}: {said}")
    rows = earlier_rows(report)
    print(HEADINGS, flush=True)
    for name, kills in shares(chosen, given.kills).items():
        done = rows.get(name)
        if done is None or done.wrong or done.kills < kills or not (done.disturbances or given.no_disturbances):
            work = folder / f"work-{name.replace(', ', '-').replace(' ', '-')}"
            rows[name] = Campaign(name, chosen[name], work, given.seed).run(kills, not given.no_disturbances)
            report.write_text(json.dumps([asdict(row) for row in rows.values()], indent=2) + "\n")
        print(rows[name].line(), flush=True)
    made = [rows[name] for name in chosen]
    kills, finished, seconds = (sum(getattr(row, key) for row in made) for key in ("kills", "finished", "total_seconds"))
    print(f"{kills} kills, {finished} runs finished after them and equal, {seconds / 60:.1f} minutes")
    sys.exit(any(row.wrong for row in made))


if __name__ == "__main__":
    main()
