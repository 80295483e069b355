"""Estimates of what a probe, SFT or RL would take: the answer of `--dry-run`. Nothing is written.

Every figure says where it comes from. Counts are exact where the data decide them. Memory is that of the model built on the meta device,
which holds no numbers. Hours are arithmetic over an assumed throughput; a small model on this machine is timed with one micro-batch, and
plays the episodes itself. A probe is timed by a sample of its batches.
"""

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from gradprism.environments.play import Play, play
from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Environment, Task
from gradprism.evaluation.agents import RandomPolicy
from gradprism.models import ModelSpec, resolve_device
from gradprism.probing.fingerprint import describe_model
from gradprism.probing.folder import PROBE, ProbeFolder, local_copy
from gradprism.probing.plan import Batch, padded_tokens, padding_share
from gradprism.probing.prepared import prepare, reopen
from gradprism.probing.work import ProbeOptions, Share, Work, describe, kept_costs, make_renderer
from gradprism.rollouts.episode import Episode, Turn
from gradprism.rollouts.player import Player, next_prompt
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.folders import OnExisting
from gradprism.runtime.memory import peak_gpu_memory_mib, peak_memory_mib, reset_peak_gpu_memory, reset_peak_memory
from gradprism.runtime.ranks import Ranks
from gradprism.training.footprint import Footprint
from gradprism.training.processes import fsdp_version
from gradprism.training.rl_config import RlConfig
from gradprism.training.rows import row_lengths
from gradprism.training.sft_config import SftConfig
from gradprism.training.sft_data import Given, Plan, pack, split_held_out
from gradprism.training.tasks import check_tasks
from gradprism.training.trees import shared_prompt
from gradprism.trajectories.corpus import Corpus, Sources, as_corpus
from gradprism.trajectories.rendering import Renderer

# Dense bfloat16 TFLOP/s and TB/s of memory, by the maker's data sheets.
DEVICES = {"A100": (312, 2.0), "H100": (989, 3.35), "H200": (989, 4.8), "L40S": (362, 0.86), "A10G": (70, 0.6)}
UTILISATION = 0.4  # of that: what full fine-tuning of 8B models reaches
ASSUMED = "A100"  # where there is no GPU to ask: the paper's
GIB = 2**30
SAMPLE_BATCHES, SAMPLE_EPISODES = 20, 16
_SMALL = 20_000_000  # parameters that are timed on this machine
_TILE = (4096, 32768)  # tokens and vocabulary of one tile of the output head (trl.kernels)


class Figure(NamedTuple):
    """A number, its unit, and where it comes from."""

    value: float
    unit: str
    source: str


class Estimate(dict[str, Figure]):
    """Named figures, in the order in which they are shown."""

    def add(self, name: str, value: float, unit: str, source: str) -> float:
        """Adds a figure and returns its value."""
        self[name] = Figure(value, unit, source)
        return value

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Value, unit and source by name."""
        return {name: figure._asdict() for name, figure in self.items()}


@dataclass(frozen=True, slots=True)
class Hardware:
    """Hardware that trains: `devices` of `tflops` (achieved, each), `bandwidth` TB/s and `gib`; `sharded`: FSDP, not copies.

    `source` says where the throughput comes from; where it `measures`, a small model is timed here instead.
    """

    name: str
    devices: int
    sharded: bool
    tflops: float
    bandwidth: float
    gib: float
    source: str
    measures: bool

    def hours(self, flops: float, speed: Figure) -> float:
        """Hours of so many FLOPs on all devices."""
        return flops / (self.devices * speed.value * 1e12) / 3600


def hardware(devices: int | None = None, tflops: float | None = None, device: str = "auto") -> Hardware:
    """The launcher's processes, or `devices` (sharded where more than one), and this machine's GPU or an assumed one.

    Raises `ConfigError` where `devices` are not the launcher's processes.
    """
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
    )


def estimate_probe(
    model: Any,
    tokenizer: Any,
    trajectories: Corpus | Sources,
    options: ProbeOptions | None = None,
    *,
    out: str | Path | None = None,
    on_existing: OnExisting = "resume",
) -> Estimate:
    """Figures of what `probe` would still have to do with the same arguments: renders the whole corpus, probes a sample of batches.

    Raises what `probe` does, except for what only writing or the batches outside the sample can show.
    """
    began, options, corpus = time.perf_counter(), options or ProbeOptions(), as_corpus(trajectories)
    spec = ModelSpec(str(model)) if isinstance(model, str | Path) else model
    with ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="gradprism-"))
        folder, _ = stack.enter_context(local_copy(Path(temporary) / "none" if out is None else out))
        costs = kept_costs(folder, on_existing)
        renderer = make_renderer(spec, tokenizer, options.context_length)
        prober = options.prober(spec.load() if isinstance(spec, ModelSpec) else spec, costs)
        description = describe(describe_model(prober), renderer, corpus)
        opened = reopen(folder, description, on_existing)
        work = Work(*(opened or prepare(Path(temporary) / "probe", description, corpus, renderer)), options)
        manifest, finished = work.probe.manifest, np.empty(0, np.int64)
        if on_existing == "resume" and (found := PROBE.check(folder, on_existing)) is not None:
            PROBE.refuse_differences(folder, found, manifest.to_json())
            finished = ProbeFolder(folder).finished(set_aside=False)
        pending = work.pending(finished, Share())
        prepared = time.perf_counter() - began

        sample, run = sample_batches(pending), work.batch_run(prober)
        reset_peak_memory()
        reset_peak_gpu_memory()
        run.run(sample[-1:], lambda rows: None)  # the first batch of a process pays for what it loads
        run.counts.busy_seconds = 0.0
        run.run(sample, lambda rows: None)
        peak = peak_gpu_memory_mib() or peak_memory_mib()
        # Batches hold about as many tokens each; the last ones may hold fewer.
        share = padded_tokens(work.items, sample) / max(1, padded_tokens(work.items, pending))
        told, by_sample = Estimate(), f"{len(sample)} batches, spread over the plan, probed here"
        told.add("trajectories", manifest.n_trajectories, "", "the corpus")
        told.add("tokens", manifest.totals.tokens, "", "the corpus, rendered")
        told.add("response tokens", manifest.totals.response_tokens, "", "those of the response mask")
        told.add("items", len(work.items), "", "trajectories" + (" and assistant turns" if options.per_turn else ""))
        told.add("pending items", sum(map(len, pending)), "", "less those that the folder holds")
        told.add("pending tokens", int(sum(work.items.length[batch].sum() for batch in pending)), "", "without padding")
        told.add("batches", len(pending), "", f"of {run.batch_tokens} padded tokens at most")
        told.add("padding", padding_share(work.items, pending), "", "share of the tokens of all batches")
        told.add("peak memory", peak, "MiB", by_sample)
        told.add("preparation", prepared, "s", "loading and rendering, measured here")
        seconds = run.counts.busy_seconds / run.workers / share if sample else 0.0
        told.add("probe", seconds, "s", f"{by_sample}, over their share of the tokens")
        return told


def sample_batches(batches: Sequence[Batch], n: int = SAMPLE_BATCHES) -> list[Batch]:
    """At most `n` batches, spread evenly over the plan from its first, which is the largest, to its last."""
    picks = np.unique(np.linspace(0, len(batches) - 1, min(n, len(batches))).round().astype(int))
    return [batches[pick] for pick in picks] if len(batches) else []


def estimate_sft(
    model: ModelSpec,
    renderer: Renderer,
    trajectories: Corpus | Sources,
    held_out: Corpus | Sources,
    config: SftConfig,
    machine: Hardware,
) -> Estimate:
    """Figures of `train_sft` with the same arguments. Raises `ConfigError` as it does, and `ModelError` for a model that has none."""
    trained_on, held = split_held_out(Given.of(trajectories).rendered(renderer), Given.of(held_out).rendered(renderer), config)
    lengths = [len(r.input_ids) for r in trained_on]
    packs = config.packing == "on" or (config.packing == "auto" and "flash" in (model.attention or ""))
    rows = [sum(lengths[i] for i in row) for row in pack(lengths, renderer.context_length or max(lengths))] if packs else lengths
    plan = Plan(len(rows), machine.devices, config)
    epochs = plan.steps / plan.steps_per_epoch if config.max_steps else config.epochs
    evaluations = (2 + plan.steps // config.eval_steps if config.eval_steps else 2) if held else 0
    tokens, squares = epochs * sum(lengths), epochs * sum(n * n for n in lengths)
    held_tokens = sum(len(r.input_ids) for r in held) * evaluations

    told, found = Estimate(), Footprint(model, config, bf16=config.bf16, sharded=machine.sharded)
    micro_batch = sum(sorted(rows)[-config.batch_size :]) if packs else config.batch_size * max(rows)
    add_memory(told, found, config, machine, micro_batch)
    told.add("trajectories", len(trained_on), "", f"the data, less {len(held)} held out")
    told.add("rows", len(rows), "", f"packed into rows of {renderer.context_length}" if packs else "one per trajectory")
    a_step = f"{config.batch_size} x {config.gradient_accumulation} x {machine.devices} devices"
    counted = "max_steps" if config.max_steps else f"{config.epochs:g} epochs of {len(rows)} rows / ({a_step}), rounded up"
    told.add("optimizer steps", plan.steps, "", counted)
    told.add("tokens", round(tokens), "", f"{sum(lengths):,} rendered x {epochs:g} epochs")
    passes = _passes(config)
    flops = passes * found.forward_flops(tokens, squares) + found.forward_flops(held_tokens)
    told.add("FLOPs", flops, "", f"{passes} forward passes of 2·{found.linear:.4g}·T + 2·L·d·ΣT²")
    speed = _speed(model, found, machine, micro_batch)
    told.add("hours", machine.hours(flops, speed), "h", "FLOPs / (devices x throughput)")
    told["throughput"] = speed
    return told


def estimate_rl(
    model: ModelSpec,
    renderer: Renderer,
    environment: Environment,
    tasks: Sequence[Task],
    config: RlConfig,
    machine: Hardware,
    workers: int | None = None,
) -> Estimate:
    """Figures of `train_rl` with the same arguments; tokens are those of a few sampled episodes. `renderer` knows the context length.

    Raises `ConfigError` as `train_rl` does, and `ModelError` for a model that has none.
    """
    check_tasks(tasks)
    if config.tasks_per_round % machine.devices:
        raise ConfigError(f"tasks_per_round {config.tasks_per_round}: must be a multiple of the {machine.devices} devices")
    config = config.model_copy(update={"context_length": renderer.context_length})
    told, found = Estimate(), Footprint(model, config, bf16=config.bf16, sharded=machine.sharded)
    player = model.load("cpu") if _is_timed(model, found, machine) else None
    drawn = [tasks[i * len(tasks) // SAMPLE_EPISODES] for i in range(SAMPLE_EPISODES)]
    with SessionPool(environment, workers) as pool:
        sampled, read, seconds = sample_episodes(player, renderer, pool, drawn, config)
    lengths = row_lengths(sampled)
    rows, whole, squares = (sum(n**power for n in lengths) / SAMPLE_EPISODES for power in (0, 1, 2))
    shared = sum(map(shared_prompt, sampled)) / SAMPLE_EPISODES
    trained = whole - shared * (1 - 1 / config.rollouts_per_task)
    turns = [turn for episode in sampled for turn in episode.turns]
    steps, generated = len(turns) / SAMPLE_EPISODES, sum(len(turn.completion_ids) for turn in turns) / SAMPLE_EPISODES
    micro_batch = max(config.micro_batch("cuda" if player is None else "cpu"), *lengths)
    add_memory(told, found, config, machine, micro_batch)
    speed = _speed(model, found, machine, micro_batch)

    per_round = config.tasks_per_round * config.rollouts_per_task
    episodes, again = config.rounds * per_round, config.dynamic_sampling
    evaluated = config.evaluations * config.evaluate_tasks * (1 + config.evaluate_sampled)
    told.add("tasks", len(tasks), "", "the task file, without repeats")
    counted = f"{config.rounds} rounds x {config.tasks_per_round} tasks x {config.rollouts_per_task} rollouts"
    counted += f"; up to {config.dynamic_sampling_limit:g} times as many where groups are drawn again" if again else ""
    told.add("episodes", episodes, "", counted)
    counted = f"{config.evaluate_tasks} every {config.evaluate_every} rounds, and before them" if evaluated else "none"
    counted += ", and after the last" if evaluated and config.keep_best else ""
    counted += ", greedily and sampled" if config.evaluate_sampled else ""
    told.add("evaluation episodes", evaluated, "", counted)
    counted = f"{config.rounds} rounds x {config.updates_per_round} updates x {config.epochs_per_round} epochs"
    told.add("optimizer steps", config.rounds * config.steps_per_round, "", counted)
    by = "this model" if player is not None else "random admissible actions, which seldom win"
    told.add("environment steps", round(steps * episodes), "", f"{steps:.1f} per episode, {SAMPLE_EPISODES} episodes of {by}")
    by = "as sampled, before dynamic sampling" if again else "as sampled"
    told.add("generated tokens", round(generated * episodes), "", f"{generated:.0f} per episode, {by}")
    told.add(
        "trained tokens",
        round(trained * episodes),
        "",
        f"{whole:.0f} per episode in {rows:.1f} rows, {shared:.0f} of them once per task, {by}",
    )

    passes = _passes(config) * config.epochs_per_round + (config.vllm != "off") + (config.kl > 0)
    update = passes * found.forward_flops(trained * episodes, squares * episodes)
    rollouts = found.forward_flops((read + generated) * (episodes + evaluated))
    counted = f"updates {passes} forward passes of 2·{found.linear:.4g}·T + 2·L·d·ΣT², rollouts 2·P·T"
    told.add("FLOPs", update + rollouts, "", counted)
    skipped = "; less where episodes begin alike" + ("" if config.kl or config.entropy else " or a group has zero variance")
    hours = told.add("update hours", machine.hours(update, speed), "h", f"FLOPs / (devices x throughput){skipped}")
    counted = f"{seconds:.3g} s per episode to play, measured here"
    if player is None:
        # Every token of an answer reads all weights once, for as many episodes as are answered together (half of those in flight).
        together = max(1.0, min(config.in_flight, per_round / machine.devices) / 2)
        answering = generated * found.parameters * found.compute / (together * machine.bandwidth * 1e12)
        answering += found.forward_flops(read) / (speed.value * 1e12)
        counted = f"the larger of {counted}, and {answering:.3g} s to answer ({generated:.0f} tokens, {together:.0f} episodes "
        counted += f"together, {machine.bandwidth} TB/s)"
        seconds = max(answering, seconds)
    hours += told.add("rollout hours", seconds * (episodes + evaluated) / machine.devices / 3600, "h", counted)
    told.add("hours", hours, "h", "updates and rollouts, one after the other")
    told["throughput"] = speed
    return told


def sample_episodes(
    model: Any | None, renderer: Renderer, pool: SessionPool, tasks: Sequence[Task], config: RlConfig
) -> tuple[list[Episode], float, float]:
    """An episode of each task by `model`, or by random admissible actions; means per episode: tokens that were read, seconds."""
    pool.reset([0], [tasks[0].id])  # the first game of a process pays for what it loads
    clock = time.perf_counter()
    if model is None:
        plays = play(pool, tasks, [RandomPolicy(f"{config.seed}/{task.id}") for task in tasks], config.max_steps)
        episodes = [imagined(one, renderer, config) for one in plays]
        read = sum(len(turn.prompt_ids) for episode in episodes for turn in episode.turns)
    else:
        player = Player(model, renderer, pool, config, refuse_long=False)
        episodes = player.play(tasks, config.seed)
        read = player.used.tokens_forward
    return episodes, read / len(tasks), (time.perf_counter() - clock) / len(tasks)


def imagined(one: Play, renderer: Renderer, config: RlConfig) -> Episode:
    """The tokens of an episode had a language model said its actions, until its context is full; thoughts as long as they may be."""
    prompt, most, tokenizer, total = config.prompt, config.max_action_tokens, renderer.tokenizer, 0
    episode, seen = Episode(one.task, grows=prompt.history is None), [step.observation for step in one.steps]
    for number, (action, step) in enumerate(zip(one.actions, one.steps, strict=False)):
        read = next_prompt(renderer, prompt, seen[: number + 1], one.actions[:number], step)
        total = len(read) + (total if episode.grows else 0)
        if config.context_length is not None and total + most > config.context_length:
            break
        words = tokenizer(action, add_special_tokens=False)["input_ids"]
        said = [0] * most if prompt.form == "tags" else [*words, tokenizer.eos_token_id][:most]
        total += len(said)
        episode.turns.append(Turn(step.observation, action, read, said))
    return episode


def _passes(config: SftConfig | RlConfig) -> int:
    """Forward passes' worth of one training pass: 1 forward, 1 for gradients of inputs, 1 of weights, 1 to compute it again."""
    return 3 - (config.lora_rank is not None) + config.activation_checkpointing


def _is_timed(model: ModelSpec, found: Footprint, machine: Hardware) -> bool:
    return machine.measures and Path(model.path).is_dir() and found.parameters <= _SMALL


def _speed(model: ModelSpec, found: Footprint, machine: Hardware, micro_batch: int) -> Figure:
    """TFLOP/s of a device in training: assumed, or timed with one micro-batch of a small model."""
    if not _is_timed(model, found, machine):
        return Figure(machine.tflops, "TFLOP/s", machine.source)
    loaded, tokens, seconds = model.load("cpu"), min(micro_batch, 1024), 0.0
    ids = torch.arange(tokens)[None] % found.vocabulary
    for _ in range(2):  # the first pass pays for what it loads
        clock = time.perf_counter()
        loaded(input_ids=ids, labels=ids).loss.backward()
        seconds = time.perf_counter() - clock
    reached = 3 * found.forward_flops(tokens, tokens * tokens) / seconds / 1e12
    return Figure(reached, "TFLOP/s", f"measured: forward and backward of {tokens} tokens on this machine's CPU")


def add_memory(told: Estimate, model: Footprint, config: SftConfig | RlConfig, machine: Hardware, micro_batch: int) -> None:
    """Adds GiB of one device, and of the host. AdamW has two numbers per weight, and one per tensor."""
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
        slots, length = min(rl.in_flight, rl.tasks_per_round * rl.rollouts_per_task // machine.devices), rl.context_length or 0
        cache = slots * length * model.key_value * model.element
        how = f"{slots} episodes x {length} tokens x {model.key_value} x {model.element} B at most; gone before the updates"
        total = max(total, held + told.add("key/value cache", cache / GIB, "GiB", how))
    how = f"what is held at once, without fragmentation and CUDA's own, of {machine.gib:.0f} GiB ({machine.name})"
    told.add("device memory", total, "GiB", how)
    loaded = weights * shards + reference * model.parameters * model.element
    how = f"{machine.devices} processes each load {model.parameters:,} parameters{', and the reference model' if reference else ''}"
    told.add("host memory", machine.devices * loaded / GIB, "GiB", f"{how}; divide by the machines")
