"""Directions of gradients, by the sketches that a probe was asked for: how like a target's they are, and how diverse those of a set.

A sketch is a random projection of a trajectory's whole gradient; `docs/audit.md` says how far inner products are off.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradprism.probing.result import Probe
from gradprism.runtime.errors import DataError

# What two probes must have in common for their sketches to be of one space.
_SPACE = ("weights_sha256", "config_sha256", "units")


def target_cosines(probe: Probe, target: Probe) -> NDArray[np.float64]:
    """Cosine of each trajectory's gradient to the mean gradient of the target's trajectories, float64 `[n]`, by their sketches.

    As LESS (arXiv 2402.04333) and GradAlign (arXiv 2602.21492) choose training data, here without an optimizer's state. Raises
    `ConfigError` where one of the probes has no sketch, and `DataError` for probes of other models or units, and for a gradient of zero,
    with its trajectory.
    """
    if differ := [key for key in _SPACE if getattr(probe.manifest, key) != getattr(target.manifest, key)]:
        raise DataError(
            f"{target.folder or 'target'}: its {differ[0]} are not those of {probe.folder or 'the probe'}, so that gradients cannot be "
            "compared; probe both with the same model and units"
        )
    mean = target.pass_scores("sketch").mean(axis=0, dtype=np.float64)
    length = np.linalg.norm(mean)
    if not length > 0:
        raise DataError(f"{target.folder or 'target'}: its mean gradient is zero or not finite; choose other targets")
    found = probe.pass_scores("sketch", lambda sketches: _unit(sketches) @ (mean / length))
    if (bad := np.flatnonzero(~np.isfinite(found))).size:
        raise DataError(f"trajectory {probe.ids[int(bad[0])]!r}: its gradient is zero or not finite; leave it out of the corpus")
    return found


def diversity(sketches: ArrayLike) -> float | None:
    """Number of directions that gradients `[n, k]` are spread over, from 1 to min(n, k); None for no gradient that is not zero.

    exp of the entropy of the eigenvalues of the matrix of their cosines over n: the Vendi score (arXiv 2210.02410) of gradients, as
    G-Vendi (arXiv 2505.20161).
    """
    unit = _unit(np.asarray(sketches))
    unit = unit[np.isfinite(unit).all(axis=1)]
    if not len(unit):
        return None
    # Both products have the same eigenvalues but for zeros.
    square = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
    share = np.clip(np.linalg.eigvalsh(square / len(unit)), 0, None)
    share = share[share > 0] / share.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def _unit(sketches: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = sketches.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return wide / np.linalg.norm(wide, axis=1, keepdims=True)
