"""The weights of units: views of stacked ones, dense forms of quantised ones, and their norms."""

from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from gradprism.probing.units import DENSE, LinearTap, Units, is_transposed, linear_features


def weight_norms(units: Units) -> list[float]:
    """Frobenius norm of each unit's weight, computed in float64; nan where a quantised weight is of a kind that is not known."""
    from accelerate.utils import align_module_device

    norms = [float("nan")] * len(units.units)
    for tap in units.taps:
        # Weights that are kept on another device or on disk are read from there.
        with torch.no_grad(), align_module_device(tap.module):
            if isinstance(tap, LinearTap):
                weight = _dense_weight(tap.module)
                if weight is not None:
                    for i, start, stop in tap.slices:
                        norms[i] = _frobenius(weight[start:stop])
            else:
                for indices, weights in zip((tap.gate, tap.up, tap.down), expert_weights(tap.module), strict=True):
                    groups = [weights] if len(indices) == 1 else weights
                    for i, weight in zip(indices, groups, strict=True):
                        norms[i] = _frobenius(weight)
    return norms


def expert_weights(module: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Views of the gate, up and down matrices of stacked experts, each `[E, ·, ·]`, transposed or not as they are stored."""
    gate_up = module.gate_up_proj.mT if is_transposed(module) else module.gate_up_proj
    return *gate_and_up(module, gate_up), module.down_proj


def gate_and_up(module: Any, fused: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of dimension 1 of a fused tensor, in the order in which stacked experts have them: one after the other, or mixed."""
    if getattr(module, "is_concatenated", True):
        gate, up = fused.chunk(2, dim=1)
        return gate, up
    return fused[:, ::2], fused[:, 1::2]


def _frobenius(weight: Tensor) -> float:
    # Piece by piece: the largest matrices would be gigabytes in float64.
    squares = [piece.double().square().sum() for piece in weight.split(max(1, (1 << 24) // max(1, weight[0].numel())))]
    return torch.stack(squares).sum().sqrt().item()


def _dense_weight(module: Any) -> Tensor | None:
    """W `[d_out, d_in]` in floating point, or None."""
    weight, features = module.weight, linear_features(module)
    assert features is not None
    d_in, d_out = features
    if isinstance(module, Conv1D):
        return weight.mT
    if getattr(weight, "quant_state", None) is not None:  # bitsandbytes, 4 bits
        from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]

        return dequantize_4bit(weight.data, weight.quant_state)
    state = getattr(module, "state", None)
    scales = getattr(weight, "SCB", None) if getattr(weight, "SCB", None) is not None else getattr(state, "SCB", None)
    if weight.dtype == torch.int8 and scales is not None:  # bitsandbytes, 8 bits: a scale for each row
        return weight.data.float() * (scales.float() / 127)[:, None]
    return weight if weight.dtype in DENSE and weight.shape == (d_out, d_in) and not weight.is_meta else None
