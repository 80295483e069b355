"""All scores compared: every figure against a slow reference, and what may not be said of few, equal or missing values."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from gradprism.concentration import METRICS, OWN_METRICS
from gradprism.routing.comparison import compare_scores, partial_correlations
from gradprism.routing.stability import audit
from helpers.probes import make_probe
from helpers.tiny import sample_trajectories


def scores_table(n, seed=0, **columns):
    rng = np.random.default_rng(seed)
    names = ("loss", "n_response_tokens")
    own = {name: rng.integers(0, 9, n).astype(float) for name in names}
    return pl.DataFrame({"id": [f"t{i}" for i in range(n)], **columns, **own})


def pair_of(found, a, b) -> Any:
    return found.pair(a, b)


@given(st.integers(6, 40), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_partial_correlations_are_those_of_the_residuals_of_least_squares(n, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, (2, n)).astype(float)
    table = scores_table(n, seed, a=a, b=b)
    found = compare_scores(table, {}, draws=1)
    ranks = {name: scipy.stats.rankdata(table[name]) for name in ("a", "b", "loss", "n_response_tokens")}
    design = np.column_stack([np.ones(n), ranks["loss"], ranks["n_response_tokens"]])
    left = {name: ranks[name] - design @ np.linalg.lstsq(design, ranks[name], rcond=None)[0] for name in ("a", "b")}
    for name in ("a", "b"):
        if np.ptp(ranks[name]):
            total = ((ranks[name] - ranks[name].mean()) ** 2).sum()
            assert found.scores[name].own == pytest.approx((left[name] ** 2).sum() / total, abs=1e-8)
    pair = pair_of(found, "a", "b")
    if min(found.scores[name].own or 0 for name in ("a", "b")) > 1e-6:
        assert pair.partial == pytest.approx(np.corrcoef(left["a"], left["b"])[0, 1], abs=1e-6)
    if pair.spearman is not None:
        assert pair.spearman == pytest.approx(scipy.stats.spearmanr(a, b)[0])
        discordant = [np.sign(x[0] - y[0]) * np.sign(x[1] - y[1]) for x, y in itertools.combinations(zip(a, b, strict=True), 2)]
        untied = [sum(x != y for x, y in itertools.combinations(values, 2)) for values in (a, b)]
        assert pair.kendall == pytest.approx(sum(discordant) / np.sqrt(untied[0] * untied[1]))


@pytest.mark.parametrize("seed", range(4))
def test_the_half_in_common_counts_equals_as_drawn(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 3, (2, 11)).astype(float)
    halves = [[np.argsort(column + 1e-6 * rng.random(11))[-5:] for _ in range(4000)] for column in (a, b)]
    drawn = np.mean([len(set(x) & set(y)) / 5 for x, y in zip(*halves, strict=True)])
    assert pair_of(compare_scores(scores_table(11, a=a, b=b), {}), "a", "b").common.share == pytest.approx(drawn, abs=0.01)


def test_chance_is_the_exact_range_of_random_halves():
    found: Any = compare_scores(scores_table(20, a=np.arange(20.0)), {}).by_chance
    draws = [len(set(np.random.default_rng(i).permutation(20)[:10]) & set(range(10))) / 10 for i in range(4000)]
    assert found.share == 0.5 and np.mean(draws) == pytest.approx(0.5, abs=0.01)
    assert np.mean([found.low <= share <= found.high for share in draws]) >= 0.95


def test_the_interval_covers_the_share_of_other_corpora():
    """Of two normal scores with correlation ρ halves share 1/2 + asin(ρ)/π."""
    rho, covered = 0.6, 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        a = rng.normal(size=80)
        b = rho * a + np.sqrt(1 - rho**2) * rng.normal(size=80)
        common = pair_of(compare_scores(scores_table(80, a=a, b=b), {}, seed=seed), "a", "b").common
        covered += common.low <= 0.5 + np.arcsin(rho) / np.pi <= common.high
    assert covered >= 53


def test_missing_values_leave_out_their_rows_alone():
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 40))
    a[:7] = np.nan
    table = scores_table(40, a=a, b=b)
    found, complete = compare_scores(table, {}), compare_scores(table[7:], {})
    assert pair_of(found, "b", "a") == pair_of(complete, "a", "b") and pair_of(found, "a", "b").n == 33
    assert pair_of(found, "b", "loss").n == 40 and found.scores["a"].n == 33
    assert "not defined for all trajectories: a (33 of 40)" in "\n".join(found.lines("b"))
    assert "a" not in compare_scores(table.with_columns(a=pl.lit(np.nan)), {}).scores


@pytest.mark.parametrize("n", range(6))
def test_of_few_trajectories_little_is_said(n):
    found = compare_scores(scores_table(n, a=np.arange(n) * 1.0, b=np.arange(n) * 2.0, c=np.ones(n)), {}, draws=20)
    text = "\n".join(found.lines("a"))
    assert found.groups is None and "will do" not in text and "nan" not in text
    if n:
        assert pair_of(found, "a", "c").spearman is None and "the same for all trajectories" in text
        assert pair_of(found, "a", "b").partial is None or n >= 5
    if n > 1:
        assert pair_of(found, "a", "b").common.low < 0.9, "a few that agree are no certainty"


def test_scores_that_rank_alike_are_one_row():
    rng = np.random.default_rng(0)
    a, other = rng.random((2, 60))
    table = scores_table(60, a=a, twice=2 * a, less=-a, near=a + 0.01 * rng.random(60), other=other)
    found = compare_scores(table, {"task_type": pl.Series([f"k{i % 3}" for i in range(60)])})
    assert found.groups == (("a", "twice", "less", "near"),)
    lines = list(found.lines("a"))
    assert not any(line.startswith(("twice", "near ")) for line in lines)
    assert any(line.startswith("a, twice, less, near rank alike (|ρ| ≥ ") for line in lines)
    assert found.eta_by_chance == {"task_type": pytest.approx(2 / 59)}
    assert list(found.scores)[-2:] == ["n_response_tokens", "loss"] or list(found.scores)[-2:] == ["loss", "n_response_tokens"]
    own: list[Any] = [found.scores[name].own for name in found.scores if name not in ("twice", "less", "near")]
    assert own == sorted(own, reverse=True)


def test_a_score_that_follows_length_is_said_to():
    table = scores_table(50, other=np.random.default_rng(1).random(50))
    found = compare_scores(table.with_columns(tokens=pl.col("n_response_tokens") + 0.1 * pl.col("loss")), {})
    text = "\n".join(found.lines("other"))
    assert "mostly n_response_tokens and loss" in text and "tokens (100%)" in text
    assert "no more with other's than chance explains" in text


def test_given_columns_that_are_constant_count_for_nothing():
    rho = np.array([[1, 0.3, np.nan], [0.3, 1, np.nan], [np.nan, np.nan, np.nan]])
    partial, own = partial_correlations(rho, 2, 9)
    np.testing.assert_allclose(partial, rho[:2, :2])
    np.testing.assert_allclose(own, 1)


def test_the_audit_compares_all_that_a_probe_has(tmp_path):
    trajectories = sample_trajectories(40)
    for name, change in (("a", None), ("b", lambda norms: norms.__setitem__((slice(None), slice(0, 3)), 1.0))):
        make_probe(tmp_path / name, trajectories=trajectories, change=change)
    rates = {t.id: (i % 5) / 4 for i, t in enumerate(trajectories)}
    found = audit(tmp_path / "a", pass_rates=rates, compare=tmp_path / "b")
    scores = found.scores
    assert scores is not None
    plain = {"loss", "l2", "n_tokens", "n_response_tokens", "n_turns", "pass_rate", "learnability"}
    assert scores.scores.keys() == {*OWN_METRICS, *plain} and len(scores.pairs) == 21 * 20 // 2
    assert ("cv", "hoyer") in [tuple(n for n in group if n in ("cv", "hoyer")) for group in scores.groups or ()]
    assert scores.scores["gini"].stability["b"].spearman == found.agreement.probes["b"].spearman
    assert "pass_rate" not in scores.scores["pass_rate"].stability
    assert pair_of(scores, "gini", "cv").spearman == pytest.approx(found.agreement.metrics["gini – cv"].spearman)
    assert "Agreement between metrics" not in str(found)
    assert all(len(line) <= 120 for line in scores.lines("gini") if line.startswith(tuple(scores.scores)) and "alike" not in line)
    assert audit(tmp_path / "a", all_scores=False).scores is None


def test_the_package_s_metrics_are_all_compared():
    assert set(OWN_METRICS) <= set(METRICS)
    page = Path("docs/audit.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in OWN_METRICS)
