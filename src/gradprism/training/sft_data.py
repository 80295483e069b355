"""Which trajectories SFT trains on, in which rows, and in which order.

Letters: B rows, T tokens of the longest.
"""

import hashlib
import json
import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from gradprism.runtime.errors import ConfigError
from gradprism.training.sft_config import SftConfig
from gradprism.trajectories.corpus import Account, Corpus, Sources, as_corpus
from gradprism.trajectories.parallel import render_all, skipping
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import RenderedTrajectory, Renderer

Row = list[RenderedTrajectory]  # a trajectory, or several that are packed
_T = TypeVar("_T")
_R = TypeVar("_R", Trajectory, RenderedTrajectory)


@dataclass(frozen=True, slots=True)
class Given:
    """Trajectories that were read, before any is rendered, and the account of those that cannot be, where they are left out."""

    trajectories: Sequence[Trajectory]
    account: Account | None

    @classmethod
    def of(cls, given: Corpus | Sources) -> "Given":
        """Reads a corpus; trajectories in memory are taken as they are."""
        if isinstance(given, list | tuple) and all(isinstance(one, Trajectory) for one in given):
            return cls(given, None)  # pyright: ignore[reportArgumentType]
        return cls(list(corpus := as_corpus(given)), skipping(corpus))

    def rendered(self, renderer: Renderer) -> list[RenderedTrajectory]:
        """Their renderings."""
        return render_all(renderer, self.trajectories, self.account)


def split_held_out(trajectories: Sequence[_R], held_out: Sequence[_R], config: SftConfig) -> tuple[list[_R], list[_R]]:
    """The trajectories that are trained on and those held out, each in its own order; drawn by ids and the seed alone, whatever the order.

    Raises `ConfigError` where nothing would be left to train on, or settings do not go together.
    """
    if not trajectories:
        raise ConfigError("no trajectories to train on: the data is empty, or the route sends nothing to SFT")
    if held_out and config.eval_share:
        raise ConfigError("give either an eval_share or held-out data, not both")
    if config.eval_steps and not (held_out or config.eval_share):
        raise ConfigError("eval_steps: nothing is held out; give eval_share, or held-out data")
    if not config.eval_share:
        return list(trajectories), list(held_out)
    count = max(1, round(config.eval_share * len(trajectories)))
    if count >= len(trajectories):
        raise ConfigError(f"eval_share {config.eval_share}: leaves none of {len(trajectories)} trajectories to train on; lower it")
    draws = [hashlib.sha256(json.dumps([config.seed, t.id]).encode()).digest() for t in trajectories]
    drawn = set(sorted(range(len(trajectories)), key=draws.__getitem__)[:count])
    parts: tuple[list[_R], list[_R]] = ([], [])
    for index, trajectory in enumerate(trajectories):
        parts[index in drawn].append(trajectory)
    return parts


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices in rows of at most `capacity` tokens, by best fit decreasing: the longest first, each into the fullest row that takes it.

    Of rows that are equally full the one that has been so for longest takes it, as with TRL's `pack_dataset`.
    """
    rows: list[list[int]] = []
    left: list[tuple[int, int, int]] = []  # of rows with space: the space, since when, the row; sorted
    for turn, index in enumerate(sorted(range(len(lengths)), key=lambda i: -lengths[i])):
        place = bisect_left(left, (lengths[index],))
        if place == len(left):
            rows.append([])
            left.append((capacity, turn, len(rows) - 1))
        space, _, row = left.pop(place)
        rows[row].append(index)
        if space > lengths[index]:
            insort(left, (space - lengths[index], turn, row))
    return rows


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a training over `rows` rows by `world` processes; a function of the step alone, so that it can begin anywhere."""

    rows: int
    world: int
    config: SftConfig

    @property
    def batches(self) -> int:
        """Batches per epoch, each of `batch_size` rows per process; the last may have fewer."""
        return math.ceil(self.rows / (self.config.batch_size * self.world))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch; the last may sum fewer batches."""
        return math.ceil(self.batches / self.config.gradient_accumulation)

    @property
    def steps(self) -> int:
        """Optimizer steps of the training."""
        return self.config.max_steps or math.ceil(self.config.epochs * self.steps_per_epoch)

    def epochs(self, step: int) -> float:
        """Passes over the rows when `step` steps are done."""
        whole, rest = divmod(step, self.steps_per_epoch)
        return whole + min(1.0, rest * self.config.gradient_accumulation / self.batches)

    def batches_of(self, step: int) -> Iterator[list[int]]:
        """Row indices of each batch of step `step` + 1, over all processes."""
        epoch, within = divmod(step, self.steps_per_epoch)
        shuffled = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.config.seed + epoch)).tolist()
        order = range(self.rows) if epoch == 0 and self.config.order == "given" else shuffled
        size, count = self.config.batch_size * self.world, self.config.gradient_accumulation
        for batch in range(within * count, min((within + 1) * count, self.batches)):
            yield list(order[batch * size : (batch + 1) * size])


def share(batch: Sequence[_T], rank: int, size: int) -> Sequence[_T]:
    """The part of a batch that process `rank` reads, at most `size`; empty where there are not enough for all."""
    return batch[rank * size : (rank + 1) * size]


def tensors(rows: Sequence[Row], device: torch.device, packed: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of the model and, like its `input_ids` [B, T], which tokens are trained on; padded on the right.

    Packed, all make one row [1, T], in which the positions of each trajectory start anew.
    """
    if packed:
        parts = [part for row in rows for part in row]
        ids = torch.cat([torch.as_tensor(part.input_ids) for part in parts])[None]
        positions = torch.cat([torch.arange(len(part.input_ids)) for part in parts])[None]
        chosen = torch.cat([torch.as_tensor(part.response_mask) for part in parts])[None] & (positions > 0)
        return {"input_ids": ids.long().to(device), "position_ids": positions.to(device)}, chosen.to(device)
    width = max(len(row[0].input_ids) for row in rows)
    ids, mask, chosen = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    for number, [part] in enumerate(rows):
        length = len(part.input_ids)
        ids[number, :length] = torch.as_tensor(part.input_ids)
        mask[number, :length] = 1
        chosen[number, 1:length] = torch.as_tensor(part.response_mask[1:])
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}, chosen.bool().to(device)


def loss_weights(rendered: Sequence[RenderedTrajectory]) -> float | None:
    """The mean of the trajectories' weights over all response tokens, by which each is divided in the loss; None where all are equal.

    So the mean over tokens of what weighs them is 1, and a learning rate means what it does without weights. Raises `ConfigError` where
    all weights are 0.
    """
    weights = {r.weight for r in rendered}
    if weights == {0.0}:
        raise ConfigError("all trajectories have the weight 0: there is nothing to train on")
    if len(weights) == 1:
        return None
    return math.fsum(r.weight * r.n_targets for r in rendered) / sum(r.n_targets for r in rendered)


def token_weights(rows: Sequence[Row], mean: float, device: torch.device) -> Tensor:
    """What weighs each token that is trained on [K], in the order of `tensors`: its trajectory's weight over the `mean`."""
    parts = [part for row in rows for part in row]
    counts = torch.tensor([part.n_targets for part in parts])
    return torch.tensor([part.weight / mean for part in parts]).repeat_interleave(counts).to(device)


def fingerprint(rendered: Sequence[RenderedTrajectory]) -> str:
    """Hex SHA-256 of ids, tokens, masks and weights, in their order."""
    digest = hashlib.sha256()
    for r in rendered:
        weight = [] if r.weight == 1 else [r.weight]
        digest.update(json.dumps([r.id, len(r.input_ids), *weight]).encode())
        digest.update(r.input_ids.tobytes() + r.response_mask.tobytes())
    return digest.hexdigest()
