"""Norms of per-sample weight gradients from a linear layer's inputs and output gradients, without forming the gradients of a batch.

For y = x·Wᵀ with inputs A and output gradients B of one sample, ∇W = BᵀA. Its squared Frobenius norm has two forms:

    outer   ‖BᵀA‖²            T·I·O products
    gram    ⟨AAᵀ, BBᵀ⟩        about T²/2·(I + O) products ("ghost norm", Li et al. 2021, arXiv 2110.05679), AAᵀ once for all layers
                              that read the same input

Shapes: n samples, T positions, I input features, O output features.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradprism.probing.manifest import Costs

# Rounding errors of the gram form's terms are near eps·Σ‖Aₜ‖²‖Bₜ‖². Where the terms cancel to less than this fraction of that sum,
# the error would come near 1e-4 of a float32 norm (and near 1e-2 of a bfloat16 one), and the sample is computed by the outer form,
# which does not cancel.
CANCELLATION = 1e-2
# Entries of gradients made at once by the outer form: few enough to stay in a CPU's cache, or to be no burden to a GPU's memory.
OUTER_ENTRIES = {"cpu": 1 << 20, "cuda": 1 << 27}


# One product a second in either form and nothing else: the form with fewer products is chosen. What tests and references use.
BY_PRODUCTS = Costs(1.0, 0.0, 1.0, 0.0, True)


def squared_norms(A_nTI: Tensor, B_nTOs: Sequence[Tensor], costs: Costs) -> list[Tensor]:
    """‖BᵀA‖² of each sample, float64 `[n]`, for each of the layers that read A, by the form that is cheaper for all of them."""
    shared = SharedInput(lambda: A_nTI, costs)
    for B_nTO in B_nTOs:
        shared.add_reader(B_nTO.shape[-1])
    return [shared.squared_norms(B_nTO) for B_nTO in B_nTOs]


def squared_norms_outer(A_nTI: Tensor, B_nTO: Tensor) -> Tensor:
    """‖BᵀA‖² of each sample, float64 `[n]`, by way of the gradients `[O, I]`, some samples or some rows of one at a time."""
    (n, _, I), O = A_nTI.shape, B_nTO.shape[2]  # noqa: E741
    limit = OUTER_ENTRIES["cuda" if A_nTI.is_cuda else "cpu"]
    samples, rows = max(1, limit // (I * O)), O if limit >= I * O else max(64, limit // I)
    total = torch.zeros(n, dtype=torch.float64, device=A_nTI.device)
    for s in range(0, n, samples):
        A, B_mOT = A_nTI[s : s + samples], B_nTO[s : s + samples].mT
        for o in range(0, O, rows):
            total[s : s + samples] += squared_sum(torch.bmm(B_mOT[:, o : o + rows], A))
    return total


def squared_sum(X_nOI: Tensor) -> Tensor:
    """Σx² of each sample, float64 `[n]`; each row of half precision is summed in float32."""
    wide = torch.promote_types(X_nOI.dtype, torch.float32)
    return torch.linalg.vector_norm(X_nOI, dim=2, dtype=wide).double().square().sum(dim=1)


def gram(X_nTI: Tensor) -> list[Tensor]:
    """XXᵀ in block rows, for it is symmetric: entry b is `[n, h, T − i]`, rows i = b·h … of the columns from i on."""
    T = X_nTI.shape[1]
    h = _height(T)
    return [torch.bmm(X_nTI[:, i : i + h], X_nTI[:, i:].mT) for i in range(0, T, h)]


def gram_entries(T: int) -> int:
    """Number of entries that `gram` computes: T²/2 and a little more."""
    h = _height(T)
    return sum(min(h, T - i) * (T - i) for i in range(0, T, h))


def inner_product(gram_A: list[Tensor], gram_B: list[Tensor]) -> tuple[Tensor, Tensor]:
    """⟨AAᵀ, BBᵀ⟩ of each sample and Σ‖Aₜ‖²‖Bₜ‖², its diagonal part, both float64 `[n]`, from block rows as made by `gram`."""
    total = torch.zeros(len(gram_A[0]), dtype=torch.float64, device=gram_A[0].device)
    diagonal = total.clone()
    for rows_A, rows_B in zip(gram_A, gram_B, strict=True):
        terms = rows_A.float() * rows_B if rows_A.dtype == torch.bfloat16 else rows_A * rows_B
        height = terms.shape[1]
        # The block on the diagonal holds both triangles, what lies right of it stands for its mirror image too. Rows are summed in
        # the terms' own precision, pairwise, and added up in float64.
        rows = 2 * terms[:, :, height:].sum(dim=2).double() + terms[:, :, :height].sum(dim=2)
        total += rows.sum(dim=1)
        diagonal += terms.diagonal(dim1=1, dim2=2).sum(dim=1, dtype=torch.float64)
    return total, diagonal


def _height(T: int) -> int:
    """Of a block row: low blocks waste little above the diagonal, high ones multiply faster."""
    return 64 if T <= 512 else 128


def gram_is_cheaper(T: int, d_in: int, d_outs: Sequence[int], costs: Costs) -> bool:
    """True where layers of `d_outs` outputs that share an input of `d_in` features are cheaper by the gram form, together."""
    entries = gram_entries(T)
    by_gram = entries * ((d_in + sum(d_outs)) * costs.gram_product + len(d_outs) * costs.gram_entry)
    return by_gram < d_in * sum(d_outs) * (T * costs.outer_product + costs.outer_entry)


class SharedInput:
    """The input A `[n, T, I]` of one or more linear layers, whose output gradients arrive one by one.

    `get` makes A when the first of them has come. Call `add_reader` for every layer before the first `squared_norms`.
    """

    def __init__(self, get: Callable[[], Tensor], costs: Costs) -> None:
        self._get, self._costs = get, costs
        self._d_outs: list[int] = []
        self._A_nTI: Tensor | None = None
        self._gram: list[Tensor] | None = None

    def add_reader(self, d_out: int) -> None:
        """Announces a layer of `d_out` output features."""
        self._d_outs.append(d_out)

    def input(self) -> Tensor:
        """A as it came."""
        return self._get()

    def converted(self) -> Tensor:
        """A as it is multiplied, the same tensor each time."""
        if self._A_nTI is None:
            self._A_nTI = self._convert(self._get())
        return self._A_nTI

    def squared_norms(self, B_nTO: Tensor) -> Tensor:
        """‖BᵀA‖² of each sample, float64 `[n]`, for one layer's output gradients, by whichever form is cheaper for this batch."""
        A_nTI = self.converted()
        B_nTO = self._convert(B_nTO).to(A_nTI.device)
        _, T, d_in = A_nTI.shape
        if not gram_is_cheaper(T, d_in, self._d_outs, self._costs):
            return squared_norms_outer(A_nTI, B_nTO)
        if self._gram is None:
            self._gram = gram(A_nTI)
        squared, diagonal = inner_product(self._gram, gram(B_nTO))
        cancelled = (squared < CANCELLATION * diagonal).nonzero().flatten()
        if cancelled.numel():
            squared[cancelled] = squared_norms_outer(A_nTI[cancelled], B_nTO[cancelled])
        return squared

    def _convert(self, X: Tensor) -> Tensor:
        narrow = X.dtype == torch.float16 or (X.dtype == torch.bfloat16 and self._costs.upcast)
        return X.float() if narrow else X
