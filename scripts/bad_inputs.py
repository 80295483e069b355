"""Gives every command inputs that cannot be right, and looks that each is answered by one line and exit code 2.

    python scripts/bad_inputs.py                 # all of them, some minutes
    python scripts/bad_inputs.py --sample 60     # so many drawn by --seed

Bad options follow from the commands' own declarations: a text for a number, a number below its bound, a choice that is none, an option
that does not exist, one without its value. Bad files and folders are made here, broken in every way that a download, an editor or another
program breaks them. Prints a count by command and every answer that is wrong; ends with code 1 where there is one.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_origin

ROOT = Path(__file__).resolve().parent.parent
MODEL = str(ROOT / "src/gradprism/data/alfworld-tiny")
GOOD = {"id": "a", "messages": [{"role": "user", "content": "look"}, {"role": "assistant", "content": "go to desk 1"}]}
LINE = json.dumps(GOOD).encode()
# Contents of a corpus that no command can use.
CORPORA = {
    "empty": b"",
    "blank": b"\n \n",
    "binary": bytes(range(256)) * 8,
    "latin-1": '{"id": "a", "messages": [{"role": "user", "content": "caf\xe9"}]}'.encode("latin-1"),
    "cut": LINE[:-20],
    "cut-later": LINE + b"\n" + LINE[:30],
    "a-number": b"7",
    "a-text": b'"messages"',
    "no-messages": b'{"id": "a"}',
    "empty-messages": b'{"id": "a", "messages": []}',
    "messages-null": b'{"id": "a", "messages": null}',
    "no-answer": b'{"id": "a", "messages": [{"role": "user", "content": "x"}]}',
    "role": b'{"id": "a", "messages": [{"role": "alien", "content": "x"}, {"role": "assistant", "content": "y"}]}',
    "role-number": b'{"id": "a", "messages": [{"role": 3, "content": "x"}, {"role": "assistant", "content": "y"}]}',
    "turn-text": b'{"id": "a", "messages": ["x", "y"]}',
    "content-number": b'{"id": "a", "messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "y"}]}',
    "image": b'{"id": "a", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, '
    b'{"role": "assistant", "content": "y"}]}',
    "twice": LINE + b"\n" + LINE,
    "nan": b'{"id": NaN, "messages": []}',
    "surrogate": LINE.replace(b"look", b"\\ud800"),
    "deep": b"[" * 100_000,
    "id-list": LINE.replace(b'"a"', b"[1]"),
    "torn-gzip": gzip.compress(LINE, mtime=0)[:-9],
    "parquet": b"PAR1" + b"\0" * 40 + b"PAR1",
}
DOCUMENTS = {
    "empty": "",
    "cut": '{"a": ',
    "list": "[]",
    "null": "null",
    "keys": '{"x": 1}',
    "nested": '{"config": 3, "command": []}',
}
# Commands that read a folder, and the file by which each knows it.
FOLDERS = {
    "route": (["route", "{folder}", "--out", "{out}"], "manifest.json"),
    "audit": (["audit", "{folder}"], "manifest.json"),
    "export": (["export", "verl", "{folder}", "--out", "{out}"], "routing.json"),
    "report": (["report", "{folder}"], "results.json"),
    "probe": (["probe", "--model", "{folder}", "--data", "{corpus}", "--out", "{out}"], "config.json"),
    "sft": (["sft", "--model", "{folder}", "--data", "{corpus}", "--out", "{out}"], "config.json"),
    "evaluate": (["evaluate", "--model", "{folder}", "--count", "1", "--out", "{out}"], "config.json"),
}
CONFIGS = {
    "empty.toml": "", "cut.toml": "[model", "number.toml": "model = 3", "unknown.toml": "[model]\npath = 'x'\npat = 1",
    "types.toml": "name = 3\n[model]\npath = []", "nested.toml": "[rl]\nrounds = 'many'", "binary.toml": "\x00\x01",
}  # fmt: skip


def options() -> Iterator[list[str]]:
    """Command lines with one option that cannot be right, from what the commands declare."""
    from typer.main import get_command

    from gradprism.cli import commands
    from gradprism.cli.help import new_app

    for name in commands.COMMANDS:
        app = new_app()
        commands.register(app, [name])
        command: Any = get_command(app).commands[name]  # pyright: ignore[reportAttributeAccessIssue] # it is a group
        yield [name, "--no-such-option"]
        for parameter in command.params:
            flag = next((option for option in parameter.opts if option.startswith("--")), "--help")
            if flag == "--help" or parameter.is_flag:
                continue
            yield [name, flag]
            kind = parameter.type_descriptor.annotation
            if kind in (int, float):
                yield from ([name, flag, value] for value in ("x", "", "1.5.2"))
            elif get_origin(kind) is Literal:
                yield [name, flag, "nope"]


def files(folder: Path) -> Iterator[list[str]]:
    """Command lines with a file or folder that cannot be right."""
    good, out = folder / "good.jsonl", folder / "out"
    good.write_bytes(LINE + b"\n")
    probing = ["probe", "--model", MODEL, "--out", str(out), "--data"]
    training = ["sft", "--model", MODEL, "--max-steps", "1", "--out", str(out), "--data"]
    for name, content in CORPORA.items():
        path = folder / ("c-" + name + {"torn-gzip": ".jsonl.gz", "parquet": ".parquet"}.get(name, ".jsonl"))
        path.write_bytes(content)
        yield [*probing, str(path)]
        yield [*training, str(path)]
    for place in (folder / "nowhere.jsonl", folder / "no" / "where.parquet", good / "below"):
        yield [*probing, str(place)]
        yield ["rl", "--model", MODEL, "--out", str(out), "--tasks", str(place)]
    for name, content in DOCUMENTS.items():
        for command, (arguments, known_by) in FOLDERS.items():
            broken = folder / f"f-{command}-{name}"
            broken.mkdir()
            (broken / known_by).write_text(content)
            yield [part.format(folder=broken, out=out, corpus=good) for part in arguments]
    for command, (arguments, _) in FOLDERS.items():
        for place in (folder / "nowhere", good):
            yield [part.format(folder=place, out=folder / f"o-{command}", corpus=good) for part in arguments]
    taken = folder / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("mine")
    for place in (taken, good, good / "below"):
        yield ["probe", "--model", MODEL, "--data", str(good), "--out", str(place)]
        yield ["sft", "--model", MODEL, "--data", str(good), "--max-steps", "1", "--out", str(place)]
        yield ["evaluate", "--agent", "random", "--count", "1", "--workers", "1", "--out", str(place)]
    for name, content in CONFIGS.items():
        path = folder / name
        path.write_text(content)
        yield ["run", str(path), "--set", f"out={json.dumps(str(out))}"]
        if name != "empty.toml":
            yield ["experiment", "run", str(path)]
    for setting in (
        "rl.rounds=0",
        "rl",
        "=3",
        "rl.roundz=3",
        "model.path=./nowhere",
        "evaluation.splits={}",
        "seed=-1",
        "a.b.c.d=1",
    ):
        yield ["run", str(ROOT / "configs/quickstart.toml"), "--dry-run", "--set", setting]
    for env in ("nope", "package.nowhere:Thing", "own_environment", ":", "os:path"):
        yield ["evaluate", "--env", env, "--agent", "random", "--count", "1", "--out", str(out)]
    for option in ("difficulty=huge", "difficulty", "games=none", "=x", "no=1"):
        yield ["collect", "--env-option", option, "--count", "1", "--out", str(folder / "x.jsonl")]


def answer(arguments: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process; code −1 and the traceback for an error that escapes."""
    from gradprism.cli.main import main
    from gradprism.runtime import progress

    out, err = io.StringIO(), io.StringIO()
    before = sys.argv, list(sys.path)
    sys.argv = ["gradprism", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    except BaseException:
        return -1, out.getvalue(), traceback.format_exc()
    finally:
        sys.argv, sys.path[:] = before
        progress.set_quiet(False)
    return code, out.getvalue(), err.getvalue()


def wrong(code: int, err: str) -> str:
    """What is wrong with an answer; empty where nothing is."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    if code != 2:
        return f"exit code {code}"
    if "Traceback" in err or len(lines) != 1:
        return f"{len(lines)} lines of error"
    return "the line does not end the output" if not err.rstrip("\n").endswith(lines[0]) else ""


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="how many to try; default all")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.chdir(ROOT)
    tried: Counter[str] = Counter()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        lines = [*options(), *files(Path(folder))]
        if given.sample is not None:
            lines = random.Random(given.seed).sample(lines, min(given.sample, len(lines)))
        for arguments in lines:
            code, _, err = answer(arguments)
            tried[arguments[0]] += 1
            if why := wrong(code, err):
                failed += 1
                print(f"{why}: gradprism {' '.join(arguments)}\n    {err[-500:]!r}", flush=True)
    print(", ".join(f"{name} {count}" for name, count in tried.items()))
    print(f"{sum(tried.values())} bad inputs, {failed} answered wrongly")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
