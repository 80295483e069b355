"""Gives every reader files that are nearly right, thousands of them: each must be read, or refused in one line, in little time and memory.

    python scripts/fuzz.py --seconds 600                    # all readers in turn, by hypothesis
    python scripts/fuzz.py --only catalogue,shard --examples 500
    python scripts/fuzz.py --only corpus --atheris --seconds 300   # guided by coverage (pip install atheris)

Inputs are valid files with some edits: bytes are cut, doubled, overwritten; values of JSON are exchanged for hostile ones. Prints a line
per reader and each new way to fail with the smallest input found; ends with code 1 where there was one.
"""

import argparse
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fuzz_readers import READERS, Reader, make_seeds

ROUND = 200  # inputs of one test of hypothesis, which remembers them all
SECONDS, MEMORY = 5.0, 3 << 30  # for one input: seconds of computing, and bytes of address space above what the process has
WAITING = 12  # so many times as long may it take on a busy machine
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**63, 10**400, 1e308, -0.5, "", "x", "\0", "\ud800", "\x1b[31m", "a\nb", "1e999", "NaN", "{}", "[]"),
    *("[" * 5000, "<|im_end|>", "../../x", "\u202e", [], {}, [[]], [{}], {"": None}, [None], ["x"] * 50, {"a": {"b": {"c": []}}}),
)  # fmt: skip
WORDS = (
    *(b"\0", b"\xff", b"\n", b"{", b"}", b"[", b"]", b'"', b"\\", b"\\ud800", b"NaN", b"-", b"1e999", b"9" * 5000, b",", b":", b"null"),
    *(b"true", b"''", b"=", b"\x1b[2J", b"\xef\xbb\xbf", b"[" * 3000, b"PAR1", b"\x1f\x8b", b"PK\x03\x04", b"\r", b"\x80" * 9),
)  # fmt: skip


class TooLongError(BaseException):
    """An input on which a reader takes too long; no reader's `except Exception` catches it."""


@dataclass
class Findings:
    """What came of a reader's inputs: how many were read and refused, and each way to fail with its smallest input."""

    tried: Counter[str] = field(default_factory=Counter)
    failures: dict[str, bytes] = field(default_factory=dict)

    def add(self, reader: Reader, data: bytes, folder: Path) -> None:
        """Reads one input."""
        answer = read(reader, data, folder)
        kind = answer if answer in ("read", "refused") else "failed"
        self.tried[kind] += 1
        if kind == "failed" and len(data) < len(self.failures.get(answer, data + b"x")):
            if answer not in self.failures:
                print(f"{reader.name}: {answer}", flush=True)
            self.failures[answer] = data


def read(reader: Reader, data: bytes, folder: Path) -> str:
    """`read`, `refused`, or in what way the reader failed."""
    from gradprism.runtime.errors import GradprismError
    from gradprism.runtime.progress import quiet

    def too_long(number: int, frame: Any) -> None:
        raise TooLongError

    reader.place(folder, data)
    for alarm, timer, factor in ((signal.SIGPROF, signal.ITIMER_PROF, 1), (signal.SIGALRM, signal.ITIMER_REAL, WAITING)):
        signal.signal(alarm, too_long)
        signal.setitimer(timer, SECONDS * factor)
    try:
        with quiet():
            reader.read(folder)
    except GradprismError as error:
        return "refused" if str(error).strip() and "\n" not in str(error) else f"not one line of error: {where(error)}"
    except TooLongError as error:
        return f"more than {SECONDS:g} s: {where(error)}"
    except BaseException as error:  # polars' panics are no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {where(error)}"
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
    return "read"


def where(error: BaseException) -> str:
    """The last place in this package, by which ways to fail are told apart."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "gradprism" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].line}" if frames else "outside"


# --- edits


@dataclass(frozen=True)
class Chance:
    """Choices by a `random.Random`, or by hypothesis."""

    integer: Callable[[int, int], int]  # both ends may come

    def of(self, values: Any) -> Any:
        """One of several."""
        return values[self.integer(0, len(values) - 1)]


def edited(seed: bytes, chance: Chance) -> bytes:
    """A valid file with one to three edits, of its JSON values where it has some, else of its bytes."""
    data = seed
    for _ in range(chance.integer(1, 3)):
        data = (_edited_json(data, chance) if chance.integer(0, 2) else None) or _edited_bytes(data, chance)
    return data


def _edited_bytes(data: bytes, chance: Chance) -> bytes:
    at = chance.integer(0, len(data))
    stop = min(len(data), at + chance.integer(0, 8))
    kind = chance.integer(0, 4)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + chance.of(WORDS) + data[at:]
    if kind == 2:
        return data[:at] + chance.of(WORDS) + data[stop:]
    if kind == 3:
        return data[:at] + data[stop:]
    return data[:at] + data[at:] * 2


def _edited_json(data: bytes, chance: Chance) -> bytes | None:
    """One value, or key, of one line (or of the document) exchanged; None where there is no JSON, or the edit cannot be written."""
    if data.startswith(b"PK\x03\x04"):
        return _edited_zip(data, chance)
    lines = data.splitlines() if b"\n" in data and not data.startswith((b"[\n", b"{\n")) else [data]
    number = chance.integer(0, max(0, len(lines) - 1))
    try:
        value = json.loads(lines[number])
        places = list(_places(value))
        parent, key = chance.of(places) if places else ([value], 0)
        kind = chance.integer(0, 3)
        if kind == 0 and isinstance(parent, dict):
            del parent[key]
        elif kind == 1 and isinstance(parent, list):
            parent.insert(key, parent[key])
        else:
            parent[key] = chance.of(HOSTILE)
        lines[number] = json.dumps(value if places else parent[0]).encode()
    except (ValueError, IndexError, RecursionError):
        return None
    return b"\n".join(lines) + (b"\n" if len(lines) > 1 else b"")


def _edited_zip(data: bytes, chance: Chance) -> bytes | None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
    except (OSError, ValueError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile, __import__("zlib").error):
        return None
    if not parts:
        return None
    name = chance.of(sorted(parts))
    parts[name] = _edited_json(parts[name], chance) or _edited_bytes(parts[name], chance)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return made.getvalue()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each value's parent and key."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner)


# --- drivers


def in_child(reader: Reader, seeds: list[bytes], folder: Path, work: Callable[[Path], None]) -> Findings:
    """The findings that `work` writes into a file, in a child: libraries in C may end a process, and atheris does.

    The child has a bound on memory, after every seed has been read there, with all that is imported for it.
    """
    told = folder / "told.json"
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if not told.is_file():
            return Findings(Counter(failed=1), {f"the process died (exit code {code})": (folder / "f" / reader.file).read_bytes()})
        tried, failures = json.loads(told.read_text())
        return Findings(Counter(tried), {how: bytes.fromhex(data) for how, data in failures.items()})
    try:
        for content in seeds:
            reader.place(folder / "f", content)
            reader.read(folder / "f")
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, resource.RLIM_INFINITY))
        work(told)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(1)


def write_findings(findings: Findings, told: Path) -> None:
    """Writes what `in_child` reads."""
    told.write_text(json.dumps([findings.tried, {how: data.hex() for how, data in findings.failures.items()}]))


def by_hypothesis(reader: Reader, seeds: list[bytes], told: Path, examples: int, seconds: float, seed: int) -> None:
    """Hypothesis chooses seeds and edits; it ends after `examples` or `seconds`."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    findings, until = Findings(), time.monotonic() + seconds

    @settings(
        max_examples=min(examples, ROUND),
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
        phases=[Phase.generate],
    )
    @given(st.data())
    def look(drawn: Any) -> None:
        chance = Chance(lambda low, high: drawn.draw(st.integers(low, high)))
        data = edited(chance.of(seeds), chance)  # drawn in any case: hypothesis wants a test that does the same each time
        if time.monotonic() < until:
            findings.add(reader, data, told.parent / "f")

    number = 0
    while sum(findings.tried.values()) < examples and time.monotonic() < until:
        seeded(seed * 1_000_000 + number)(look)()
        number += 1
    write_findings(findings, told)


def by_atheris(reader: Reader, seeds: list[bytes], told: Path, seconds: float, seed: int) -> None:
    """Atheris chooses by what code its inputs reach; edits are half its own, half ours. It ends the process."""
    import atheris  # pyright: ignore[reportMissingModuleSource]

    corpus = told.with_name("atheris")
    corpus.mkdir()
    for number, content in enumerate(seeds):
        (corpus / str(number)).write_bytes(content)
    findings, until = Findings(), time.monotonic() + seconds

    def look(data: bytes) -> None:
        findings.add(reader, data, told.parent / "f")
        if time.monotonic() > until:
            write_findings(findings, told)
            os._exit(0)

    def mutate(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        return atheris.Mutate(data, most) if rng.random() < 0.5 else edited(data or seeds[0], Chance(rng.randint))[:most]

    options = [f"-seed={seed + 1}", "-max_len=65536", "-timeout=600", "-rss_limit_mb=0", "-verbosity=0", str(corpus)]
    atheris.Setup(["fuzz", *options], look, custom_mutator=mutate)
    atheris.Fuzz()


def report(reader: Reader, findings: Findings, seconds: float) -> None:
    """One line about a reader, and each way to fail with its input."""
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(findings.tried.items()))
    print(f"{reader.name}: {sum(findings.tried.values())} inputs in {seconds:.0f} s: {counts}", flush=True)
    for how, data in findings.failures.items():
        print(f"    {how}\n        {data[:400]!r}", flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="readers, with commas; default all")
    parser.add_argument("--seconds", type=float, default=600, help="in all, shared among the readers")
    parser.add_argument("--examples", type=int, default=1_000_000, help="inputs per reader, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument("--list", action="store_true", help="print the readers' names")
    given = parser.parse_args()
    readers = [reader for reader in READERS if given.only is None or reader.name in given.only.split(",")]
    if given.list:
        print("\n".join(reader.name for reader in READERS))
        return
    if given.atheris:
        import atheris  # pyright: ignore[reportMissingModuleSource]

        # All that is imported from here on.
        atheris.instrument_imports(include=["gradprism"]).__enter__()  # pyright: ignore[reportAttributeAccessIssue]
    failed = 0
    with tempfile.TemporaryDirectory() as made:
        os.environ["XDG_CACHE_HOME"] = made
        seeds = make_seeds(Path(made) / "seeds")
        for reader in readers:
            folder, began = Path(made) / reader.name, time.monotonic()
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            reader.prepare(Path(made) / "seeds", folder / "f")
            share, of_reader = given.seconds / len(readers), seeds[reader.name]
            if given.atheris:
                found = in_child(reader, of_reader, folder, partial(by_atheris, reader, of_reader, seconds=share, seed=given.seed))
            else:
                bounds = {"examples": given.examples, "seconds": share, "seed": given.seed}
                found = in_child(reader, of_reader, folder, partial(by_hypothesis, reader, of_reader, **bounds))
            report(reader, found, time.monotonic() - began)
            failed += len(found.failures)
    print(f"{failed} ways to fail")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
