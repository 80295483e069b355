"""Audits of a split: every figure against a slow reference or a value worked out by hand, and a split that provokes each warning."""

import json
import math

import numpy as np
import polars as pl
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradprism.routing.agreement import (
    agreement,
    correlation_ratio,
    split_by,
    threshold_standard_error,
)
from gradprism.routing.audit import Audit, Cost, audit_split, drawn_by_chance
from gradprism.routing.split import Cut, Routing, choose_threshold, median_threshold, quantile_threshold, split_table
from helpers.probes import measures_table

# Few distinct values make ties common.
tied = hnp.arrays(np.float64, st.integers(1, 40), elements=st.sampled_from([0.1, 0.2, 0.25, 0.5, 0.7]))


@given(tied, st.integers(0, 1000))
def test_spearman_agrees_with_scipy(a, seed):
    b = np.random.default_rng(seed).integers(0, 5, len(a)).astype(float)
    ours = agreement(a, b).spearman
    if ours is None:
        assert len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0
    else:
        assert ours == pytest.approx(scipy.stats.spearmanr(a, b)[0], abs=1e-12)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("n", [2, 3, 10, 51])
def test_standard_error_of_the_threshold_equals_a_plain_bootstrap(n, share):
    scores = np.random.default_rng(n).gamma(2.0, size=n)
    found = threshold_standard_error(scores, share, seed=1)
    if not 0 < math.floor(share * n) < n:
        assert found is None, "nothing bounds it on both sides"
        return
    picks = np.random.default_rng(0).integers(0, n, (20_000, n))
    cut = median_threshold if share == 0.5 else lambda drawn: quantile_threshold(drawn, share)
    assert found == pytest.approx(np.std([cut(drawn) for drawn in scores[picks]], ddof=1), rel=0.05)


@given(tied, st.integers(0, 1000))
def test_agreement_compares_the_median_splits(a, seed):
    b = np.random.default_rng(seed).integers(0, 5, len(a)).astype(float)
    result = agreement(a, b)
    first, second = (
        {i for i, chosen in enumerate(scores) if chosen} for scores in (a > median_threshold(a), b > median_threshold(b))
    )
    same = [i for i in range(len(a)) if (i in first) == (i in second)]
    assert result.same_side == pytest.approx(len(same) / len(a))
    assert result.jaccard == (len(first & second) / len(first | second) if first | second else None)


def test_agreement_by_hand():
    # Of 1 2 3 4 the last two go to RL, of 1 3 2 4 the second and the last: one of three, and two of four on the same side.
    assert agreement(np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])).model_dump() == {
        "spearman": pytest.approx(0.8),
        "same_side": 0.5,
        "jaccard": pytest.approx(1 / 3),
    }


def test_split_by_takes_the_better_direction():
    to_rl = np.array([False, False, True, True, True])
    assert split_by(to_rl, np.array([5.0, 4, 3, 2, 1])).model_dump() == {"rl": "low", "same_side": 1.0, "jaccard": 1.0}
    assert split_by(to_rl, np.array([1.0, 4, 3, 2, 5])).model_dump() == {"rl": "high", "same_side": 3 / 5, "jaccard": 2 / 4}
    # Three drawn from five equals meet 9/5 of the three on average.
    assert split_by(to_rl, np.ones(5)).model_dump() == {
        "rl": "high",
        "same_side": pytest.approx((5 - 6 + 2 * 9 / 5) / 5),
        "jaccard": pytest.approx(9 / 5 / (6 - 9 / 5)),
    }
    assert split_by(np.zeros(5, dtype=bool), np.arange(5.0)).model_dump() == {"rl": "high", "same_side": 1.0, "jaccard": None}


@pytest.mark.parametrize("seed", range(4))
def test_equals_at_the_cut_count_as_drawn_by_chance(seed):
    rng = np.random.default_rng(seed)
    values, to_rl = rng.integers(0, 3, 12).astype(float), rng.permutation(12) < 5
    drawn = []
    for _ in range(8000):
        order = np.lexsort((rng.random(12), values))  # equals in a random order
        chosen = np.zeros(12, dtype=bool)
        chosen[order[-5:]] = True
        drawn.append((chosen == to_rl).mean())
    found = split_by(to_rl, values)
    low = split_by(to_rl, -values)
    assert found.same_side == low.same_side and found.rl != low.rl
    if found.rl == "high":
        assert found.same_side == pytest.approx(np.mean(drawn), abs=0.01)
    else:
        assert found.same_side >= np.mean(drawn) - 0.01


@given(tied, st.integers(0, 1000))
def test_correlation_ratio_is_the_share_of_the_sum_of_squares_between_groups(values, seed):
    groups = np.random.default_rng(seed).choice(["pick", "look", "heat"], len(values)).tolist()
    mean = sum(values) / len(values)
    between = 0.0
    for group in set(groups):
        own = [value for value, g in zip(values, groups, strict=True) if g == group]
        between += len(own) * (sum(own) / len(own) - mean) ** 2
    total = sum((value - mean) ** 2 for value in values)
    ours = correlation_ratio(values, groups)
    if np.ptp(values) == 0:
        assert ours is None
    else:
        assert ours == pytest.approx(between / total, abs=1e-9)


def test_correlation_ratio_by_hand():
    # Means 2 and 5 about 3.5: between 4·1.5² = 9; total 2.5² + 0.5² + 0.5² + 2.5² = 13.
    assert correlation_ratio(np.array([1.0, 3, 4, 6]), ["a", "a", "b", "b"]) == pytest.approx(9 / 13)


def audited(score, policy="concentration", cut=None, task_types=None, rl_share=0.5, **columns):
    score = np.asarray(score, dtype=float)
    threshold = choose_threshold(score, rl_share, cut)
    table = split_table(measures_table(len(score), **columns), score, Cut((threshold,)))
    n_rl = int((score > threshold).sum())
    routing = Routing(
        policy=policy,
        threshold_rule="fixed" if cut is not None else "median" if rl_share == 0.5 else "quantile",
        threshold=threshold,
        rl_share=rl_share,
        n_trajectories=len(score),
        n_sft=len(score) - n_rl,
        n_rl=n_rl,
    )
    tasks = pl.DataFrame({"task_type": task_types or [None] * len(score), "named": [True] * len(score)})
    return audit_split(table, routing, tasks)


def warned(*arguments, **options):
    return list(audited(*arguments, **options).warnings)


def test_audit_of_a_sound_split_warns_of_nothing():
    score = np.random.default_rng(9).random(200)
    result = audited(score)
    assert result.warnings == ()
    assert set(result.spearman) == {"loss", "l2", "n_tokens", "n_response_tokens", "n_turns", "gini", "cv", "kurtosis"}
    expected = (np.abs(score - np.median(score)) <= result.threshold_standard_error).mean()
    assert result.share_within_one_standard_error == pytest.approx(expected)
    assert expected == pytest.approx(1 / math.sqrt(200), abs=0.03)
    assert result.task_type_eta_squared is None


def test_audit_s_figures_are_those_of_its_parts():
    rng = np.random.default_rng(1)
    score, rates, types = rng.random(150), rng.integers(0, 3, 150) / 2, rng.choice(["a", "b"], 150).tolist()
    table = measures_table(150, pass_rate=rates)
    result = audited(score, task_types=types, pass_rate=rates)
    to_rl = score > np.median(score)
    for name, column in (("loss", "loss"), ("l2", "l2"), ("n_turns", "n_turns"), ("success", "pass_rate")):
        values = table[column].to_numpy()
        assert result.spearman[name] == pytest.approx(scipy.stats.spearmanr(score, values)[0])
        assert result.split_by[name] == split_by(to_rl, values)
    assert list(result.split_by) == ["loss", "l2", "n_tokens", "n_response_tokens", "n_turns", "success"]
    assert result.task_type_eta_squared == correlation_ratio(score, types)
    gini, cv = table["gini"].to_numpy(), table["cv"].to_numpy()
    assert list(result.agreement.metrics) == ["gini – cv", "gini – kurtosis", "cv – kurtosis"]
    assert result.agreement.metrics["gini – cv"] == agreement(gini, cv)


def test_saturated_scores_are_warned_of():
    assert [w.split(":")[0] for w in warned(np.full(20, 0.3))] == [
        "the scores are all equal",
        "all 20 trajectories go to SFT",
    ]
    rng = np.random.default_rng(0)
    near = 0.3 + 1e-5 * rng.random(200)
    [warning] = warned(near)
    assert warning.startswith("95% of the scores lie within 9.")
    assert warning.endswith("e-06 of each other: they are saturated, and the split says little")
    # A few that stand apart do not hide it, and 6 % do.
    near[:9] = 0.9
    assert "saturated" in warned(near)[0]
    near[:12] = 0.9 + 0.01 * np.arange(12)
    assert warned(near) == []


def test_saturation_is_asked_of_what_a_policy_ranks_by():
    score = np.random.default_rng(0).random(200)  # spread by chance
    assert warned(score, policy="soft", gini=np.full(200, 0.3)) == [
        "the scores are all equal: the split says nothing about the trajectories"
    ]
    assert warned(score, policy="soft") == []
    warning, _ = warned(score, policy="pass_rate", pass_rate=[1.0] * 10 + [0.0] * 190)
    assert warning.startswith("95% of the pass rates lie within 0 of each other")


def test_one_sided_routing_is_warned_of_where_the_threshold_was_a_number():
    score = np.linspace(0, 1, 200)
    assert warned(score, cut=0.951) == ["190 of 200 trajectories go to SFT at this threshold: choose another, or the median"]
    assert warned(score, cut=0.0) == ["199 of 200 trajectories go to RL at this threshold: choose another, or the median"]
    assert warned(score, cut=0.9) == []
    assert warned(score, cut=2) == ["all 200 trajectories go to SFT: the other stage has nothing to train on"]


def test_an_unstable_threshold_is_warned_of():
    rng = np.random.default_rng(3)
    [few] = warned(rng.random(30))  # about 1/√30
    assert "lie within one standard error of the threshold, which is unstable" in few
    clustered = np.concatenate([rng.normal(0, 1, 500), np.full(201, 0.01)])
    assert "unstable" in warned(clustered)[0]
    assert warned(rng.random(30), policy="random") == []
    # A number is no estimate, so nothing moves it.
    given = audited(rng.random(30), cut=0.5)
    assert given.threshold_standard_error is None and given.share_within_one_standard_error is None
    assert given.warnings == ()


def test_the_threshold_of_a_share_is_judged_where_it_cuts():
    score = np.random.default_rng(2).lognormal(size=400)
    of_share, of_median = (audited(score, rl_share=share).threshold_standard_error or 0 for share in (0.1, 0.5))
    # Its tail is thin, so the cut there is much less firm than the median.
    assert of_share > 3 * of_median > 0


def test_what_pass_rates_leave_to_chance_is_counted_and_warned_of():
    rates = np.array([0.0] * 30 + [0.25] * 5 + [1.0] * 5)
    jittered = rates - 1e-3 * np.random.default_rng(0).permutation(40)
    result = audited(jittered, policy="pass_rate", pass_rate=rates)
    # Half of 40 go to RL: the ten that were won, and ten of the thirty that never were.
    assert result.rl_by_chance == 10
    assert result.warnings[-1].startswith("10 of the 20 trajectories that go to RL were drawn by chance among equal pass rates")
    won = audited(jittered, policy="pass_rate", pass_rate=rates, cut=0.0)
    assert (won.rl_by_chance, won.warnings) == (0, ())
    assert audited(jittered, pass_rate=rates).rl_by_chance is None
    assert drawn_by_chance(measures_table(4), "concentration") is None


def test_a_confound_is_warned_of_unless_it_was_asked_for():
    score = np.random.default_rng(9).random(200)
    words = "the score follows {} (Spearman {}): compare with a split by that measure"
    assert warned(score, n_tokens=score**2) == [words.format("n_tokens", "1.00")]
    assert warned(score, policy="inverse", pass_rate=1 - score) == [words.format("success", "-1.00")]
    assert warned(score, policy="length", n_tokens=score**2) == []
    # A soft score follows nothing closely; what it is drawn by does.
    assert warned(score, policy="soft", gini=score[::-1], loss=score[::-1] * 2) == [words.format("loss", "1.00")]


def test_a_probe_that_costs_more_than_it_saves():
    def warning(probe, saved):
        return Cost(probe_seconds=probe, saved_seconds=saved).warning or ""

    assert warning(60, 3600) == ""
    assert warning(3600, 60) == "the probe took 3600 s and its routing saves 60 s: it costs more than it saves"
    assert "costs more" in warning(60, 60)
    assert warning(60, -10) == "training as routed takes 10 s more than RL on everything: routing saves nothing"


def test_an_audit_is_printed_as_lines_and_read_back_from_its_json():
    result = audited(np.random.default_rng(9).random(200), task_types=["a", "b"] * 100)
    lines = str(result).splitlines()
    assert lines[0] == "200 trajectories, concentration of gini, median split"
    headings, *rows = lines[2 : lines.index("", 2)]
    assert headings.split("  ")[0] == "The score against"
    assert [row.split()[0] for row in rows] == [*result.spearman]
    assert len({row.index("%") for row in rows if "%" in row}) == 1, "columns stand below each other"
    assert any(line.startswith("Standard error of the threshold: 0.0") for line in lines)
    assert Audit.model_validate(json.loads(json.dumps(result.to_json()))) == result
