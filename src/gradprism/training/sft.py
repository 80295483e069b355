"""Supervised fine-tuning on exactly the tokens that the probe's response mask marks."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gradprism.models import check_context_length
from gradprism.passes import failures_named
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.folders import Manifest, OnExisting
from gradprism.runtime.progress import say
from gradprism.runtime.usage import Usage
from gradprism.training.folder import read_log
from gradprism.training.frame import Frame, training_frame
from gradprism.training.head import add_head, places_of, router_weight, score_tokens
from gradprism.training.held_out import summed_loss
from gradprism.training.loop import Loop, cosine
from gradprism.training.processes import decide
from gradprism.training.sft_config import SftConfig
from gradprism.training.sft_data import (
    Given,
    Plan,
    Row,
    fingerprint,
    loss_weights,
    pack,
    share,
    split_held_out,
    tensors,
    token_weights,
)
from gradprism.training.summary import TrainingSummary
from gradprism.trajectories.corpus import Corpus, Sources
from gradprism.trajectories.doctor import older_alfworld, speaks_older_alfworld
from gradprism.trajectories.rendering import RenderedTrajectory, Renderer, check_vocabulary


def train_sft(
    model: Any,
    tokenizer: Any,
    trajectories: Corpus | Sources,
    config: SftConfig = SftConfig(),
    *,
    out: Path | str,
    on_existing: OnExisting = "resume",
    held_out: Corpus | Sources = (),
    context_length: int | None = None,
    device: str = "auto",
) -> TrainingSummary:
    """Fine-tunes `model` in place and writes it with its tokenizer to `out`; a folder, hub id or `ModelSpec` is loaded first.

    `trajectories` are a `Corpus`, or anything that `load_corpus` takes. `held_out` are never trained on; without them
    `config.eval_share` of `trajectories` is taken. Trajectories are cut to `context_length` tokens, by default the model's own limit.
    What of a corpus with `on_bad` of `skip` cannot be rendered is left out, and told in its account.

    The model may lie on the CPU: it is moved to `device` (auto, cpu or cuda), or sharded as accelerate's configuration says. Under
    `torchrun` or `accelerate launch` every process calls this with the same arguments. A training that was killed goes on from its last
    checkpoint, and gives what it would have given; one that has finished is not repeated (`reused`).

    Raises `ConfigError`, `ModelError` or `FolderInUseError` before anything is trained; `ModelError` at the step that diverges.
    """
    given, given_held = Given.of(trajectories), Given.of(held_out)
    split_held_out(given.trajectories, given_held.trajectories, config)  # what cannot be is said before a model is loaded
    with training_frame(model, tokenizer, config, out, device, on_existing) as frame:
        model, renderer = frame.model, Renderer(frame.tokenizer, check_context_length(frame.model, context_length))
        for line in renderer.cautions():
            say(f"warning: {line}")
        rendered, rendered_held = split_held_out(given.rendered(renderer), given_held.rendered(renderer), config)
        unknown = _check_tokens(model, renderer, [*rendered, *rendered_held])
        mean_weight = loss_weights(rendered)
        packs = decide(frame.ranks, lambda: packs_rows(model, config))

        def inputs() -> Manifest:
            data = {"data_sha256": fingerprint(rendered), "held_out_sha256": fingerprint(rendered_held)}
            return {**data, "context_length": renderer.context_length, "packs": packs}

        if finished := frame.claim("sft", inputs):
            return finished
        data = _Data(_rows(rendered, renderer.context_length, packs), [[r] for r in rendered_held], packs, mean_weight)
        if older := older_alfworld(sum(map(speaks_older_alfworld, given.trajectories))):
            frame.warnings.append(older)  # said when it was rendered
        if cut := [r.n_truncated for r in rendered if r.n_truncated]:
            lie = f"{sum(cut):,} tokens of {len(cut)} trajectories lie past the context of {renderer.context_length}"
            frame.warn(f"{lie} and are cut")
        loop = _train(frame, data, Plan(len(data.rows), frame.world, config))
        counts = {"held_out": len(data.held_out), "rows": len(data.rows), "unknown_tokens": unknown}
        counts |= {"cut_trajectories": len(cut), "cut_tokens": sum(cut)}
        seconds = sum(row.get("eval_runtime", 0.0) for row in read_log(frame.out))
        return frame.finish(loop, len(rendered), counts, seconds)


@dataclass(frozen=True, slots=True)
class _Data:
    rows: list[Row]
    held_out: list[Row]
    packs: bool
    mean_weight: float | None  # of the response tokens; None where all weigh alike


def _rows(rendered: Sequence[RenderedTrajectory], context_length: int | None, packs: bool) -> list[Row]:
    if not packs:
        return [[trajectory] for trajectory in rendered]
    lengths = [len(trajectory.input_ids) for trajectory in rendered]
    return [[rendered[index] for index in row] for row in pack(lengths, context_length or max(lengths))]


def _train(frame: Frame, data: _Data, plan: Plan) -> Loop:
    config, step = plan.config, frame.step
    add_head(frame.model)
    # Of a step or two none is left to a warm-up, whose first step has no rate.
    schedule = cosine(plan.steps, min(math.ceil(config.warmup_ratio * plan.steps), plan.steps - 1))
    loop = Loop(frame.model, config, frame.out, schedule, device=frame.device, label="SFT")
    if step:
        loop.restore(step)
    elif data.held_out:
        _evaluate(loop, data, plan)
    with loop.progress as progress:
        progress.begin(plan.steps, step)
        while loop.step < plan.steps:
            loop.log(_step(loop, data, plan))
            last = loop.step == plan.steps
            if data.held_out and (last or (config.eval_steps and loop.step % config.eval_steps == 0)):
                _evaluate(loop, data, plan)
            # None at the last step: the model follows at once.
            if config.save_steps and loop.step % config.save_steps == 0 and not last:
                loop.save()
    return loop


def _step(loop: Loop, data: _Data, plan: Plan) -> dict[str, float]:
    """One optimizer step; its figures. The loss is the mean over the response tokens of all its batches and processes.

    Each counts as often as its trajectory's weight says, over the mean weight of all data.
    """
    loop.begin_step()
    batches = [[data.rows[index] for index in batch] for batch in plan.batches_of(loop.step)]
    total = sum(part.n_targets for batch in batches for row in batch for part in row)
    router = router_weight(loop.unwrapped)
    sums = torch.zeros(3, dtype=torch.float64, device=loop.device)  # loss, entropy, hits
    read = responses = 0
    for number, batch in enumerate(batches, 1):
        mine = share(batch, loop.rank, plan.config.batch_size)
        inputs, chosen = tensors(mine or batch[:1], loop.device, data.packs)
        with loop.forward_pass(last=number == len(batches)):
            with loop.autocast():
                found: Any = score_tokens(loop.model, loop.unwrapped, inputs, places_of(inputs["input_ids"], chosen), router > 0)
            # A process without rows goes through the motions, which are collective, and adds nothing.
            log_probs = found.log_probs
            if data.mean_weight is not None:
                log_probs = log_probs * token_weights(mine or batch[:1], data.mean_weight, loop.device)
            loss = -log_probs.sum() / total * bool(mine)
            loop.backward(loss + router * found.aux_loss / (len(batches) * loop.world) if router else loss)
        if mine:
            read += sum(len(part.input_ids) for row in mine for part in row)
            responses += int(chosen.sum())
            sums += torch.stack([loss.detach().double(), found.entropy.detach().sum().double(), found.is_top1.sum().double()])
    loss, entropy, hits = sums.tolist()
    figures = loop.update(loss, read, responses)
    entropy, hits = loop.summed([entropy, hits])
    return {
        **figures,
        "entropy": entropy / total,
        "mean_token_accuracy": hits / total,
        "epoch": plan.epochs(loop.step),
    }


def _evaluate(loop: Loop, data: _Data, plan: Plan) -> None:
    """Logs the mean loss over all held-out response tokens, each counted once and alike."""
    began, size = time.perf_counter(), plan.config.batch_size
    loop.model.eval()
    rows = sorted(data.held_out, key=lambda row: -len(row[0].input_ids))
    total = torch.zeros((), dtype=torch.float64, device=loop.device)
    for start in range(0, len(rows), size * loop.world):
        batch = rows[start : start + size * loop.world]
        mine = share(batch, loop.rank, size)
        with torch.no_grad(), loop.autocast():
            total += summed_loss(loop.model, loop.unwrapped, mine or batch[:1], loop.device) * bool(mine)
    [loss] = loop.summed([float(total)])
    tokens = sum(row[0].n_targets for row in rows)
    loop.used += Usage(tokens_forward=sum(len(row[0].input_ids) for row in rows))
    loop.log({"eval_loss": loss / tokens, "eval_tokens": tokens, "eval_runtime": time.perf_counter() - began})


def packs_rows(model: Any, config: SftConfig) -> bool:
    """Whether several trajectories share a row; raises `ConfigError` where they must and the model would mix them up."""
    flash = "flash" in model.config._attn_implementation
    if config.packing == "on" and not flash and not keeps_packed_apart(model):
        raise ConfigError(
            f"packing: with {model.config._attn_implementation} attention {type(model).__name__} lets packed trajectories see one "
            "another; use --packing off, or --attention flash_attention_2"
        )
    return config.packing == "on" or (config.packing == "auto" and flash)


def keeps_packed_apart(model: Any) -> bool:
    """Whether the second of two sequences in a row, packed as `tensors` packs them, has the logits that it has alone.

    Asked of the model itself, since it depends on its code: positions that start anew become a mask for sdpa and eager attention in
    most of `transformers`, but not in models that make masks or positions of their own (OPT, Bloom), nor in recurrent ones. What
    the first does to the second in one running text is the measure of what is a difference and what rounding.
    """
    size = min(64, model.get_input_embeddings().weight.shape[0])
    first, second = [[(7 * i + shift) % size for i in range(8)] for shift in (1, 4)]

    def logits(ids: list[int], **more: torch.Tensor) -> torch.Tensor:
        inputs = {"input_ids": torch.tensor([ids]), **more}
        with torch.no_grad(), failures_named(model):
            found = model(**{name: value.to(model.device) for name, value in inputs.items()}, use_cache=False)
        return found.logits[0, -len(second) :].float()

    alone, together = logits(second), logits(first + second)
    packed = logits(first + second, position_ids=torch.arange(8).repeat(2)[None])
    return bool((packed - alone).abs().max() <= 0.05 * (together - alone).abs().max())


def _check_tokens(model: Any, renderer: Renderer, rendered: Sequence[RenderedTrajectory]) -> int:
    """Number of tokens that the tokenizer does not know, which are said; raises `ModelError` for one that the model does not."""
    rows, unknown = model.get_input_embeddings().weight.shape[0], sum(r.n_unknown(renderer.unknown_id) for r in rendered)
    for trajectory in rendered:
        check_vocabulary(trajectory, rows)
    if unknown:
        say(f"{unknown} of {sum(len(r.input_ids) for r in rendered)} tokens are unknown to the tokenizer")
    return unknown
