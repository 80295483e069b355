"""GRPO and GiGPO against values worked by hand, and against the formulas written out slowly."""

import itertools
import math
import random
import statistics

import numpy as np
import pytest

from gradprism.training.advantages.gigpo import discounted, gigpo
from gradprism.training.advantages.grpo import grpo
from gradprism.training.advantages.outcome import Outcome


def outcomes(*rewards, anchors=None):
    return [Outcome(tuple(map(float, r)), tuple(anchors[i]) if anchors else ()) for i, r in enumerate(rewards)]


def values(result):
    return [[a.tolist() for a in group] for group in result]


def test_grpo_by_hand():
    """Returns 1, 0, 0, 1: mean 0.5, deviations ±0.5, sample standard deviation sqrt(4 · 0.25 / 3) = 0.57735."""
    group = outcomes([0, 0, 1], [0], [0, 0], [1])
    assert values(grpo([group], "none")) == [[[0.5] * 3, [-0.5], [-0.5] * 2, [0.5]]]
    [[first, second, *_]] = values(grpo([group], "group"))
    assert first == pytest.approx([0.8660254 * (0.57735027 / 0.57735127)] * 3, abs=1e-6)
    assert second == pytest.approx([-0.866024], abs=1e-5)


def test_grpo_divides_by_the_spread_of_the_batch():
    """Returns 1, 0 and 0.1, 0: all four have mean 0.275 and sample variance (0.5256 + 2 · 0.0756 + 0.0306) / 3 = 0.2358."""
    result = values(grpo([outcomes([1], [0]), outcomes([0.1], [0])], "batch"))
    spread = math.sqrt(0.7075 / 3) + 1e-6
    assert result[0] == [[pytest.approx(0.5 / spread)], [pytest.approx(-0.5 / spread)]]
    assert result[1] == [[pytest.approx(0.05 / spread)], [pytest.approx(-0.05 / spread)]]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_and_a_lone_episode_teach_nothing(scale):
    for groups in ([outcomes([1, 0], [0, 1], [1])], [outcomes([5])], [outcomes([0], [0]), outcomes([1], [1])]):
        assert all(a == 0 for group in grpo(groups, scale) for episode in group for a in episode)


def test_what_does_not_count_is_in_no_mean():
    group = [Outcome((1.0,)), Outcome((0.0,)), Outcome((math.nan, 0.0), counted=False)]
    assert values(grpo([group], "none")) == [[[0.5], [-0.5], [0.0, 0.0]]]
    assert values(gigpo([[*outcomes([1], [0], anchors=["a", "a"]), Outcome((7.0,), ("a",), False)]], "none", 0.9, 1.0)) == [
        [[1.0], [-1.0], [0.0]]
    ]


def test_discounted_returns_by_hand():
    assert discounted((0.0, 0.0, 1.0), 0.5).tolist() == [0.25, 0.5, 1.0]
    assert discounted((-0.1, 1.0), 0.9).tolist() == pytest.approx([0.8, 1.0])
    assert discounted((), 0.9).tolist() == []


def test_gigpo_by_hand():
    """Two episodes from observation s. The first goes s → t → won; the second s → u → s → lost.

    Episode: 0.5 and −0.5. G of the first with γ 0.5: 0.5, 1. G of the second: 0, 0, 0.
    Anchor s holds G 0.5, 0, 0: mean 1/6, so 1/3, −1/6, −1/6. t and u are alone: 0.
    """
    group = outcomes([0, 1], [0, 0, 0], anchors=[["s", "t"], ["s", "u", "s"]])
    [[first, second]] = values(gigpo([group], "none", 0.5, 1.0))
    assert first == pytest.approx([0.5 + 1 / 3, 0.5])
    assert second == pytest.approx([-0.5 - 1 / 6, -0.5, -0.5 - 1 / 6])
    [[half, _]] = values(gigpo([group], "none", 0.5, 0.5))
    assert half == pytest.approx([0.5 + 1 / 6, 0.5])
    assert values(gigpo([group], "none", 0.5, 0.0)) == values(grpo([group], "none"))


def test_anchors_are_not_shared_between_groups():
    alone = outcomes([1], [0], anchors=[["s"], ["t"]])
    other = outcomes([0], [1], anchors=[["s"], ["t"]])
    assert values(gigpo([alone, other], "none", 1.0, 1.0)) == values(grpo([alone, other], "none"))


@pytest.mark.parametrize(("scale", "gamma", "weight"), list(itertools.product(["group", "batch", "none"], [0.95, 1.0], [1.0, 0.3])))
def test_gigpo_against_the_formula_written_out(scale, gamma, weight):
    rng = random.Random(f"{scale} {gamma} {weight}")
    groups = []
    for _ in range(3):
        lengths = [rng.randint(1, 6) for _ in range(4)]
        groups.append(
            [
                Outcome(tuple(rng.choice([0.0, -0.1, 1.0]) for _ in range(n)), tuple(rng.choice("abc") for _ in range(n)))
                for n in lengths
            ]
        )
    returns = [
        [[sum(gamma ** (k - t) * o.rewards[k] for k in range(t, len(o.rewards))) for t in range(len(o.rewards))] for o in group]
        for group in groups
    ]
    anchored = {}
    for g, group in enumerate(groups):
        for e, o in enumerate(group):
            for t, anchor in enumerate(o.anchors):
                anchored.setdefault((g, anchor), []).append(returns[g][e][t])
    everything = [x for shared in anchored.values() if len(shared) > 1 for x in shared]
    totals = [sum(o.rewards) for group in groups for o in group]

    def divisor(own, every):
        return {"none": 1.0, "group": statistics.stdev(own) + 1e-6, "batch": statistics.stdev(every) + 1e-6}[scale]

    result = gigpo(groups, scale, gamma, weight)
    for g, group in enumerate(groups):
        own = [sum(o.rewards) for o in group]
        for e, o in enumerate(group):
            for t, anchor in enumerate(o.anchors):
                expected = (sum(o.rewards) - statistics.mean(own)) / divisor(own, totals)
                shared = anchored[g, anchor]
                if len(shared) > 1:
                    expected += weight * (returns[g][e][t] - statistics.mean(shared)) / divisor(shared, everything)
                assert result[g][e][t] == pytest.approx(expected, abs=1e-9), (g, e, t)
    assert all(np.isfinite(a).all() for group in result for a in group)
