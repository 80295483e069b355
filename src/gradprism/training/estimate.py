"""What SFT or RL would take: the answer of `--dry-run`, from the data and the model's configuration.

Every figure says where it comes from. Counts are exact where the data decide them. Hours are arithmetic over an assumed throughput, or
measured with one micro-batch where the model is a small one on this machine; nothing is written.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Environment, Task
from gradprism.models import load_model, resolve_device
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.ranks import Ranks
from gradprism.training.footprint import Footprint, footprint, training_memory
from gradprism.training.rl_config import RlConfig
from gradprism.training.sample_play import play_some
from gradprism.training.sft_config import SftConfig
from gradprism.training.sft_data import Plan, pack, split_held_out
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import Renderer

# Dense bfloat16 TFLOP/s and TB/s of memory, by the maker's data sheets.
DEVICES = {"A100": (312, 2.0), "H100": (989, 3.35), "H200": (989, 4.8), "L40S": (362, 0.86), "A10G": (70, 0.6)}
UTILISATION = 0.4  # of that: what full fine-tuning of 8B models reaches
ASSUMED = "A100"  # where there is no GPU to ask: the paper's
GIB = 2**30
_SMALL = 20_000_000  # parameters that are timed on this machine


class Figure(NamedTuple):
    """A number, its unit, and where it comes from."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True, slots=True)
class Hardware:
    """What trains: `devices` of `tflops` (achieved, each), `bandwidth` TB/s and `gib`; `sharded`: FSDP, not copies."""

    name: str
    devices: int
    sharded: bool
    tflops: float
    bandwidth: float
    gib: float
    source: str
    measures: bool  # a small model is timed here
    is_first: bool  # the process that prints


def hardware(devices: int | None, tflops: float | None, device: str) -> Hardware:
    """The launcher's processes, or `devices` (sharded where more than one), and this machine's GPU or an assumed one."""
    ranks = Ranks.from_environment()
    if devices is not None and ranks is not None and devices != ranks.world:
        raise ConfigError(f"--devices {devices}: the launcher has started {ranks.world} processes; leave it out")
    count = ranks.world if ranks else devices or 1
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" if ranks else count > 1
    on_gpu = resolve_device(device) == "cuda"
    if on_gpu:
        properties = torch.cuda.get_device_properties(0)
        name, gib = properties.name, properties.total_memory / GIB
    else:
        name, gib = ASSUMED, 80.0
    peak, bandwidth = next((value for key, value in DEVICES.items() if key in name), DEVICES[ASSUMED])
    where = name if on_gpu else f"{name}, assumed: no GPU here"
    source = f"{UTILISATION:.0%} of {peak} TFLOP/s in bfloat16 ({where})" if tflops is None else "--device-tflops"
    return Hardware(
        where,
        count,
        sharded,
        tflops or UTILISATION * peak,
        bandwidth,
        gib,
        source,
        not on_gpu and tflops is None,
        not ranks or ranks.is_first,
    )


def estimate_sft(
    name: str,
    dtype: str,
    renderer: Renderer,
    trajectories: Sequence[Trajectory],
    held_out: Sequence[Trajectory],
    config: SftConfig,
    machine: Hardware,
    attention: str | None = None,
) -> dict[str, Figure]:
    """Figures of `train_sft` with the same arguments."""
    learnt, held = split_held_out(trajectories, held_out, config)
    rendered = renderer.render_all(learnt)
    lengths = [len(r.input_ids) for r in rendered]
    packs = config.packing == "on" or (config.packing == "auto" and "flash" in (attention or ""))
    rows = [sum(lengths[i] for i in row) for row in pack(lengths, renderer.context_length or max(lengths))] if packs else lengths
    plan = Plan(len(rows), machine.devices, config)
    steps, an_epoch = plan.steps, plan.steps_per_epoch
    epochs = steps / an_epoch if config.max_steps else config.epochs
    evaluations = (2 + steps // config.eval_steps if config.eval_steps else 2) if held else 0
    held_tokens = sum(len(renderer.render(t).input_ids) for t in held) * evaluations

    model = footprint(name, dtype, config, bf16=config.bf16, sharded=machine.sharded)
    micro_batch = sum(sorted(rows)[-config.batch_size :]) if packs else config.batch_size * max(rows)
    factor = model.train_factor(config.lora_rank is not None, config.activation_checkpointing)
    tokens, squares = epochs * sum(lengths), epochs * sum(n * n for n in lengths)
    flops = factor * model.forward_flops(tokens, squares) + model.forward_flops(held_tokens, 0)
    speed = _speed(name, dtype, model, machine, min(micro_batch, 1024))
    return {
        **_parameters(model, config.lora_rank is not None),
        **_memory(model, config, machine, micro_batch),
        "trajectories": Figure(len(learnt), "", f"the data, less {len(held)} held out"),
        "rows": Figure(len(rows), "", f"packed into rows of {renderer.context_length}" if packs else "one a trajectory"),
        "optimizer steps": Figure(
            steps,
            "",
            "max_steps"
            if config.max_steps
            else f"{config.epochs:g} epochs of {len(rows)} rows / ({config.batch_size} x "
            f"{config.gradient_accumulation} x {machine.devices} devices), rounded up",
        ),
        "tokens": Figure(round(tokens), "", f"{sum(lengths):,} rendered x {epochs:g} epochs"),
        "FLOPs": Figure(flops, "", f"{factor} forward passes of 2·{model.linear:.4g}·T + 2·L·d·ΣT²"),
        "hours": Figure(flops / (machine.devices * speed.value * 1e12) / 3600, "h", "FLOPs / (devices x throughput)"),
        "throughput": speed,
    }


def estimate_rl(
    name: str,
    dtype: str,
    renderer: Renderer,
    environment: Environment,
    tasks: Sequence[Task],
    config: RlConfig,
    machine: Hardware,
    context_length: int,
    *,
    workers: int | None = None,
) -> dict[str, Figure]:
    """Figures of `train_rl` with the same arguments. Tokens are those of a few sampled episodes."""
    if config.tasks_per_round % machine.devices:
        raise ConfigError(f"tasks_per_round {config.tasks_per_round}: must be a multiple of the {machine.devices} devices")
    model = footprint(name, dtype, config, bf16=config.bf16, sharded=machine.sharded)
    with SessionPool(environment, workers) as pool:
        player = load_model(name, dtype, "cpu") if _is_timed(name, model, machine) else None
        sample = play_some(player, renderer, pool, tasks, config, context_length)
    lora, round_ = config.lora_rank is not None, config.tasks_per_round * config.rollouts_per_task
    episodes = config.rounds * round_
    evaluated = (1 + config.rounds // config.evaluate_every) * config.evaluate_tasks if config.evaluate_every else 0
    factor = model.train_factor(lora, config.activation_checkpointing) * config.epochs_per_round
    extra = int(config.steps_per_round > 1 or config.vllm != "off") + int(config.kl > 0)
    update = (factor + extra) * model.forward_flops(sample.trained * episodes, sample.squares * episodes)
    play = model.forward_flops((sample.read + sample.generated) * (episodes + evaluated), 0)
    micro_batch = max(config.micro_batch_tokens, sample.longest)
    speed = _speed(name, dtype, model, machine, min(micro_batch, 1024))
    skipped = "" if config.kl else "; less where a group's rewards are equal, which teaches nothing"
    hours = {
        "update hours": Figure(
            update / (machine.devices * speed.value * 1e12) / 3600, "h", f"FLOPs / (devices x throughput){skipped}"
        )
    }
    if sample.by_model:
        seconds = sample.seconds * (episodes + evaluated) / machine.devices
        hours["rollout hours"] = Figure(seconds / 3600, "h", f"measured: {sample.seconds:.3g} s an episode on this machine")
    else:
        # Every token of an answer reads all weights once, for as many episodes as are answered together (half of those in flight).
        together = max(1.0, min(config.in_flight, round_ / machine.devices) / 2)
        reading = sample.generated * model.parameters * model.compute / (together * machine.bandwidth * 1e12)
        computing = model.forward_flops(sample.read, 0) / (speed.value * 1e12)
        engines = sample.seconds
        seconds = max(reading + computing, engines) * (episodes + evaluated) / machine.devices
        hours["rollout hours"] = Figure(
            seconds / 3600,
            "h",
            f"the larger of {reading + computing:.3g} s an episode to answer ({sample.generated:.0f} tokens, {together:.0f} episodes "
            f"together, {machine.bandwidth} TB/s) and {engines:.3g} s to play, measured here",
        )
    hours["hours"] = Figure(sum(figure.value for figure in hours.values()), "h", "updates and rollouts, one after the other")
    counted = "as sampled" if not config.dynamic_sampling else "as sampled, before dynamic sampling"
    return {
        **_parameters(model, lora),
        **_memory(model, config, machine, micro_batch, context_length),
        "tasks": Figure(len(tasks), "", "the task file, without repeats"),
        "episodes": Figure(
            episodes,
            "",
            f"{config.rounds} rounds x {config.tasks_per_round} tasks x {config.rollouts_per_task} rollouts"
            + (
                f"; up to {config.dynamic_sampling_limit:g} times as many where groups are drawn again"
                if config.dynamic_sampling
                else ""
            ),
        ),
        "evaluation episodes": Figure(
            evaluated, "", f"{config.evaluate_tasks} every {config.evaluate_every} steps, and before them" if evaluated else "none"
        ),
        "optimizer steps": Figure(
            config.rounds * config.steps_per_round,
            "",
            f"{config.rounds} x {config.updates_per_round} updates x {config.epochs_per_round} epochs",
        ),
        "environment steps": Figure(round(sample.steps * episodes), "", f"{sample.steps:.1f} an episode, {sample.source}"),
        "generated tokens": Figure(round(sample.generated * episodes), "", f"{sample.generated:.0f} an episode, {counted}"),
        "trained tokens": Figure(
            round(sample.trained * episodes), "", f"{sample.trained:.0f} an episode in {sample.rows:.1f} rows, {counted}"
        ),
        "FLOPs": Figure(
            update + play, "", f"updates {factor + extra} forward passes of 2·{model.linear:.4g}·T + 2·L·d·ΣT², rollouts 2·P·T"
        ),
        **hours,
        "throughput": speed,
    }


def _parameters(model: Footprint, lora: bool) -> dict[str, Figure]:
    return {
        "parameters": Figure(model.parameters, "", "the configuration, on the meta device"),
        "trained parameters": Figure(model.trained, "", "LoRA adapters" if lora else "all weights"),
    }


def _memory(
    model: Footprint, config: SftConfig | RlConfig, machine: Hardware, micro_batch: int, context_length: int = 0
) -> dict[str, Figure]:
    """GiB of one device, and of the host."""
    lora = config.lora_rank is not None
    reference = isinstance(config, RlConfig) and config.kl > 0 and not lora
    held = training_memory(
        model, devices=machine.devices, sharded=machine.sharded, bf16=config.bf16, lora=lora, reference=reference
    )
    figures = {key: Figure(value / GIB, "GiB", source) for key, (value, source) in held.items()}
    recomputes = config.activation_checkpointing
    saved = model.activations(micro_batch, recomputes) / GIB
    how = "layers' inputs and one layer's all" if recomputes else "all that is saved"
    figures["activations"] = Figure(saved, "GiB", f"a forward pass of {micro_batch} tokens on the meta device: {how}")
    figures["output head"] = Figure(
        model.head(micro_batch, not lora) / GIB, "GiB", "hidden states, gradient of the weight in float32, one tile of logits"
    )
    total = sum(figure.value for figure in figures.values())
    if isinstance(config, RlConfig) and config.vllm == "colocate":
        share = config.vllm_memory * machine.gib
        figures["vLLM"] = Figure(share, "GiB", f"vllm_memory {config.vllm_memory} x {machine.gib:.0f} GiB")
        total += share
    if isinstance(config, RlConfig) and config.vllm == "off":
        slots = min(config.in_flight, config.tasks_per_round * config.rollouts_per_task // machine.devices)
        cache = slots * context_length * model.key_value * model.element / GIB
        how = f"{slots} episodes x {context_length} tokens x {model.key_value} x {model.element} B at most; gone before the updates"
        figures["key/value cache"] = Figure(cache, "GiB", how)
        total = max(total, total - figures["activations"].value - figures["output head"].value + cache)
    how = f"what is held at once, without fragmentation and CUDA's own, of {machine.gib:.0f} GiB ({machine.name})"
    figures["device memory"] = Figure(total, "GiB", how)
    loaded = max(model.element * (1 + reference), 4 if machine.sharded and config.bf16 else 0)
    how = f"{machine.devices} processes each load the model: {model.parameters:,} x {loaded} B; divide by the machines"
    figures["host memory"] = Figure(machine.devices * model.parameters * loaded / GIB, "GiB", how)
    return figures


def _speed(name: str, dtype: str, model: Footprint, machine: Hardware, tokens: int) -> Figure:
    """TFLOP/s of a device in training: assumed, or timed with one micro-batch of a small model."""
    if not _is_timed(name, model, machine):
        return Figure(machine.tflops, "TFLOP/s", machine.source)
    loaded = load_model(name, dtype, "cpu")
    ids = torch.arange(tokens)[None] % model.vocabulary
    for _ in range(2):  # the first pass pays for what it loads
        clock = time.perf_counter()
        loaded(input_ids=ids, labels=ids).loss.backward()
        seconds = time.perf_counter() - clock
    flops = 3 * model.forward_flops(tokens, tokens * tokens)
    return Figure(flops / seconds / 1e12, "TFLOP/s", f"measured: forward and backward of {tokens} tokens on this machine's CPU")  # pyright: ignore[reportPossiblyUnboundVariable]


def _is_timed(name: str, model: Footprint, machine: Hardware) -> bool:
    return machine.measures and Path(name).is_dir() and model.parameters <= _SMALL
