"""Loss and gradient norms of a batch of trajectories, one forward and one input-only backward pass of the frozen model.

A forward hook on each unit keeps its input A; a hook on its output receives the gradient B in the backward pass, takes the norm of
BᵀA at once and drops both. Weights never require a gradient, so none is formed.

Shapes: n trajectories, T positions, R response tokens of a batch, V vocabulary, N units, I input and O output features.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from gradprism.errors import DataError, ModelError
from gradprism.probing.norms import SharedInput
from gradprism.probing.units import Unit, find_units
from gradprism.trajectories.rendering import RenderedTrajectory


def target_positions(trajectory: RenderedTrajectory) -> NDArray[np.intp]:
    """Positions of the tokens that the loss predicts: response tokens that have a token before them."""
    return np.flatnonzero(trajectory.response_mask[1:]) + 1


def read_length(trajectory: RenderedTrajectory) -> int:
    """How many tokens the model reads: those before the last target, since nothing after them reaches the loss."""
    targets = target_positions(trajectory)
    if not targets.size:
        raise DataError(f"trajectory {trajectory.id!r}: empty response mask, so there is no loss to take a gradient of")
    return int(targets[-1])


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """`norms` float64 `[n, N]`; `loss` float64 `[n]`, in nats, the mean over `n_response_tokens` int64 `[n]`."""

    norms: NDArray[np.float64]
    loss: NDArray[np.float64]
    n_response_tokens: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Batch:
    """`input_ids`, `positions` and `attention_mask` are `[n, T]`; entry r of `rows`, `columns` and `targets` says that trajectory
    `rows[r]` is to predict token `targets[r]` at column `columns[r]`."""

    input_ids: Tensor
    positions: Tensor
    attention_mask: Tensor | None
    rows: Tensor
    columns: Tensor
    targets: Tensor


class _Pass:
    """What one forward and backward pass collects; the hooks of a module find the pass of their thread."""

    def __init__(self, batch: _Batch, n_units: int) -> None:
        n, device = len(batch.input_ids), batch.input_ids.device
        self.batch = batch
        self.squared_nN = torch.full((n, n_units), torch.nan, dtype=torch.float64, device=device)
        # Keyed by address: as long as an input is held here, no other tensor of this pass can have the same one.
        self.inputs: dict[int, SharedInput] = {}
        self.seen: set[int] = set()

    def watch(self, index: int, unit: Unit, A_nTI: Tensor, output_nTO: Tensor) -> None:
        """Keeps a unit's input until the gradient of its output has come, then has its norm and drops what no other unit reads."""
        if index in self.seen or A_nTI.shape[:2] != self.batch.input_ids.shape:
            raise ModelError(f"{unit.name}: does not run exactly once on each batch of [trajectories, tokens, features]")
        self.seen.add(index)
        key = A_nTI.data_ptr()
        shared = self.inputs.setdefault(key, SharedInput(A_nTI.detach()))
        shared.add_reader(output_nTO.shape[-1])

        def take_norm(B_nTO: Tensor) -> None:
            self.squared_nN[:, index] = shared.squared_norms(B_nTO.detach())
            shared.readers -= 1
            if not shared.readers:
                del self.inputs[key]

        output_nTO.register_hook(take_norm)


class Prober:
    """Probes trajectories on `model`, a causal language model whose units `find_units` knows.

    Between calls of `probe` the model is as it was: its hooks, `requires_grad` flags and training modes are restored. Several threads
    may call `probe` at once. Sequences are padded on the right unless `padding` says otherwise; the result does not depend on it.
    """

    def __init__(self, model: PreTrainedModel, padding: Literal["right", "left"] = "right") -> None:
        self.model = model
        self.units = find_units(model)
        self.padding = padding
        self.unit_names = [unit.name for unit in self.units]
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._n_running = 0
        self._restore = ExitStack()

    def probe(self, trajectories: Sequence[RenderedTrajectory]) -> ProbeResult:
        """Norms of the gradient of each trajectory's mean cross-entropy with respect to each unit's weight.

        Raises `DataError` for a trajectory without targets and `ModelError` where the model does not run its units as expected.
        Non-finite results are returned, not raised: the caller knows what to save first.
        """
        batch = self._collate(trajectories)
        current = _Pass(batch, len(self.units))
        with self._attached(), torch.enable_grad():
            self._thread.current = current
            logits_RV = self.model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.positions,
                use_cache=False,
            ).logits
            if logits_RV.dtype in (torch.float16, torch.bfloat16):
                logits_RV = logits_RV.float()
            loss_R = nn.functional.cross_entropy(logits_RV, batch.targets, reduction="none")
            count_n = batch.rows.bincount(minlength=len(trajectories))
            # The sum of the trajectories' means: each trajectory's gradient comes out as if it were alone.
            (loss_R / count_n[batch.rows]).sum().backward()
        if len(current.seen) != len(self.units) or current.inputs:
            raise ModelError(f"{type(self.model).__name__}: some of its projections took no part in the loss of this batch")
        # On the host, where sums have one order: an atomic add on a GPU has not.
        rows, count_n = batch.rows.cpu().numpy(), count_n.cpu().numpy()
        loss_n = np.bincount(rows, weights=loss_R.detach().double().cpu().numpy(), minlength=len(trajectories)) / count_n
        return ProbeResult(norms=current.squared_nN.sqrt().cpu().numpy(), loss=loss_n, n_response_tokens=count_n)

    def _collate(self, trajectories: Sequence[RenderedTrajectory]) -> _Batch:
        lengths = [read_length(trajectory) for trajectory in trajectories]
        n, T = len(trajectories), max(lengths)
        input_ids, position_ids, mask = np.zeros((3, n, T), dtype=np.int64)
        rows, columns, targets = [], [], []
        for row, (trajectory, length) in enumerate(zip(trajectories, lengths, strict=True)):
            start = 0 if self.padding == "right" else T - length
            input_ids[row, start : start + length] = trajectory.input_ids[:length]
            position_ids[row, start : start + length] = np.arange(length)
            mask[row, start : start + length] = 1
            positions = target_positions(trajectory)
            rows.append(np.full(len(positions), row))
            columns.append(start + positions - 1)
            targets.append(trajectory.input_ids[positions])
        if self.padding == "right":
            position_ids[:] = np.arange(T)

        def tensor(values: NDArray[Any]) -> Tensor:
            return torch.from_numpy(values.astype(np.int64)).to(self.model.device)

        return _Batch(
            input_ids=tensor(input_ids),
            positions=tensor(position_ids),
            # A causal model's tokens never look right, so padding there needs no mask, and attention keeps its fast causal path.
            attention_mask=tensor(mask) if self.padding == "left" else None,
            rows=tensor(np.concatenate(rows)),
            columns=tensor(np.concatenate(columns)),
            targets=tensor(np.concatenate(targets)),
        )

    @contextmanager
    def _attached(self) -> Iterator[None]:
        """Freezes the model and hooks into it, from the first call that is running to the last."""
        with self._lock:
            if not self._n_running:
                self._restore = self._attach()
            self._n_running += 1
        try:
            yield
        finally:
            # What a failed pass leaves behind would otherwise live as long as its thread.
            self._thread.current = None
            with self._lock:
                self._n_running -= 1
                if not self._n_running:
                    self._restore.close()

    def _attach(self) -> ExitStack:
        """Hooks into and freezes the model; closing the result takes that back."""
        head = self.model.get_output_embeddings()
        if head is None:
            raise ModelError(f"{type(self.model).__name__}: has no output embeddings; the probe needs a causal language model")

        def require_gradient(module: nn.Module, args: Any, output: Tensor) -> None:
            output.requires_grad_(True)

        def keep_targets(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            batch = self._thread.current.batch
            return (args[0][batch.rows, batch.columns], *args[1:])

        def watch(index: int, unit: Unit) -> Callable[..., None]:
            return lambda module, args, output: self._thread.current.watch(index, unit, args[0], output)

        with ExitStack() as stack:
            for module in self.model.modules():
                stack.callback(setattr, module, "training", module.training)
            for parameter in self.model.parameters():
                stack.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(False)
            self.model.eval()
            stack.callback(self.model.get_input_embeddings().register_forward_hook(require_gradient).remove)
            stack.callback(head.register_forward_pre_hook(keep_targets).remove)
            for index, unit in enumerate(self.units):
                stack.callback(unit.module.register_forward_hook(watch(index, unit)).remove)
            return stack.pop_all()
