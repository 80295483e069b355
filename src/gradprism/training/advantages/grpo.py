"""GRPO: an episode's advantage is its return against those of the other episodes of the same task, the same for all its steps."""

import numpy as np
from numpy.typing import NDArray

from gradprism.training.advantages.outcome import Groups, Scale, Summed, centred


def grpo(groups: Groups, scale: Scale, summed: Summed | None = None) -> list[list[NDArray[np.float64]]]:
    """Advantages [steps] of every episode of every group: A_E = (R − mean) / F. Source: arXiv 2402.03300."""
    counted = [[o for o in group if o.counted] for group in groups]
    values = iter(centred([np.array([o.total for o in group]) for group in counted], scale, summed))
    results = []
    for group in groups:
        of_group = iter(next(values))
        results.append([np.full(len(o.rewards), next(of_group) if o.counted else 0.0) for o in group])
    return results
