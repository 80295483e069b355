"""Part `training`: what a step of SFT and of GRPO takes at 0.5B and 8B, beside what `--dry-run` says that it will."""

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import gradprism as gp
from device import shapes
from device.machine import GIB
from device.noise import NoiseEnvironment
from device.results import Case, Part, Report, Row
from device.runner import OutOfTimeError
from device.setting import Setting
from device.shapes import Shape
from gradprism.runtime.files import read_jsonl

STEPS = 4  # of each training; the first pays for what is loaded once and is left out of the median
BOUND = 25.0  # percent by which an estimate may be off
CONTEXT = 2048


@dataclass(frozen=True, slots=True)
class Job:
    """A training: SFT or GRPO (`rl`) of a shape, all weights or LoRA adapters (`rank`), in `dtype`, of activations `recomputed`."""

    shape: Shape
    rl: bool
    dtype: str = "bfloat16"
    rank: int | None = None
    recomputed: bool = True

    @property
    def name(self) -> str:
        """The name of its case."""
        return f"{'grpo' if self.rl else 'sft'}-{self.shape.name.partition(',')[0]}-{'lora' if self.rank else 'full'}"


@dataclass(slots=True)
class Peak:
    """The most memory that a training held until it was to be saved, in GiB; None without a GPU."""

    gib: float | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """Steps that were timed, seconds of a step's update and of its rollouts, tokens that it trained on and that it generated, and device
    memory in GiB; None where it is not known."""

    steps: int
    update: float
    rollout: float
    trained: float
    generated: float | None
    memory: float | None


@dataclass(frozen=True, slots=True)
class Bench:
    """A folder with a shape's configuration and a tokenizer, the data, and the settings: all that a training and its estimate take."""

    job: Job
    folder: Path
    device: str
    steps: int
    small: bool
    tokenizer: Any = field(default=None)

    @property
    def renderer(self) -> gp.Renderer:
        """The renderer of the data."""
        return gp.Renderer(self.tokenizer, CONTEXT)

    @property
    def spec(self) -> gp.ModelSpec:
        """The shape as the estimate reads it: by its configuration, since there are no weights."""
        return gp.ModelSpec(str(self.folder), dtype=self.job.dtype)

    @property
    def environment(self) -> NoiseEnvironment:
        """Episodes of 3 steps, of about 400 tokens."""
        return NoiseEnvironment(words=20 if self.small else 120, action_words=15)

    @property
    def sft(self) -> gp.SftConfig:
        """Settings of SFT: one epoch is `steps` steps."""
        return gp.SftConfig(epochs=1, batch_size=2 if self.small else 8, warmup_ratio=0, save_steps=0, **self._shared())

    @property
    def rl(self) -> gp.RlConfig:
        """Settings of GRPO: `steps` rounds of 16 episodes."""
        return gp.RlConfig(
            rounds=self.steps,
            tasks_per_round=1 if self.small else 4,
            rollouts_per_task=2 if self.small else 4,
            max_steps=3,
            max_action_tokens=16,
            context_length=CONTEXT,
            save_every=self.steps + 1,
            **self._shared(),
        )

    def trajectories(self) -> list[gp.Trajectory]:
        """Copies of the longest demonstration of the shipped corpus: rows of one length, so that an estimate's tokens are exact."""
        demonstrations = gp.load_corpus(gp.shipped("alfworld-quickstart.jsonl"))
        longest = max(list(demonstrations), key=lambda t: sum(len(message.content) for message in t.messages))
        return [replace(longest, id=f"copy-{number}") for number in range(self.steps * self.sft.batch_size)]

    def _shared(self) -> Any:
        return {"bf16": True, "lora_rank": self.job.rank, "activation_checkpointing": self.job.recomputed, "learning_rate": 1e-6}


def training_part(setting: Setting) -> Part:
    """By worth: LoRA at 8B and all weights at 0.5B; all weights at 8B, which take 80 GB and more; LoRA at 0.5B."""
    small, large = (shapes.QWEN2_05B, shapes.QWEN3_8B)
    if setting.smoke:
        small, large = (shapes.tiny(shape, 2048) for shape in (small, large))
    jobs = [
        (Job(small, False, "float32", recomputed=False), 40),
        (Job(large, False, rank=32), 60),
        (Job(small, True, "float32", recomputed=False), 60),
        (Job(large, True, rank=32), 75),
        (Job(large, False), 60),
        (Job(large, True), 75),
        (Job(small, False, rank=16, recomputed=False), 30),
        (Job(small, True, rank=16, recomputed=False), 45),
    ]
    cases = [Case(job.name, "A step and its estimate", partial(_measure, job, setting), seconds) for job, seconds in jobs]
    return Part("training", "Steps of SFT and GRPO", cases)


def _measure(job: Job, setting: Setting) -> Iterator[Report]:
    setting.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=setting.out, prefix=".training-") as name:
        bench = make_bench(job, Path(name), setting)
        expected = estimate(bench)
        if refusal := too_large(expected.memory, setting.machine.memory_gib if setting.device == "cuda" else None):
            yield Report([], refusal)
            return
        model = shapes.build(job.shape, setting.device, getattr(torch, job.dtype))
        try:
            found = (_play_and_train if job.rl else _fine_tune)(bench, model)
        except OutOfTimeError:
            if rows := steps_of(read_jsonl(bench.folder / "out" / "log.jsonl")):
                yield Report([row_of(job, _figures(job, rows, None, None), expected)], done=len(rows))
            raise
    row = row_of(job, found, expected)
    off = [abs(float(value)) for name, value in row.items() if name.endswith("off, %") and value is not None]
    says = f"an estimate is off by {max(off):.0f} %, more than {BOUND:.0f}" if off and max(off) > BOUND else ""
    yield Report([row], "" if setting.smoke else says, done=found.steps)  # the speed of tiny models is not what is estimated


def too_large(needed: float | None, there: float | None) -> str:
    """That a training does not fit, by its estimate in GiB; "" where it does, or nothing is known."""
    if needed is None or there is None or needed <= there:
        return ""
    return f"not tried: by the estimate it takes {needed:.0f} GiB, and the device has {there:.0f}"


def make_bench(job: Job, folder: Path, setting: Setting) -> Bench:
    """Writes the shape's configuration and a shipped tokenizer into `folder`."""
    shapes.make_config(job.shape).save_pretrained(folder)
    tokenizer = gp.load_tokenizer(str(gp.shipped("alfworld-tiny")))
    tokenizer.save_pretrained(folder)
    return Bench(job, folder, setting.device, 2 if setting.smoke else STEPS, setting.smoke, tokenizer)


def estimate(bench: Bench) -> Figures:
    """What `--dry-run` says of a step. The only place that asks it."""
    machine = gp.hardware(None, None if bench.device.startswith("cuda") else 0.05, bench.device)
    if not bench.job.rl:
        told = gp.estimate_sft(bench.spec, bench.renderer, bench.trajectories(), [], bench.sft, machine)
        steps = told["optimizer steps"].value
        return Figures(
            int(steps), told["hours"].value * 3600 / steps, 0.0, told["tokens"].value / steps, 0.0, told["device memory"].value
        )
    env = bench.environment
    told = gp.estimate_rl(bench.spec, bench.renderer, env, env.tasks("train"), bench.rl, machine, workers=1)
    each = {
        name: told[name].value / bench.rl.rounds for name in ("update hours", "rollout hours", "trained tokens", "generated tokens")
    }
    return Figures(
        bench.rl.rounds,
        each["update hours"] * 3600,
        each["rollout hours"] * 3600,
        each["trained tokens"],
        each["generated tokens"],
        told["device memory"].value,
    )


def _fine_tune(bench: Bench, model: Any) -> Figures:
    with without_saving() as peak:
        summary = gp.train_sft(
            model,
            bench.tokenizer,
            bench.trajectories(),
            bench.sft,
            out=bench.folder / "out",
            context_length=CONTEXT,
            device=bench.device,
        )
    return _figures(bench.job, steps_of(summary.history), 0.0, peak.gib)


def _play_and_train(bench: Bench, model: Any) -> Figures:
    env = bench.environment
    with without_saving() as peak:
        summary = gp.train_rl(
            model, bench.tokenizer, env, env.tasks("train"), bench.rl, out=bench.folder / "out", workers=1, device=bench.device
        )
    return _figures(bench.job, steps_of(summary.history), summary.usage.tokens_generated / len(summary.history), peak.gib)


def steps_of(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The log's lines of the steps but the first, which pays for what is loaded once."""
    return [row for row in rows if "loss" in row][1:]


def _figures(job: Job, rows: Sequence[Mapping[str, Any]], generated: float | None, memory: float | None) -> Figures:
    """Medians over steps."""
    names = ("update_seconds", "rollout_seconds", "tokens") if job.rl else ("seconds", "seconds", "tokens")
    update, rollout, tokens = (statistics.median(row[name] for row in rows) for name in names)
    return Figures(len(rows), update, rollout if job.rl else 0.0, tokens, generated, memory)


@contextmanager
def without_saving() -> Iterator[Peak]:
    """Trainings that note their peak of memory where they would save the model, and save none: 16 GB of random weights are no result."""
    from gradprism.training.loop import Loop

    peak, save = Peak(), Loop.save_model

    def note(self: Loop, tokenizer: Any) -> None:
        if self.device.type == "cuda":
            peak.gib = torch.cuda.max_memory_allocated() / GIB

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    Loop.save_model = note
    try:
        yield peak
    finally:
        Loop.save_model = save


def row_of(job: Job, found: Figures, expected: Figures) -> Row:
    """Measured and estimated, and how far the estimate is off. Times are compared per token, since a random model speaks as long as it
    may, and the estimate's episodes do not."""
    row: dict[str, float | int | str | None] = {
        "training": "GRPO" if job.rl else "SFT",
        "model": job.shape.name,
        "trained": f"LoRA {job.rank}" if job.rank else "all weights",
        "weights": job.dtype,
        "times": found.steps,
        "tokens of a step": found.trained,
        "update s": found.update,
        "tokens/s": found.trained / found.update,
        "estimated update s": expected.update * found.trained / expected.trained,
    }
    row["update off, %"] = off(float(row["estimated update s"] or 0), found.update)
    if job.rl:
        row |= {"rollout s": found.rollout, "generated tokens": found.generated}
    if job.rl and found.generated and expected.generated:
        row["estimated rollout s"] = expected.rollout * found.generated / expected.generated
        row["rollout off, %"] = off(float(row["estimated rollout s"] or 0), found.rollout)
    row |= {"peak GiB": found.memory, "estimated GiB": expected.memory}
    row["memory off, %"] = None if found.memory is None or expected.memory is None else off(expected.memory, found.memory)
    return row


def off(estimated: float, measured: float) -> float:
    """How far an estimate is above (+) or below (−) what was measured, in percent of that."""
    return 100 * (estimated / measured - 1)
