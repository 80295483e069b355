"""One forward and backward pass of the model, and what is collected of it: inputs, output gradients, and from each pair a norm.

Shapes: n trajectories, T positions, R target rows of a batch, N units, I input and O output features.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradprism.probing.matrices import MatrixScores
from gradprism.probing.norms import Costs, SharedInput
from gradprism.probing.recompute import remake
from gradprism.probing.units import LinearTap
from gradprism.runtime.errors import ModelError

# Called once a product's input is known and the gradient B of its output has come.
TakeNorm = Callable[[SharedInput, Tensor], None]


def _as_it_is(X: Tensor) -> Tensor:
    return X


@dataclass(frozen=True, slots=True)
class Batch:
    """`input_ids` are `[n, T]`, padded on the right; entry r of `rows`, `columns` and `targets` `[R]` says that
    trajectory `rows[r]` is to predict token `targets[r]` at column `columns[r]`; `rows` ascend."""

    input_ids: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor
    # For each target row its place among those of its trajectory, and the largest number of them that a trajectory has.
    places: Tensor
    most: int

    def pick(self, X_nTF: Tensor) -> Tensor:
        """The target rows, `[1, R, F]`."""
        return X_nTF.flatten(0, 1).index_select(0, self._flat(X_nTF.device))[None]

    def spread(self, X_1RF: Tensor) -> Tensor:
        """The inverse of `pick`: `[n, T, F]` with zeros elsewhere; some modules leave `[R, F]`."""
        X_1RF = X_1RF.view(1, -1, X_1RF.shape[-1])
        flat = X_1RF.new_zeros(self.input_ids.numel(), X_1RF.shape[-1])
        return flat.index_copy(0, self._flat(X_1RF.device), X_1RF[0]).view(*self.input_ids.shape, -1)

    def _flat(self, device: torch.device) -> Tensor:
        return (self.rows * self.input_ids.shape[1] + self.columns).to(device)

    def unflatten(self, X: Tensor) -> Tensor:
        """`[n·T, F]` as `[n, T, F]` and `[R, F]` as `[1, R, F]`; some mixtures of experts put all tokens in a row.

        Latent attention has `[n, 1, T, F]`: a place for heads, of which its keys have one.
        """
        if X.ndim == 4 and X.shape[1] == 1:
            return X[:, 0]
        if X.ndim != 2:
            return X
        return X.unflatten(0, self.input_ids.shape) if len(X) == self.input_ids.numel() else X[None]

    def by_sample(self, X: Tensor) -> Tensor:
        """`[n, T, F]` as it is, target rows `[1, R, F]` as `[n, most, F]`, with zeros behind each trajectory's own."""
        X = self.unflatten(X)
        if X.shape[:2] == self.input_ids.shape:
            return X
        padded = X.new_zeros(len(self.input_ids), self.most, X.shape[-1])
        padded[self.rows.to(X.device), self.places.to(X.device)] = X[0]
        return padded


@contextmanager
def replaced(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Gives an instance another attribute than its own or its class's, for a while."""
    own = vars(module).get(name)  # as accelerate's hooks leave a `forward`
    setattr(module, name, value)
    try:
        yield
    finally:
        delattr(module, name)
        if own is not None:
            setattr(module, name, own)


@dataclass(slots=True, eq=False)
class Pass:
    """One pass over a batch. A product y = x·Wᵀ that is to be measured is announced by `input`, before it is computed, and `output`.

    With `twice`, layers run under activation checkpointing: the first time without keeping anything, and again in the backward pass,
    inside `again`. Both times both methods are to be called; each ignores the time that is not its own.
    """

    batch: Batch
    n_units: int
    costs: Costs
    scores: MatrixScores
    twice: bool = False
    squared_nN: Tensor = field(init=False)  # noqa: N815
    _seen: set[Hashable] = field(default_factory=set)
    _slots: dict[Hashable, tuple[SharedInput, TakeNorm, Callable[[], None]]] = field(default_factory=dict)
    _waiting: dict[Hashable, Tensor] = field(default_factory=dict)
    _shared: dict[Hashable, tuple[SharedInput, list[Hashable]]] = field(default_factory=dict)
    _again: bool = False

    def __post_init__(self) -> None:
        ids = self.batch.input_ids
        self.squared_nN = torch.zeros(len(ids), self.n_units, dtype=torch.float64, device=ids.device)

    def tap_input(self, tap: LinearTap, A: Tensor) -> None:
        """Announces the input of a tap's module."""
        A = self.batch.unflatten(A)
        if A.shape[:-1] not in (self.batch.input_ids.shape, (1, len(self.batch.rows))):
            raise ModelError(f"{tap.path}: does not run on [trajectories, tokens, features], but on {list(A.shape)}")
        widths = [stop - start for _, start, stop in tap.slices]

        def take(shared: SharedInput, B: Tensor) -> None:
            B_nTO = self.batch.by_sample(B)
            for index, start, stop in tap.slices:
                part = B_nTO if (start, stop) == (0, B.shape[-1]) else B_nTO[..., start:stop].contiguous()
                self.add_squared(index, shared.squared_norms(part))
                found = self.scores.matrices((index,))
                found.add(shared.converted(), part)
                found.finish()

        self.input(tap.path, A, widths, take, self.batch.by_sample)

    def input(
        self, slot: Hashable, A: Tensor, widths: Iterable[int], take: TakeNorm, arrange: Callable[[Tensor], Tensor] = _as_it_is
    ) -> None:
        """Announces the input A of a product; `widths` are the output features of each matrix that it is to be measured with.

        `arrange` brings A into the form that `take` finds in the `SharedInput`.
        """
        if self.twice and not self._again:
            return
        if slot in self._slots:
            raise ModelError(f"{slot}: runs more than once in a pass; the probe needs each projection to run exactly once")
        # Two readers of one tensor share the node that made it. Where none did, the tensor is kept, and with it its address.
        key = A.data_ptr() if A.grad_fn is None else (A.grad_fn, A.output_nr)
        key = (key, tuple(A.shape))
        if key not in self._shared:
            # In a second run the graph is never gone through, and holds its factors in other ways.
            again = None if self.twice else remake(A)
            kept = A.detach()
            get = (lambda: kept) if again is None else again
            self._shared[key] = (SharedInput(lambda: arrange(get()), self.costs), [])
        shared, readers = self._shared[key]
        readers.append(slot)
        for width in widths:
            shared.add_reader(width)

        def release() -> None:
            readers.remove(slot)
            if not readers:
                del self._shared[key]

        self._slots[slot] = shared, take, release

    def output(self, slot: Hashable, Y: Tensor) -> None:
        """Announces the output of a product, whose gradient is to be waited for."""
        if not Y.requires_grad:
            Y.requires_grad_(True)  # the first products begin the graph, in both runs: nothing below them needs a gradient
        if self._again:
            return
        if slot in self._seen:
            raise ModelError(f"{slot}: runs more than once in a pass; the probe needs each projection to run exactly once")
        self._seen.add(slot)
        Y.register_hook(lambda B: self._gradient(slot, B.detach()))

    def _gradient(self, slot: Hashable, B: Tensor) -> None:
        if slot in self._slots:
            self._finish(slot, B)
        else:
            self._waiting[slot] = B

    def _finish(self, slot: Hashable, B: Tensor) -> None:
        shared, take, release = self._slots.pop(slot)
        take(shared, B)
        release()

    @contextmanager
    def again(self) -> Iterator[None]:
        """The time during which a checkpointed layer runs again; at its end the gradients that waited for its inputs are used."""
        self._again = True
        try:
            yield
        finally:
            self._again = False
            for slot in self._slots.keys() & self._waiting.keys():
                self._finish(slot, self._waiting.pop(slot))

    def add_squared(self, unit: int, squared: Tensor, samples: Tensor | None = None) -> None:
        """Adds squared norms, float64, to a unit's: of the whole batch `[n]`, or of `samples` `[n']`, each at most once in it."""
        if samples is None:
            self.squared_nN[:, unit] += squared.to(self.squared_nN.device)
        else:
            self.squared_nN[:, unit].index_add_(0, samples.to(self.squared_nN.device), squared.to(self.squared_nN.device))

    def sample_of(self, n_tokens: int) -> Tensor:
        """Which trajectory each of the flattened tokens that a module sees belongs to, int64 `[n_tokens]`."""
        n, T = self.batch.input_ids.shape
        if n_tokens == n * T:
            return torch.arange(n, device=self.batch.rows.device).repeat_interleave(T)
        if n_tokens != len(self.batch.rows):
            raise ModelError(f"a layer runs on {n_tokens} tokens of a batch of {n * T}; the probe cannot tell whose they are")
        return self.batch.rows

    def missing(self, expected: Iterable[Hashable]) -> list[Hashable]:
        """Those of the slots that gave no norm, in the order given."""
        return [slot for slot in expected if slot not in self._seen or slot in self._slots or slot in self._waiting]
