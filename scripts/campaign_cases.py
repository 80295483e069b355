"""The commands of the campaign, the inputs that they need, and what of their results must be the same at the end."""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = "{out}"  # stands for the folder, or file, that a command writes
_MODEL = str(ROOT / "src/gradprism/data/alfworld-tiny")
_TINY = ["--env-option", "difficulty=tiny", "--workers", "1"]
_PLAY = ["--max-steps", "4", "--context-length", "512"]
_ONE = (sys.executable, "-m", "gradprism")
_TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gradprism")
# What the command lines of processes have in common that do part of a command's work.
_WORKER, _RANK, _RAY_TASK = "multiprocessing.spawn", "-m gradprism", "ray::"


@dataclass(frozen=True)
class Case:
    """A command by its arguments, and which of its files must be the same at the end, as patterns below `out` (none for a file).

    `launcher` starts it in processes of its own. `part`: what stands in the command line of a process that does part of its work, empty
    where there is none. `slow`: it takes many seconds, so that it gets few of the kills.
    """

    arguments: tuple[str, ...]
    results: tuple[str, ...]
    launcher: tuple[str, ...] = ()
    part: str = ""
    slow: bool = False

    def line(self, out: Path) -> list[str]:
        """The command line that writes `out`."""
        return [argument.replace(OUT, str(out)) for argument in self.arguments]


def cases(inputs: Path) -> dict[str, Case]:
    """The commands, on inputs that `prepare` lists."""
    corpus, probe, route = str(inputs / "corpus.jsonl"), str(inputs / "probe"), str(inputs / "route")
    out = ("--out", OUT)
    probing = (
        "probe",
        "--model",
        _MODEL,
        "--data",
        corpus,
        "--context-length",
        "512",
        "--batch-tokens",
        "600",
        "--threads",
        "1",
        *out,
    )
    training = (
        "sft",
        "--model",
        _MODEL,
        "--data",
        corpus,
        "--context-length",
        "512",
        "--max-steps",
        "6",
        "--save-steps",
        "1",
        *out,
    )
    rounds = (
        "--rounds",
        "4",
        "--tasks-per-round",
        "2",
        "--rollouts-per-task",
        "4",
        "--temperature",
        "1.5",
        "--learning-rate",
        "1e-3",
    )
    playing = ("rl", "--model", _MODEL, "--tasks", f"{route}/rl.jsonl", *_TINY, *_PLAY, *rounds, "--save-every", "1", *out)
    asking = ("evaluate", "--model", _MODEL, *_TINY, *_PLAY, "--split", "unseen", "--count", "12", "--in-flight", "2", *out)
    experiment = ("--jobs", "2", "--set", f'out="{OUT}/stages"', "--results", f"{OUT}/results")
    norms, weights = ("norms.npy",), ("model.safetensors", "summary.json")
    return {
        "probe": Case(probing, norms),
        "probe, 2 processes": Case(probing, norms, _TWO, _RANK, slow=True),
        "probe, Ray": Case((*probing, "--executor", "ray", "--workers", "2"), norms, _ONE, _RAY_TASK, slow=True),
        "sft": Case(training, weights),
        "sft, 2 processes": Case(training, weights, _TWO, _RANK, slow=True),
        "rl": Case(playing, weights, part=_WORKER),
        "evaluate": Case(asking, ("episodes.jsonl", "summary.json"), part=_WORKER),
        "collect": Case(("collect", *_TINY, "--count", "12", *out), (), part=_WORKER),
        "route": Case(("route", probe, *out), ("routes.parquet", "sft.jsonl", "rl.jsonl", "routing.json", "audit.json")),
        "export": Case(("export", "verl", route, *out), ("*.parquet", "tasks-*.json")),
        "run": Case(("run", str(inputs / "run.json"), "--set", f'out="{OUT}"'), ("results.json",), part=_WORKER, slow=True),
        "experiment": Case(
            ("experiment", "run", str(inputs / "experiment.json"), *experiment),
            ("results/results.json",), part=_WORKER, slow=True,
        ),
    }  # fmt: skip


def prepare(inputs: Path) -> list[tuple[Path, list[str]]]:
    """Writes the configurations; gives the files and folders that are to be made, in this order, each with its command line."""
    inputs.mkdir(parents=True, exist_ok=True)
    corpus = str(inputs / "corpus.jsonl")
    config = {
        "name": "campaign", "seed": 0, "threads": 1, "model": {"path": _MODEL, "context_length": 512},
        "environment": {"name": "alfworld", "options": {"difficulty": "tiny"}, "workers": 1},
        "corpus": {"files": [corpus]}, "sft": {"max_steps": 2},
        "rl": {"rounds": 1, "tasks_per_round": 2, "rollouts_per_task": 2, "max_steps": 3},
        "evaluation": {"splits": {"unseen": 3}, "max_steps": 3},
    }  # fmt: skip
    arms = [
        {"name": "base", "sft": "none", "rl": "none"},
        {"name": "sft", "sft": "all", "rl": "none"},
        {"name": "prism", "rl": "none"},
    ]
    (inputs / "run.json").write_text(json.dumps(config))
    (inputs / "experiment.json").write_text(json.dumps({**config, "seeds": [0], "arms": arms}))
    steps = {
        "corpus.jsonl": ["collect", *_TINY, "--count", "24"],
        "probe": ["probe", "--model", _MODEL, "--data", corpus, "--context-length", "512", "--threads", "1"],
        "route": ["route", str(inputs / "probe")],
    }
    return [(inputs / name, [*arguments, "--out", str(inputs / name)]) for name, arguments in steps.items()]


def digest(case: Case, out: Path) -> str:
    """Hash of the results, without seconds and other accounts of the machine; of a probe, of ids and norms in their order."""
    found = hashlib.sha256()
    for pattern in case.results or ("",):
        if pattern == "norms.npy":
            import gradprism as gp

            probe = gp.Probe.load(out)
            assert len(set(probe.ids)) == len(probe.ids), "an id twice"
            found.update(json.dumps(list(probe.ids)).encode() + probe.norms.tobytes())
            continue
        paths = sorted(out.glob(pattern)) if pattern else [out]
        assert paths and all(path.is_file() for path in paths), f"{pattern}: is missing"
        for path in paths:
            found.update(path.name.encode() if pattern else b"")
            content = path.read_bytes()
            found.update(json.dumps(timeless(json.loads(content)), sort_keys=True).encode() if path.suffix == ".json" else content)
    leftover = [path.name for path in out.rglob("*.tmp")] if out.is_dir() else []
    assert not leftover, f"left behind: {leftover}"
    return found.hexdigest()


_MACHINE = ("second", "usage", "earlier", "resumed_at", "version", "started", "machine", "peak", "wall", "cpu", "restarts", "source",
            "device", "created", "path", "probe", "out", "key", "stages", "code", "reused", "tokens_per", "cost", "speed")  # fmt: skip


def timeless(value: object) -> object:
    """A JSON value without the keys that tell of time, place and attempts."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not any(word in k for word in _MACHINE)}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def clock_library() -> str | None:
    """Path of libfaketime (a package of most Linux distributions), which gives a process another clock; None where it is not there."""
    return next((str(path) for path in sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
