"""Scores of single matrices' gradients, from a linear layer's inputs and output gradients while the probe has both at hand.

For inputs A and output gradients B of one sample, G = BᵀA. Its singular values come from the smaller of G and a core of T × T, so that a
wide matrix's gradient is never formed; rows and columns are summed up from blocks of it; its sketch is (B·Pᵀ)ᵀ(A·Q).

Shapes: m samples of a matrix, T positions, I input and O output features, n trajectories, N units, E experts, s side of a sketch.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradprism.probing.norms import OUTER_ENTRIES
from gradprism.probing.pass_scores import PASS_SCORES, SKETCH_SIDE


def triangle(X_mTF: Tensor) -> Tensor:
    """R of Xᵀ = Q·R, `[m, T, T]` for T ≤ F: XXᵀ = RᵀR, without the digits that forming it would lose."""
    return torch.linalg.qr(X_mTF.mT, mode="r").R


def squared_singular_values(A_mTI: Tensor, B_mTO: Tensor, R_mTT: Tensor | None = None) -> Tensor:
    """Squares of the singular values of BᵀA of each sample, float64 `[m, min(T, I, O)]`, in no order.

    Where T is the smallest, of R_B·R_Aᵀ, which has the same; `R_mTT` is `triangle(A)` where it is known. NaN where G is not finite.
    """
    if A_mTI.shape[1] < min(A_mTI.shape[2], B_mTO.shape[2]):
        core = triangle(B_mTO).double() @ (triangle(A_mTI) if R_mTT is None else R_mTT).double().mT
    else:
        core = (B_mTO.mT @ A_mTI).double()
    core = core if core.shape[1] <= core.shape[2] else core.mT
    # Eigenvalues of the square, in float64: what rounds away is below 1e-8 of the largest singular value.
    square = core @ core.mT
    bad = ~square.isfinite().flatten(1).all(dim=1)
    values = torch.linalg.eigvalsh(square.masked_fill(bad[:, None, None], 0.0)).clamp(min=0.0)
    return values.masked_fill(bad[:, None], torch.nan)


def row_and_column_norms(A_mTI: Tensor, B_mTO: Tensor) -> tuple[Tensor, Tensor]:
    """Norms of the rows `[m, O]` and of the columns `[m, I]` of each sample's BᵀA, float64, from some rows of it at a time."""
    (m, _, I), O = A_mTI.shape, B_mTO.shape[2]  # noqa: E741
    rows = max(1, OUTER_ENTRIES["cuda" if A_mTI.is_cuda else "cpu"] // (m * I))
    of_rows, of_columns = [], torch.zeros(m, I, dtype=torch.float64, device=A_mTI.device)
    for o in range(0, O, rows):
        square = torch.bmm(B_mTO[:, :, o : o + rows].mT, A_mTI).double().square()
        of_rows.append(square.sum(dim=2))
        of_columns += square.sum(dim=1)
    return torch.cat(of_rows, dim=1).sqrt(), of_columns.sqrt()


def gini(x_nF: Tensor) -> Tensor:
    """Gini coefficient of each row, `[n]`, as `concentration.gini`; NaN for a row of zeros."""
    F = x_nF.shape[1]
    i = torch.arange(1, F, dtype=x_nF.dtype, device=x_nF.device)
    return (x_nF.sort(dim=1).values.diff(dim=1) * (i * (F - i))).sum(dim=1) / (F * x_nF.sum(dim=1))


def signs(name: str, rows: int, columns: int) -> Tensor:
    """Random signs, int8 `[rows, columns]`, the same for the same name everywhere."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randint(0, 2, (rows, columns), generator=generator, dtype=torch.int8) * 2 - 1


class Projections:
    """Random signs by names and sizes, made once and kept on the device as int8."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int, torch.device], Tensor] = {}

    def get(self, name: str, rows: int, columns: int, like: Tensor) -> Tensor:
        """`signs` on the device and in the dtype of another tensor."""
        key = (name, rows, columns, like.device)
        if key not in self._known:
            self._known[key] = signs(name, rows, columns).to(like.device)
        return self._known[key].to(like.dtype)


@dataclass(slots=True, eq=False)
class MatrixScores:
    """What one pass over n trajectories gives for each of the scores `asked` that are of matrices: `[n, N]`, and the sketch `[n, s²]`."""

    asked: Sequence[str]
    names: Sequence[str]
    n: int
    projections: Projections
    device: torch.device
    values: dict[str, Tensor] = field(init=False)
    _last: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        kinds = {name: PASS_SCORES[name] for name in self.asked if PASS_SCORES[name].stores != "number"}
        widths = {name: kind.width(len(self.names)) for name, kind in kinds.items()}
        self.values = {name: torch.zeros(self.n, w or 1, dtype=torch.float64, device=self.device) for name, w in widths.items()}

    def matrices(self, units: Sequence[int], n_experts: int = 1) -> "Gathered":
        """One unit of one matrix, or of all experts' together as the blocks of one; or as many units as there are experts."""
        return Gathered(self, units, n_experts)

    def triangle_of(self, A_mTI: Tensor) -> Tensor:
        """`triangle`, once for matrices that read the same input one after the other."""
        if self._last is None or self._last[0] is not A_mTI:
            self._last = A_mTI, triangle(_wide(A_mTI))
        return self._last[1]


class Gathered:
    """Scores of one matrix, or of E experts' matrices, as their samples come: `add` some of them, then `finish`.

    A run is an expert's matrix and a trajectory, of number e·n + trajectory; none is added twice, and what is not added is zero.
    """

    def __init__(self, scores: MatrixScores, units: Sequence[int], n_experts: int) -> None:
        self._scores, self._units, self._shape = scores, units, (n_experts, scores.n)
        self._parts: dict[str, Tensor] = {}

    def add(self, A_mTI: Tensor, B_mTO: Tensor, runs_m: Tensor | None = None) -> None:
        """Takes inputs and output gradients of the runs (default: all, in order)."""
        scores, asked = self._scores, self._scores.values
        if not asked:
            return
        B, A = _wide(B_mTO).to(A_mTI.device), _wide(A_mTI)
        if "effective_rank" in asked or "nuclear_norm" in asked:
            # Those that share an input come one after the other, but not as slices of it.
            shared = scores.triangle_of(A_mTI) if runs_m is None and A.shape[1] < min(A.shape[2], B.shape[2]) else None
            square = squared_singular_values(A, B, shared)
            value = square.sqrt()
            self._put("spectrum", torch.stack([value.sum(dim=1), torch.xlogy(value, value).sum(dim=1)], dim=1), runs_m)
        if "gini_rows" in asked or "gini_columns" in asked:
            for name, norms in zip(("rows", "columns"), row_and_column_norms(A, B), strict=True):
                self._put(name, norms, runs_m)
        if "sketch" in asked:
            name, signs_of = scores.names[self._units[0]], scores.projections.get
            left, right = (X @ signs_of(f"{name} {end}", X.shape[2], SKETCH_SIDE, X) for X, end in ((B, "out"), (A, "in")))
            self._put("sketch", (left.mT @ right).flatten(1).double() / SKETCH_SIDE, runs_m)

    def _put(self, name: str, values_m: Tensor, runs_m: Tensor | None) -> None:
        if runs_m is None:
            self._parts[name] = values_m
            return
        if name not in self._parts:
            E, n = self._shape
            self._parts[name] = values_m.new_zeros(E * n, values_m.shape[1])
        self._parts[name][runs_m] = values_m

    def finish(self) -> None:
        """Writes the scores of the unit or units."""
        E, n = self._shape
        parts = {name: part.view(E, n, -1) for name, part in self._parts.items()}
        if "spectrum" in parts:
            # Sums over σ and over σ·ln σ, which blocks of one matrix add to.
            total, weighted = (parts["spectrum"] if len(self._units) > 1 else parts["spectrum"].sum(dim=0, keepdim=True)).unbind(
                dim=2
            )
            self._write("nuclear_norm", total)
            self._write("effective_rank", (total.log() - weighted / total).exp())
        for name in ("rows", "columns"):
            if name in parts:
                x = parts[name] if len(self._units) > 1 else parts[name].transpose(0, 1).reshape(1, n, -1)
                self._write(f"gini_{name}", gini(x.flatten(0, 1)).view(len(x), n))
        if "sketch" in parts:
            # One pair of projections serves all experts; signs of each one's own keep them apart.
            part = parts["sketch"]
            own = self._scores.projections.get(f"{self._scores.names[self._units[0]]} experts", E, SKETCH_SIDE**2, part)
            self._scores.values["sketch"] += (part * own[:, None]).sum(dim=0).to(self._scores.device)
        self._parts.clear()

    def _write(self, name: str, values_un: Tensor) -> None:
        if name in self._scores.values:
            self._scores.values[name][:, list(self._units)] = values_un.mT.to(self._scores.device)


def _wide(X: Tensor) -> Tensor:
    return X if X.dtype == torch.float64 else X.float()
