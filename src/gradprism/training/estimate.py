"""Estimates of what SFT or RL would take: the answer of `--dry-run`, from the data and the model's configuration. Nothing is written.

Every figure says where it comes from. Counts are exact where the data decide them. Hours are arithmetic over an assumed throughput; a
small model on this machine is timed with one micro-batch, and plays the episodes itself.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Environment, Task
from gradprism.models import ModelSpec, resolve_device
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.ranks import Ranks
from gradprism.training.footprint import Footprint, footprint
from gradprism.training.processes import fsdp_version
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
_TILE = (4096, 32768)  # tokens and vocabulary of one tile of the output head (trl.kernels)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, its unit, and where it comes from."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """Named figures, in the order in which they are shown."""

    figures: dict[str, Figure] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Figure:
        return self.figures[name]

    def add(self, name: str, value: float, unit: str, source: str) -> float:
        """Adds a figure and returns its value."""
        self.figures[name] = Figure(value, unit, source)
        return value

    def to_json(self) -> dict[str, Any]:
        """Value, unit and source by name."""
        return {name: asdict(figure) for name, figure in self.figures.items()}


@dataclass(frozen=True, slots=True)
class Hardware:
    """Hardware that trains: `devices` of `tflops` (achieved, each), `bandwidth` TB/s and `gib`; `sharded`: FSDP, not copies."""

    name: str
    devices: int
    sharded: bool
    tflops: float
    bandwidth: float
    gib: float
    source: str
    measures: bool  # a small model is timed here
    is_first: bool  # the process that prints

    def hours(self, flops: float, speed: Figure) -> float:
        """Hours of so many FLOPs on all devices."""
        return flops / (self.devices * speed.value * 1e12) / 3600


def hardware(devices: int | None, tflops: float | None, device: str) -> Hardware:
    """The launcher's processes, or `devices` (sharded where more than one), and this machine's GPU or an assumed one."""
    ranks = Ranks.from_environment()
    if devices is not None and ranks is not None and devices != ranks.world:
        raise ConfigError(f"--devices {devices}: the launcher has started {ranks.world} processes; leave it out")
    count = ranks.world if ranks else devices or 1
    on_gpu = resolve_device(device) == "cuda"
    properties = torch.cuda.get_device_properties(0) if on_gpu else None
    name = properties.name if properties else ASSUMED
    peak, bandwidth = next((value for key, value in DEVICES.items() if key in name), DEVICES[ASSUMED])
    where = name if on_gpu else f"{name}, assumed: no GPU here"
    return Hardware(
        name=where,
        devices=count,
        sharded=fsdp_version() > 0 if ranks else count > 1,
        tflops=tflops or UTILISATION * peak,
        bandwidth=bandwidth,
        gib=properties.total_memory / GIB if properties else 80.0,
        source="--device-tflops" if tflops else f"{UTILISATION:.0%} of {peak} TFLOP/s in bfloat16 ({where})",
        measures=not on_gpu and tflops is None,
        is_first=not ranks or ranks.is_first,
    )


def estimate_sft(
    model: ModelSpec,
    renderer: Renderer,
    trajectories: Sequence[Trajectory],
    held_out: Sequence[Trajectory],
    config: SftConfig,
    machine: Hardware,
    attention: str | None = None,
) -> Estimate:
    """Figures of `train_sft` with the same arguments."""
    trained_on, held = split_held_out(trajectories, held_out, config)
    lengths = [len(r.input_ids) for r in renderer.render_all(trained_on)]
    packs = config.packing == "on" or (config.packing == "auto" and "flash" in (attention or ""))
    rows = [sum(lengths[i] for i in row) for row in pack(lengths, renderer.context_length or max(lengths))] if packs else lengths
    plan = Plan(len(rows), machine.devices, config)
    epochs = plan.steps / plan.steps_per_epoch if config.max_steps else config.epochs
    evaluations = (2 + plan.steps // config.eval_steps if config.eval_steps else 2) if held else 0
    tokens, squares = epochs * sum(lengths), epochs * sum(n * n for n in lengths)
    held_tokens = sum(len(renderer.render(t).input_ids) for t in held) * evaluations

    told, found = Estimate(), footprint(model.path, model.dtype, config, bf16=config.bf16, sharded=machine.sharded)
    micro_batch = sum(sorted(rows)[-config.batch_size :]) if packs else config.batch_size * max(rows)
    _add_memory(told, found, config, machine, micro_batch)
    told.add("trajectories", len(trained_on), "", f"the data, less {len(held)} held out")
    told.add("rows", len(rows), "", f"packed into rows of {renderer.context_length}" if packs else "one per trajectory")
    counted = f"{config.epochs:g} epochs of {len(rows)} rows / ({config.batch_size} x {config.gradient_accumulation} x "
    counted += f"{machine.devices} devices), rounded up"
    told.add("optimizer steps", plan.steps, "", "max_steps" if config.max_steps else counted)
    told.add("tokens", round(tokens), "", f"{sum(lengths):,} rendered x {epochs:g} epochs")
    passes = _passes(config)
    flops = passes * found.forward_flops(tokens, squares) + found.forward_flops(held_tokens)
    told.add("FLOPs", flops, "", f"{passes} forward passes of 2·{found.linear:.4g}·T + 2·L·d·ΣT²")
    speed = _speed(model, found, machine, micro_batch)
    told.add("hours", machine.hours(flops, speed), "h", "FLOPs / (devices x throughput)")
    told.figures["throughput"] = speed
    return told


def estimate_rl(
    model: ModelSpec,
    renderer: Renderer,
    environment: Environment,
    tasks: Sequence[Task],
    config: RlConfig,
    machine: Hardware,
    context_length: int,
    workers: int | None = None,
) -> Estimate:
    """Figures of `train_rl` with the same arguments. Tokens are those of a few sampled episodes."""
    if config.tasks_per_round % machine.devices:
        raise ConfigError(f"tasks_per_round {config.tasks_per_round}: must be a multiple of the {machine.devices} devices")
    told, found = Estimate(), footprint(model.path, model.dtype, config, bf16=config.bf16, sharded=machine.sharded)
    with SessionPool(environment, workers) as pool:
        player = model.load("cpu") if _is_timed(model, found, machine) else None
        sample = play_some(player, renderer, pool, tasks, config, context_length)
    micro_batch = max(config.micro_batch_tokens, sample.longest)
    _add_memory(told, found, config, machine, micro_batch, context_length)
    speed = _speed(model, found, machine, micro_batch)

    per_round = config.tasks_per_round * config.rollouts_per_task
    episodes, again = config.rounds * per_round, config.dynamic_sampling
    evaluated = (1 + config.rounds // config.evaluate_every) * config.evaluate_tasks if config.evaluate_every else 0
    told.add("tasks", len(tasks), "", "the task file, without repeats")
    counted = f"{config.rounds} rounds x {config.tasks_per_round} tasks x {config.rollouts_per_task} rollouts"
    counted += f"; up to {config.dynamic_sampling_limit:g} times as many where groups are drawn again" if again else ""
    told.add("episodes", episodes, "", counted)
    counted = f"{config.evaluate_tasks} every {config.evaluate_every} rounds, and before them" if evaluated else "none"
    told.add("evaluation episodes", evaluated, "", counted)
    counted = f"{config.rounds} rounds x {config.updates_per_round} updates x {config.epochs_per_round} epochs"
    told.add("optimizer steps", config.rounds * config.steps_per_round, "", counted)
    sampled = "as sampled, before dynamic sampling" if again else "as sampled"
    told.add("environment steps", round(sample.steps * episodes), "", f"{sample.steps:.1f} per episode, {sample.source}")
    told.add("generated tokens", round(sample.generated * episodes), "", f"{sample.generated:.0f} per episode, {sampled}")
    counted = f"{sample.trained:.0f} per episode in {sample.rows:.1f} rows, {sampled}"
    told.add("trained tokens", round(sample.trained * episodes), "", counted)

    passes = _passes(config) * config.epochs_per_round + (config.steps_per_round > 1 or config.vllm != "off") + (config.kl > 0)
    update = passes * found.forward_flops(sample.trained * episodes, sample.squares * episodes)
    play = found.forward_flops((sample.read + sample.generated) * (episodes + evaluated))
    counted = f"updates {passes} forward passes of 2·{found.linear:.4g}·T + 2·L·d·ΣT², rollouts 2·P·T"
    told.add("FLOPs", update + play, "", counted)
    skipped = "" if config.kl else "; less where a group has zero variance"
    hours = told.add("update hours", machine.hours(update, speed), "h", f"FLOPs / (devices x throughput){skipped}")
    # Every token of an answer reads all weights once, for as many episodes as are answered together (half of those in flight).
    together = max(1.0, min(config.in_flight, per_round / machine.devices) / 2)
    reading = sample.generated * found.parameters * found.compute / (together * machine.bandwidth * 1e12)
    answering = 0.0 if sample.by_model else reading + found.forward_flops(sample.read) / (speed.value * 1e12)
    seconds = max(answering, sample.seconds)
    counted = f"{sample.seconds:.3g} s per episode to play, measured here"
    if not sample.by_model:
        counted = (
            f"the larger of {counted}, and {answering:.3g} s to answer ({sample.generated:.0f} tokens, {together:.0f} episodes "
        )
        counted += f"together, {machine.bandwidth} TB/s)"
    hours += told.add("rollout hours", seconds * (episodes + evaluated) / machine.devices / 3600, "h", counted)
    told.add("hours", hours, "h", "updates and rollouts, one after the other")
    told.figures["throughput"] = speed
    return told


def _passes(config: SftConfig | RlConfig) -> int:
    """Forward passes' worth of one training pass: 1 forward, 1 for gradients of inputs, 1 of weights, 1 to compute it again."""
    return 3 - (config.lora_rank is not None) + config.activation_checkpointing


def _add_memory(
    told: Estimate, model: Footprint, config: SftConfig | RlConfig, machine: Hardware, micro_batch: int, context_length: int = 0
) -> None:
    """GiB of one device, and of the host. AdamW has two numbers per weight, and one per tensor."""
    lora, rl = config.lora_rank is not None, config if isinstance(config, RlConfig) else None
    shards = machine.devices if machine.sharded else 1
    over = f" / {shards}" if shards > 1 else ""
    each = 4 if machine.sharded and config.bf16 else model.trained_element  # accelerate keeps sharded weights in float32
    frozen = model.parameters - (0 if lora else model.trained)
    told.add("parameters", model.parameters, "", "the configuration, on the meta device")
    told.add("trained parameters", model.trained, "", "LoRA adapters" if lora else "all weights")
    total = 0.0

    def add(name: str, size: float, source: str) -> None:
        nonlocal total
        total += told.add(name, size / GIB, "GiB", source)

    trained = f"{model.trained:,} x {each}"
    weights = (model.trained * each + frozen * model.element) / shards
    add("weights", weights, f"{trained} + {frozen:,} x {model.element} B{over}")
    add("gradients", model.trained * each / shards, f"{trained} B{over}")
    moments = 2 * model.trained * each / shards + 4 * model.trained_tensors
    add("optimizer", moments, f"2 x {trained} B{over} + 4 B per tensor")
    if machine.sharded:
        gathered = 2 * model.largest_layer + model.outside_layers
        add("gathered weights", gathered * model.compute, f"two layers, embeddings and head, x {model.compute} B")
    elif config.bf16 and model.element > 2:
        add("bfloat16 copies", 2 * model.linear, "autocast keeps one of every matrix, x 2 B")
    reference = rl is not None and rl.kl > 0 and not lora
    if reference:
        add("reference model", model.parameters * model.element / shards, f"{model.parameters:,} x {model.element} B{over}")
    if rl and rl.vllm == "colocate":
        add("vLLM", rl.vllm_memory * machine.gib * GIB, f"vllm_memory {rl.vllm_memory} x {machine.gib:.0f} GiB")
    held, recomputes = total, config.activation_checkpointing
    how = "layers' inputs and one layer's all" if recomputes else "all that is saved"
    saved = model.activations(micro_batch, recomputes)
    add("activations", saved, f"a forward pass of {micro_batch} tokens on the meta device: {how}")
    tile = min(micro_batch, _TILE[0]) * min(model.vocabulary, _TILE[1]) * model.compute
    head = micro_batch * model.width * (model.compute + 4) + (not lora) * model.vocabulary * model.width * 4 + tile
    add("output head", head, "hidden states, gradient of the weight in float32, one tile of logits")
    if rl and rl.vllm == "off":
        slots = min(rl.in_flight, rl.tasks_per_round * rl.rollouts_per_task // machine.devices)
        cache = slots * context_length * model.key_value * model.element
        how = f"{slots} episodes x {context_length} tokens x {model.key_value} x {model.element} B at most; gone before the updates"
        total = max(total, held + told.add("key/value cache", cache / GIB, "GiB", how))
    how = f"what is held at once, without fragmentation and CUDA's own, of {machine.gib:.0f} GiB ({machine.name})"
    told.add("device memory", total, "GiB", how)
    loaded = weights * shards + reference * model.parameters * model.element
    how = f"{machine.devices} processes each load {model.parameters:,} parameters{', and the reference model' if reference else ''}"
    told.add("host memory", machine.devices * loaded / GIB, "GiB", f"{how}; divide by the machines")


def _speed(model: ModelSpec, found: Footprint, machine: Hardware, micro_batch: int) -> Figure:
    """TFLOP/s of a device in training: assumed, or timed with one micro-batch of a small model."""
    if not _is_timed(model, found, machine):
        return Figure(machine.tflops, "TFLOP/s", machine.source)
    loaded, tokens = model.load("cpu"), min(micro_batch, 1024)
    ids = torch.arange(tokens)[None] % found.vocabulary
    clock = seconds = 0.0
    for _ in range(2):  # the first pass pays for what it loads
        clock = time.perf_counter()
        loaded(input_ids=ids, labels=ids).loss.backward()
        seconds = time.perf_counter() - clock
    reached = 3 * found.forward_flops(tokens, tokens * tokens) / seconds / 1e12
    return Figure(reached, "TFLOP/s", f"measured: forward and backward of {tokens} tokens on this machine's CPU")


def _is_timed(model: ModelSpec, found: Footprint, machine: Hardware) -> bool:
    return machine.measures and Path(model.path).is_dir() and found.parameters <= _SMALL
