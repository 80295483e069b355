"""Norms for mixtures of experts, whose matrices transformers stacks: `gate_up_proj` `[E, 2I, H]` and `down_proj` `[E, H, I]`.

While it is measured, a module of experts runs the function below instead of its own implementation (eager, grouped or batched
products: they differ in speed, not in what they compute). It sorts tokens by expert, so that each expert's tokens stand together and
in them each trajectory's. A trajectory's gradient of one expert's matrix is then BᵀA over a run of rows, and the squared norm for the
stacked parameter is the sum over experts.

Shapes: N tokens that the module sees, k experts chosen for each, S = N·k rows sorted by expert, E experts, H hidden and I intermediate
features, n trajectories, g runs of rows of one expert and trajectory, t rows of the longest run of a bucket.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradprism.probing.collect import Pass, replaced
from gradprism.probing.norms import SharedInput, squared_norms
from gradprism.probing.plan import plan_batches
from gradprism.probing.units import ExpertsTap, reads_all_tokens
from gradprism.probing.weights import gate_and_up

# Runs are padded to the longest of their bucket, which takes in all of at least this share of its length.
BUCKET = 0.7


def measured(tap: ExpertsTap, get_pass: Callable[[], Pass]) -> AbstractContextManager[None]:
    """A context in which the tap's module reports to `get_pass()`, the pass of the calling thread."""
    # Hooks of accelerate, which bring in weights from elsewhere, have put the module's own function aside and call it there.
    name = "_old_forward" if "_old_forward" in vars(tap.module) else "forward"

    if reads_all_tokens(tap.module):
        return replaced(tap.module, name, lambda hidden_states: _forward_all(tap, get_pass(), hidden_states))

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return _forward(tap, get_pass(), hidden_states, top_k_index, top_k_weights)

    return replaced(tap.module, name, forward)


def _forward(tap: ExpertsTap, current: Pass, hidden_NH: Tensor, chosen_Nk: Tensor, weights_Nk: Tensor) -> Tensor:
    """Computes what the module's own forward does, with the norms of its products announced to `current`."""
    module: Any = tap.module
    gate_up_weight, down_weight = module.gate_up_proj, module.down_proj
    transposed, has_bias = getattr(module, "is_transposed", False), getattr(module, "has_bias", False)
    (N, k), (E, *_) = chosen_Nk.shape, down_weight.shape
    rows = _Rows.sorted(chosen_Nk, current.sample_of(N).to(chosen_Nk.device), E, len(current.batch.input_ids))
    gate_up_slot, down_slot = tap.slots

    def take_gate_up(shared: SharedInput, B_S2I: Tensor) -> None:
        gate, up = gate_and_up(module, B_S2I)
        A_SH = shared.input().to(B_S2I.device).index_select(0, rows.order // k)
        rows.add_norms(current, A_SH, [(tap.gate, gate), (tap.up, up)])

    def take_down(shared: SharedInput, B_SH: Tensor) -> None:
        rows.add_norms(current, shared.input().to(B_SH.device), [(tap.down, B_SH)])

    I = gate_up_weight.shape[2 if transposed else 1] // 2  # noqa: E741
    current.input(gate_up_slot, hidden_NH, [I, I], take_gate_up)
    sorted_SH = _Reorder.apply(hidden_NH.repeat_interleave(k, dim=0), rows.order, rows.inverse)
    gate_up = _products(sorted_SH, gate_up_weight, rows.per_expert, transposed)
    current.output(gate_up_slot, gate_up)
    if has_bias:
        gate_up = gate_up + module.gate_up_proj_bias[rows.expert]
    activated = module._apply_gate(gate_up)
    current.input(down_slot, activated, [hidden_NH.shape[1]], take_down)
    down = _products(activated, down_weight, rows.per_expert, transposed)
    current.output(down_slot, down)
    if has_bias:
        down = down + module.down_proj_bias[rows.expert]
    weighted_SH = _Reorder.apply(down, rows.inverse, rows.order) * weights_Nk.reshape(-1, 1)
    return weighted_SH.view(N, k, -1).sum(dim=1).to(hidden_NH.dtype)


def _forward_all(tap: ExpertsTap, current: Pass, hidden_RH: Tensor) -> Tensor:
    """What experts compute that are given all tokens, one expert's after the other's, R = E·N rows; those not chosen are zero.

    Rows of zero have no part in a gradient, so that no choice has to be known.
    """
    module: Any = tap.module
    gate_up_weight, down_weight = module.gate_up_proj, module.down_proj
    E, I, H = down_weight.shape  # noqa: E741
    gate_up_slot, down_slot = tap.slots

    def take(shared: SharedInput, parts: Sequence[tuple[tuple[int, ...], Tensor]]) -> None:
        A = shared.input().to(parts[0][1].device).reshape(E, -1, shared.input().shape[-1])
        found = [current.scores.matrices(units, E) for units, _ in parts]
        for e in range(E):
            A_nTI = current.batch.by_sample(A[e])
            Bs = [current.batch.by_sample(B.reshape(E, -1, B.shape[-1])[e]) for _, B in parts]
            runs = e * len(A_nTI) + torch.arange(len(A_nTI), device=A_nTI.device)
            for (units, _), one, B, squared_n in zip(parts, found, Bs, squared_norms(A_nTI, Bs, current.costs), strict=True):
                current.add_squared(units[0] if len(units) == 1 else units[e], squared_n)
                one.add(A_nTI, B, runs)
        for one in found:
            one.finish()

    def take_gate_up(shared: SharedInput, B: Tensor) -> None:
        take(shared, [(tap.gate, B[..., :I].contiguous()), (tap.up, B[..., I:].contiguous())])

    current.input(gate_up_slot, hidden_RH, [I, I], take_gate_up)
    gate_up = torch.bmm(hidden_RH.view(E, -1, H), gate_up_weight)
    current.output(gate_up_slot, gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    activated = up * module.act_fn(gate)
    current.input(down_slot, activated, [H], lambda shared, B: take(shared, [(tap.down, B)]))
    down = torch.bmm(activated, down_weight)
    current.output(down_slot, down)
    return down.view(-1, H)


def _products(X_SF: Tensor, weight: Tensor, per_expert: Sequence[int], transposed: bool) -> Tensor:
    """Each row times its expert's matrix, `[S, ·]`; the weights are frozen, so the backward pass makes no gradient of them."""
    parts = X_SF.split([count for count in per_expert if count])
    matrices = [weight[e] if transposed else weight[e].mT for e, count in enumerate(per_expert) if count]
    return torch.cat([part @ matrix for part, matrix in zip(parts, matrices, strict=True)])


class _Reorder(torch.autograd.Function):
    """Rows in another order. Indexing would add gradients up one by one, in an order that a GPU does not keep; here they only move."""

    @staticmethod
    def forward(ctx: Any, X_SF: Tensor, order: Tensor, inverse: Tensor) -> Tensor:  # type: ignore[override]
        ctx.inverse = inverse
        return X_SF.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, B_SF: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return B_SF.index_select(0, ctx.inverse), None, None


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """The S pairs of a token and a chosen expert, sorted by expert, then trajectory, then token.

    `order` and `inverse` int64 `[S]` lead from the pairs as they come, token by token, to sorted ones and back; `expert` `[S]` is
    sorted; `per_expert` counts rows. `runs` `[G]` numbers each run e·n + trajectory, in ascending order, and `counts` are its lengths.
    """

    order: Tensor
    inverse: Tensor
    expert: Tensor
    per_expert: list[int]
    runs: Tensor
    counts: Tensor
    n_experts: int
    n: int

    @classmethod
    def sorted(cls, chosen_Nk: Tensor, sample_N: Tensor, n_experts: int, n: int) -> "_Rows":
        k = chosen_Nk.shape[1]
        # Tokens come trajectory by trajectory, and a stable sort keeps that.
        expert, order = chosen_Nk.reshape(-1).sort(stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        runs, counts = torch.unique_consecutive(expert * n + sample_N[order // k], return_counts=True)
        return cls(order, inverse, expert, expert.bincount(minlength=n_experts).tolist(), runs, counts, n_experts, n)

    def add_norms(self, current: Pass, A_SF: Tensor, parts: Sequence[tuple[tuple[int, ...], Tensor]]) -> None:
        """Adds ‖BᵀA‖² of each trajectory to units, for each of `parts`: the units' indices and the gradient B `[S, ·]`.

        One index stands for all experts together, E indices for one each.
        """
        squared = [torch.zeros(self.n_experts * self.n, dtype=torch.float64, device=A_SF.device) for _ in parts]
        starts = self.counts.cumsum(0) - self.counts
        found = [current.scores.matrices(units, self.n_experts) for units, _ in parts]
        for bucket, t in self._buckets():
            steps = torch.arange(t, device=A_SF.device)
            counts_g1 = self.counts[bucket, None]
            index_gt = starts[bucket, None] + steps.clamp(max=counts_g1 - 1)
            behind_gt1 = (steps >= counts_g1)[..., None]
            # What stands behind a run's last row is that row again, with a gradient of zero.
            A_gtF, Bs = A_SF[index_gt], [B[index_gt].masked_fill_(behind_gt1, 0) for _, B in parts]
            for total, one, B, squared_g in zip(squared, found, Bs, squared_norms(A_gtF, Bs, current.costs), strict=True):
                total[self.runs[bucket]] = squared_g
                one.add(A_gtF, B, self.runs[bucket])
        for one in found:
            one.finish()
        for (units, _), total in zip(parts, squared, strict=True):
            total_En = total.view(self.n_experts, self.n)
            if len(units) == 1:
                current.add_squared(units[0], total_En.sum(dim=0))
            else:
                for unit, squared_n in zip(units, total_En, strict=True):
                    current.add_squared(unit, squared_n)

    def _buckets(self) -> list[tuple[Tensor, int]]:
        """Runs of similar length, as positions in `runs`, with the length of the longest."""
        lengths = self.counts.cpu().numpy()
        buckets = plan_batches(lengths, int(lengths.max()) * len(lengths), shortest=BUCKET)
        return [(torch.from_numpy(bucket).to(self.counts.device), int(lengths[bucket[0]])) for bucket in buckets]
