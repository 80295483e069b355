"""Norms of per-sample weight gradients from a linear layer's inputs and output gradients, without forming the gradients of a batch.

For y = x·Wᵀ with inputs A and output gradients B of one sample, ∇W = BᵀA. Its squared Frobenius norm has two forms:

    outer   ‖BᵀA‖²            T·I·O products
    gram    ⟨AAᵀ, BBᵀ⟩        about T²/2·(I + O) products ("ghost norm", Li et al. 2021, arXiv 2110.05679), AAᵀ once for all layers
                              that read the same input

Shapes: n samples, T positions, I input features, O output features.
"""

import torch
from torch import Tensor

# Gram matrices are symmetric: they are made in block rows of this height, from the diagonal rightwards.
BLOCK = 256
# Rounding errors of the gram form's terms are near eps·Σ‖Aₜ‖²‖Bₜ‖². Where the terms cancel to less than this fraction of that sum,
# the error would come near 1e-4 of a float32 norm, and the sample is computed by the outer form, which does not cancel.
CANCELLATION = 1e-2


def squared_norms_outer(A_nTI: Tensor, B_nTO: Tensor) -> Tensor:
    """‖BᵀA‖² of each sample, float64 `[n]`, by way of the `[n, O, I]` gradients."""
    gradients_nOI = torch.bmm(B_nTO.mT, A_nTI)
    return torch.linalg.vector_norm(gradients_nOI, dim=2).double().square().sum(dim=1)


def squared_norms_gram(gram_A: list[Tensor], gram_B: list[Tensor]) -> tuple[Tensor, Tensor]:
    """⟨AAᵀ, BBᵀ⟩ of each sample and Σ‖Aₜ‖²‖Bₜ‖², its diagonal part, both float64 `[n]`, from block rows as made by `gram`."""
    total = torch.zeros(len(gram_A[0]), dtype=torch.float64, device=gram_A[0].device)
    diagonal = total.clone()
    for rows_A, rows_B in zip(gram_A, gram_B, strict=True):
        terms = rows_A.double() * rows_B  # float64: these terms are what cancels
        height = terms.shape[1]
        # The block on the diagonal holds both triangles, what lies right of it stands for its mirror image too.
        total += 2 * terms.sum(dim=(1, 2)) - terms[:, :, :height].sum(dim=(1, 2))
        diagonal += terms.diagonal(dim1=1, dim2=2).sum(dim=1)
    return total, diagonal


def gram(X_nTI: Tensor) -> list[Tensor]:
    """XXᵀ in block rows: entry b is `[n, h, T − i]` for rows i = b·BLOCK … i + h of the columns from i on."""
    return [torch.bmm(X_nTI[:, i : i + BLOCK], X_nTI[:, i:].mT) for i in range(0, X_nTI.shape[1], BLOCK)]


def gram_is_cheaper(T: int, d_in: int, d_out: int) -> bool:
    """Whether the gram form takes fewer products than the outer form; `d_out` sums over all layers that share the input.

    The layers of such a group choose alike: each alone would prefer gram where T²/2·O < T·I·O, which does not depend on O.
    """
    entries = sum(min(BLOCK, T - i) * (T - i) for i in range(0, T, BLOCK))
    return entries * (d_in + d_out) < T * d_in * d_out


class SharedInput:
    """The input A `[n, T, I]` of one or more linear layers, whose output gradients arrive one by one.

    Call `add_reader` for every layer before the first `squared_norms`. float16 and bfloat16 are computed in float32.
    """

    def __init__(self, A_nTI: Tensor) -> None:
        self.A_nTI = A_nTI
        self.readers = 0
        self._d_out = 0
        self._gram: list[Tensor] | None = None

    def add_reader(self, d_out: int) -> None:
        """Announces a layer of `d_out` output features."""
        self.readers += 1
        self._d_out += d_out

    def squared_norms(self, B_nTO: Tensor) -> Tensor:
        """‖BᵀA‖² of each sample, float64 `[n]`, for one layer's output gradients, by whichever form is cheaper for this batch."""
        self.A_nTI, B_nTO = _at_least_float32(self.A_nTI), _at_least_float32(B_nTO)
        _, T, d_in = self.A_nTI.shape
        if not gram_is_cheaper(T, d_in, self._d_out):
            return squared_norms_outer(self.A_nTI, B_nTO)
        if self._gram is None:
            self._gram = gram(self.A_nTI)
        squared, diagonal = squared_norms_gram(self._gram, gram(B_nTO))
        cancelled = (squared < CANCELLATION * diagonal).nonzero().flatten()
        if cancelled.numel():
            squared[cancelled] = squared_norms_outer(self.A_nTI[cancelled], B_nTO[cancelled])
        return squared


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
