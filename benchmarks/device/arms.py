"""Part `arms`: Table 1's arms with SmolLM2-135M on WebShop, one seed after another, for as long as time allows."""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gradprism as gp
from device.results import Case, Part, Report, Row
from device.runner import OutOfTimeError
from device.setting import ROOT, Setting
from gradprism.runtime.errors import MissingFileError

_LIBC = ctypes.CDLL(None)
SEEDS = 4
# The base is the pretrained model after a lesson in the form: a few demonstrations on a catalogue of their own, which no arm is
# trained or evaluated on. Without it no episode succeeds, and RL by itself would have nothing to learn from.
LESSON_TASKS, LESSON_CATALOGUE = 64, 1
ARMS = """\
[[arms]]
name = "base"
title = "Base"
sft = "none"
rl = "none"
max_seeds = 1

[[arms]]
name = "sft"
title = "SFT, all"
sft = "all"
rl = "none"

[[arms]]
name = "gini"
title = "PRISM, Gini 50:50"
route = { metric = "gini" }
"""
# The arms that a smoke run leaves out, in the order of their worth.
MORE_ARMS = """
[[arms]]
name = "random"
title = "Random 50:50"
route = { policy = "random" }

[[arms]]
name = "grpo"
title = "GRPO, all"
sft = "none"
rl = "all"

[[arms]]
name = "sft-then-rl"
title = "SFT then RL, all and all"
sft = "all"
rl = "all"

[[arms]]
name = "cv"
title = "PRISM, CV 50:50"
route = { metric = "cv" }

[[arms]]
name = "kurtosis"
title = "PRISM, kurtosis 50:50"
route = { metric = "kurtosis" }

[[arms]]
name = "pass-rate"
title = "Pass rate 50:50"
route = { policy = "pass_rate" }

[[arms]]
name = "gigpo"
title = "GiGPO, all"
sft = "none"
rl = "all"
algorithm = "gigpo"
"""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The size of the experiment: demonstrations, RL's rounds of `tasks` × `rollouts` episodes, and tasks that are evaluated."""

    demonstrations: int = 240
    rounds: int = 12
    tasks: int = 8
    rollouts: int = 8
    evaluated: int = 200


def arms_part(setting: Setting) -> Part:
    """The lesson, then a seed at a time; what a seed has done when its time is up is kept, and the next run goes on from there."""
    seeds = 1 if setting.smoke else SEEDS
    cases = [Case("base", "The base", partial(_lesson, setting), 60)]
    cases += [Case(f"seeds-{n}", f"Table 1, {n} seed{'s' * (n > 1)}", partial(_seeds, n, setting), 60) for n in range(1, seeds + 1)]
    return Part("arms", "SmolLM2-135M on WebShop: Table 1's arms", cases)


def _base(setting: Setting) -> Path:
    return setting.out / "arms" / "base-model"


def _lesson(setting: Setting) -> Report:
    """Makes the base of all arms."""
    source = gp.shipped("webshop-tiny") if setting.smoke else setting.model
    if not (source / "config.json").exists():
        raise MissingFileError(f"{source}: no model there; docs/device.md tells how it is prepared")
    out = _base(setting)
    shutil.rmtree(out, ignore_errors=True)
    environment = gp.make_environment("webshop", seed=LESSON_CATALOGUE)
    shown = gp.collect(environment, environment.tasks("train", 8 if setting.smoke else LESSON_TASKS), max_steps=10, workers=1)
    config = gp.SftConfig(epochs=1, batch_size=8, learning_rate=1e-5 if setting.smoke else 5e-5, bf16=True, save_steps=0)
    summary = gp.train_sft(
        source, None, shown, config, out=out, context_length=2048 if setting.smoke else 4096, device=setting.device
    )
    row: Row = {
        "demonstrations": summary.examples,
        "steps": summary.steps,
        "loss at first": summary.values("loss")[0],
        "loss at last": summary.values("loss")[-1],
        "seconds": summary.usage.wall_seconds,
    }
    return Report([row])


def configuration(base: Path, out: Path, seeds: int, sizes: Sizes, device: str, smoke: bool) -> str:
    """The experiment's configuration in TOML: `configs/webshop-mini.toml` with another base, on a GPU."""
    return f"""\
# Table 1's arms with SmolLM2-135M on WebShop's generated catalogue.
name = "webshop-smollm2"
out = {json.dumps(str(out))}
seeds = {list(range(seeds))}
threads = {1 if device == "cpu" else 4}
reference_arms = {json.dumps(["base"] if smoke else ["random", "sft-then-rl"])}
{"" if smoke else 'full_rl_arm = "grpo"'}

[model]
path = {json.dumps(str(base))}
device = "{device}"
context_length = {2048 if smoke else 4096}

[corpus]
collect = {{ count = {sizes.demonstrations}, max_steps = 7 }}

[environment]
name = "webshop"
workers = 2

[sft]
epochs = 1
learning_rate = 5e-5
batch_size = 8
bf16 = true

[rl]
rounds = {sizes.rounds}
tasks_per_round = {sizes.tasks}
rollouts_per_task = {sizes.rollouts}
learning_rate = 1e-5
temperature = 0.8
reward = "success"
invalid_penalty = 0.01
loss = "grpo"
bf16 = true
max_steps = 7
max_action_tokens = 40
save_every = 2

[pass_rate]
rollouts = 4

[evaluation]
splits = {{ test = {sizes.evaluated} }}
max_steps = 7
max_action_tokens = 40
in_flight = 100

{ARMS}{"" if smoke else MORE_ARMS}"""


def _seeds(seeds: int, setting: Setting) -> Iterator[Report]:
    folder = setting.out / "arms"
    folder.mkdir(parents=True, exist_ok=True)
    config, results = folder / "config.toml", folder / "results"
    sizes = Sizes(8, 1, 2, 2, 4) if setting.smoke else Sizes()
    text = configuration(_base(setting), folder / "run", seeds, sizes, setting.device, setting.smoke)
    config.write_text(text, encoding="utf-8")
    if setting.smoke:  # in this process: the start of others is most of what it would take
        yield _report(gp.run(config))
        return
    try:
        _experiment(config, results, setting.jobs)
    except OutOfTimeError:  # what has been evaluated by now
        if (results / "results.json").is_file():
            yield _report(gp.read_results(results))
        raise
    yield _report(gp.read_results(results))


def _report(results: gp.Results) -> Report:
    return Report(rows_of(results), done=sum(len(arm.runs) for arm in results.arms))


def _experiment(config: Path, results: Path, jobs: int) -> None:
    """Runs the experiment in a process group of its own, which is ended with this process's time; it keeps what it has done."""
    command = [
        sys.executable,
        "-m",
        "gradprism",
        "experiment",
        str(config),
        "--jobs",
        str(jobs),
        "--results",
        str(results),
        # On a fresh machine, to which only the results were carried back, its seeds are kept and others added.
        "--extend" if (results / "results.json").is_file() and not config.with_name("run").is_dir() else "--replace",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=end_with_parent)
    try:
        status = process.wait()
    except BaseException:  # its time is up, or this process is told to end
        end_group(process)
        raise
    if status:
        raise RuntimeError(f"the experiment ended with exit code {status}; its own words are above")


def end_with_parent() -> None:
    """Has the kernel kill this process when its parent is killed, which can end nothing itself any more (Linux)."""
    if prctl := getattr(_LIBC, "prctl", None):
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def end_group(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """Interrupts a process and all that it has started; what does not end by itself in `patience` seconds is killed."""
    os.killpg(process.pid, signal.SIGINT)
    end = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def rows_of(results: gp.Results) -> list[Row]:
    """A row an arm: its seeds, and means over them of success and score on the first split, in percent."""
    rows: list[Row] = []
    for arm in results.arms:
        successes = [_percent([float(outcome) for outcome in _first(run.success)]) for run in arm.runs]
        scores = [_percent(_first(run.score)) for run in arm.runs]
        rows.append(
            {
                "arm": arm.title,
                "seeds": len(arm.runs),
                "success, %": _mean(successes),
                "lowest": min(successes, default=None),
                "highest": max(successes, default=None),
                "score": _mean(scores),
            }
        )
    return rows


def _first(splits: dict[str, str] | dict[str, list[float]]) -> Sequence[float | str]:
    return next(iter(splits.values()), [])


def _percent(values: Sequence[float | str]) -> float:
    return 100 * sum(map(float, values)) / max(1, len(values))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
