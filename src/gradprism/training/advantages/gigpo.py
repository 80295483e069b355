"""GiGPO: beside the episode's advantage, each step is compared with the steps of its group that started from the same observation."""

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from gradprism.training.advantages.grpo import grpo
from gradprism.training.advantages.outcome import Groups, Scale, Summed, centred


def gigpo(
    groups: Groups, scale: Scale, gamma: float, weight: float, summed: Summed | None = None
) -> list[list[NDArray[np.float64]]]:
    """Advantages [steps] of every episode of every group: A_E + w·A_S.

    A_S centres the discounted return from a step, G_t = Σ_{k≥t} γ^(k−t) r_k, among the steps of the group that share its observation;
    it is 0 for a step that shares with none. Source: arXiv 2505.10978, eq. 7 to 9.
    """
    results = grpo(groups, scale, summed)
    anchors: dict[tuple[int, str], list[tuple[int, int, int]]] = defaultdict(list)
    returns = [[discounted(o.rewards, gamma) for o in group] for group in groups]
    for g, group in enumerate(groups):
        for e, outcome in enumerate(group):
            for t, anchor in enumerate(outcome.anchors if outcome.counted else ()):
                anchors[g, anchor].append((g, e, t))
    shared = [places for places in anchors.values() if len(places) > 1]
    values = centred([np.array([returns[g][e][t] for g, e, t in places]) for places in shared], scale, summed)
    for places, advantages in zip(shared, values, strict=True):
        for (g, e, t), advantage in zip(places, advantages, strict=True):
            results[g][e][t] += weight * advantage
    return results


def discounted(rewards: tuple[float, ...], gamma: float) -> NDArray[np.float64]:
    """G_t of every step."""
    result, following = np.zeros(len(rewards)), 0.0
    for t in range(len(rewards) - 1, -1, -1):
        result[t] = following = rewards[t] + gamma * following
    return result
