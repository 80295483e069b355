import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradprism.concentration import (
    FORMULAS,
    METRICS,
    Grouped,
    UndefinedError,
    coefficient_of_variation,
    gini,
    gini_of_totals,
    kurtosis,
    theil_parts,
)
from gradprism.probing.pass_scores import PASS_SCORES
from gradprism.probing.result import Probe
from gradprism.probing.scores import View
from gradprism.runtime.errors import DataError
from helpers.probes import make_probe

# Rows with a clear spread, so that rounding in the *input* does not decide the result.
entries = st.floats(min_value=1e-3, max_value=1e3)
rows = hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 40)), elements=entries).filter(
    lambda x: bool((np.ptp(x, axis=1) > 1e-3).all())
)


# Metrics that are 0 for equal norms.
FROM_ZERO = ("hoyer", "participation", "entropy", "theil", "theil_layers", "theil_in_layers", "theil_kinds", "theil_in_kinds")


def by_name(metric, x, groups=None):
    """The scores of a metric, by groups of every third matrix where it takes any."""
    function = METRICS[metric]
    N = np.shape(x)[-1]
    groups = np.arange(N) % min(3, N) if groups is None else groups
    return function(x, groups) if isinstance(function, Grouped) else function(x)


def slow_shares(row):
    square = [Fraction(float(v)) ** 2 for v in row]
    return [float(v / sum(square)) for v in square]


def slow_theil(row):
    mean = math.fsum(row) / len(row)
    return math.fsum(v / mean * math.log(v / mean) for v in row if v) / len(row)


def slow_hoyer(row):
    root = math.sqrt(len(row))
    return (root - math.fsum(row) / math.sqrt(math.fsum(v * v for v in row))) / (root - 1)


def slow_participation(row):
    return 1 - 1 / math.fsum(p * p for p in slow_shares(row)) / len(row)


def slow_entropy(row):
    return 1 + math.fsum(p * math.log(p) for p in slow_shares(row) if p) / math.log(len(row))


def slow_top_tenth(row):
    return math.fsum(sorted(row)[-math.ceil(len(row) / 10) :]) / math.fsum(row)


def slow_totals(row, groups):
    return [math.sqrt(math.fsum(v * v for v, g in zip(row, groups, strict=True) if g == name)) for name in sorted(set(groups))]


def slow_parts(row, groups):
    parts = [[v for v, g in zip(row, groups, strict=True) if g == name] for name in sorted(set(groups))]
    shares = [math.fsum(part) / math.fsum(row) for part in parts]
    between = math.fsum(s * math.log(s * len(row) / len(part)) for s, part in zip(shares, parts, strict=True) if s)
    return between, math.fsum(s * slow_theil(part) for s, part in zip(shares, parts, strict=True) if s)


def slow_gini(row):
    """Half the relative mean absolute difference, the definition, in exact arithmetic."""
    x = [Fraction(float(v)) for v in row]
    return float(sum(abs(a - b) for a in x for b in x) / (2 * len(x) * sum(x)))


def slow_moment_ratio(row):
    x = [Fraction(float(v)) for v in row]
    mean = sum(x) / len(x)
    m2, m4 = (sum((v - mean) ** k for v in x) / len(x) for k in (2, 4))
    return float(m4 / m2**2)


@given(rows)
@settings(max_examples=50, deadline=None)
def test_gini_is_half_the_relative_mean_absolute_difference(x):
    np.testing.assert_allclose(gini(x), [slow_gini(row) for row in x], rtol=1e-12)


@given(rows)
def test_cv_and_kurtosis_agree_with_scipy(x):
    np.testing.assert_allclose(coefficient_of_variation(x), scipy.stats.variation(x, axis=1), rtol=1e-9)
    np.testing.assert_allclose(kurtosis(x), scipy.stats.kurtosis(x, axis=1), rtol=1e-6, atol=1e-6)


@given(rows)
@settings(max_examples=50, deadline=None)
def test_kurtosis_agrees_with_exact_arithmetic(x):
    np.testing.assert_allclose(kurtosis(x) + 3, [slow_moment_ratio(row) for row in x], rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@given(x=rows, exponent=st.integers(-990, 990))
def test_scale_invariance_is_exact_for_powers_of_two(metric, x, exponent):
    # 2**±990 takes rows to 1e-301 and 1e301: squares and sums would leave float64's range.
    np.testing.assert_array_equal(by_name(metric, np.ldexp(x, exponent)), by_name(metric, x))


@pytest.mark.parametrize("metric", METRICS)
@given(x=rows, scale=st.floats(1e-6, 1e6))
def test_scale_invariance_for_any_factor(metric, x, scale):
    np.testing.assert_allclose(by_name(metric, x * scale), by_name(metric, x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@given(x=rows, seed=st.integers(0, 2**32 - 1))
def test_permutation_invariance(metric, x, seed):
    order = np.random.default_rng(seed).permutation(x.shape[1])
    groups = np.arange(len(order)) % 2
    np.testing.assert_allclose(by_name(metric, x[:, order], groups[order]), by_name(metric, x, groups), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("metric", "slow"),
    [
        ("hoyer", slow_hoyer),
        ("participation", slow_participation),
        ("entropy", slow_entropy),
        ("theil", slow_theil),
        ("top_tenth", slow_top_tenth),
    ],
)
@given(x=rows, zeros=st.integers(0, 1))
@settings(max_examples=50, deadline=None)
def test_further_metrics_follow_their_formulas(metric, slow, x, zeros):
    x = x * np.r_[[1.0] * (x.shape[1] - zeros), [0.0] * zeros]
    np.testing.assert_allclose(by_name(metric, x), [slow(row.tolist()) for row in x], rtol=1e-9, atol=1e-12)


@given(x=rows, data=st.data())
@settings(max_examples=50, deadline=None)
def test_metrics_of_groups_follow_their_formulas(x, data):
    N = x.shape[1]
    groups = np.array([0, 5, *data.draw(st.lists(st.sampled_from((0, 5, 9)), min_size=N - 2, max_size=N - 2))])
    if data.draw(st.booleans()) and (groups != 0).any():
        x = np.where(groups == 0, 0.0, x)  # a group without gradient
    expected = np.transpose([slow_parts(row.tolist(), groups.tolist()) for row in x])
    found = theil_parts(x, groups)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.sum(found, axis=0), by_name("theil", x), rtol=1e-9, atol=1e-12)
    assert np.min(found) >= 0
    totals = [slow_gini(slow_totals(row.tolist(), groups.tolist())) for row in x]
    np.testing.assert_allclose(gini_of_totals(x, groups), totals, rtol=1e-9, atol=1e-12)


@given(x=rows)
def test_hoyer_ranks_as_cv_does_and_entropy_is_theils_index_of_squares(x):
    cv, root = coefficient_of_variation(x), np.sqrt(x.shape[1])
    np.testing.assert_allclose(by_name("hoyer", x), (root - root / np.sqrt(1 + cv**2)) / (root - 1), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(by_name("entropy", x) * np.log(x.shape[1]), by_name("theil", x**2), rtol=1e-9)
    spread = coefficient_of_variation(x**2) ** 2
    np.testing.assert_allclose(by_name("participation", x), spread / (1 + spread), rtol=1e-9)


@pytest.mark.parametrize("metric", [name for name in METRICS if name != "kurtosis"])
@given(x=rows)
def test_giving_to_the_largest_never_lowers_concentration(metric, x):
    """Of singletons as groups, so that all of them see the transfer; parts within groups are then 0."""
    places = np.arange(x.shape[1])
    rich, poor = x.argmax(axis=1), x.argmin(axis=1)
    after = x.copy()
    np.put_along_axis(after, rich[:, None], x.max(axis=1, keepdims=True) + x.min(axis=1, keepdims=True) / 2, axis=1)
    np.put_along_axis(after, poor[:, None], x.min(axis=1, keepdims=True) / 2, axis=1)
    before = by_name(metric, x, places)
    assert (by_name(metric, after, places) >= before - 1e-12).all()


@pytest.mark.parametrize("metric", FROM_ZERO)
@pytest.mark.parametrize("spread", [1e-4, 1e-6, 1e-8])
def test_small_spreads_are_measured_and_not_rounded_away(metric, spread):
    """To second order all are a multiple of the variance, so a spread of half the size has a quarter of the score."""
    step = np.array([[0.0, 1.0, -1.0, 2.0, -2.0, 1.0, 3.0, 0.5]])
    groups = np.arange(8) // 2
    wide, narrow = (by_name(metric, 1 + scale * step, groups)[0] for scale in (spread, spread / 2))
    assert wide > 0 and narrow / wide == pytest.approx(0.25, rel=1e-3 if spread == 1e-4 else 1e-6 + 1e-14 / spread)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_two_matrices_at_any_scale(scale):
    x = np.array([[3.0, 4.0]]) * scale
    expected = {
        "hoyer": (math.sqrt(2) - 7 / 5) / (math.sqrt(2) - 1),
        "participation": 1 - 625 / 337 / 2,
        "entropy": 1 + (0.36 * math.log2(0.36) + 0.64 * math.log2(0.64)),
        "theil": (6 / 7 * math.log(6 / 7) + 8 / 7 * math.log(8 / 7)) / 2,
        "top_tenth": 4 / 7,
        "gini_layers": 1 / 14,
    }
    found = {name: by_name(name, x)[0] for name in expected}
    assert found == pytest.approx(expected, rel=1e-9)
    assert by_name("theil_layers", x)[0] == pytest.approx(expected["theil"]) and by_name("theil_in_layers", x)[0] == 0


def test_one_group_alone_has_no_totals_to_compare():
    x = np.array([[1.0, 2.0, 3.0]])
    with pytest.raises(DataError, match="all matrices are of one layer or kind"):
        gini_of_totals(x, np.zeros(3, dtype=int))
    between, within = theil_parts(x, np.zeros(3, dtype=int))
    assert between[0] == 0 and within[0] == by_name("theil", x)[0]


def test_the_audit_page_has_every_metric_with_its_formula():
    table = Path("docs/audit.md").read_text().split("## The scores")[1].split("\n## ")[0]
    names, of_pass = (set(re.findall(r"^\| `(\w+)`", part, flags=re.MULTILINE)) for part in table.split("### Scores of the pass"))
    assert (names, of_pass) == (set(METRICS), set(PASS_SCORES))
    assert dict(re.findall(r"^\| `(\w+)` \| (.+?) \| ", table.split("### Scores of the pass")[0], flags=re.MULTILINE)) == FORMULAS


@given(rows)
def test_bounds(x):
    N = x.shape[1]
    assert (gini(x) >= 0).all()
    assert (gini(x) <= 1 - 1 / N + 1e-12).all()
    assert (coefficient_of_variation(x) <= np.sqrt(N - 1) + 1e-12).all()
    assert (kurtosis(x) >= -2 - 1e-9).all()
    tops = {"hoyer": 1, "participation": 1 - 1 / N, "entropy": 1, "theil": np.log(N), "top_tenth": 1}
    for metric, top in tops.items():
        scores = by_name(metric, x)
        assert (scores >= (math.ceil(N / 10) / N - 1e-12 if metric == "top_tenth" else 0)).all()
        assert (scores <= top + 1e-12).all()
        assert by_name(metric, np.eye(1, N))[0] == pytest.approx(top)


def test_known_values():
    x = np.array([[1.0, 2.0, 3.0, 4.0]])
    assert gini(x)[0] == pytest.approx(0.25)
    assert coefficient_of_variation(x)[0] == pytest.approx(np.sqrt(1.25) / 2.5)
    assert kurtosis(x)[0] == pytest.approx(2.5625 / 1.25**2 - 3)
    one = np.eye(1, 8) * 7
    assert gini(one)[0] == pytest.approx(1 - 1 / 8)
    assert coefficient_of_variation(one)[0] == pytest.approx(np.sqrt(7))


def test_float32_input_is_computed_in_float64():
    x = np.random.default_rng(0).random((3, 9), dtype=np.float32)
    for metric in METRICS:
        assert by_name(metric, x).dtype == np.float64
        np.testing.assert_array_equal(by_name(metric, x), by_name(metric, x.astype(np.float64)))


@pytest.mark.parametrize("value", [5e-324, 0.1, 1e-300, 1e300, 1.7e308])
def test_equal_entries_are_no_concentration(value):
    x = np.full((2, 7), value)
    np.testing.assert_array_equal(gini(x), 0)
    np.testing.assert_array_equal(coefficient_of_variation(x), 0)
    for metric in FROM_ZERO:
        np.testing.assert_array_equal(by_name(metric, x), 0)
    np.testing.assert_array_equal(by_name("top_tenth", x), 1 / 7)
    with pytest.raises(DataError, match=r"^row 0: all norms are equal, so its kurtosis is undefined"):
        kurtosis(x)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([0.0, 0.0, 0.0], "all norms are zero"),
        ([1.0, -1e-9, 2.0], "norm -1e-09 of matrix 1 is negative"),
        ([1.0, 2.0, np.nan], "norm nan of matrix 2 is not finite"),
        ([np.inf, 1.0, 2.0], "norm inf of matrix 0 is not finite"),
    ],
)
def test_bad_rows_are_named(metric, bad, words):
    x = np.array([[1.0, 2.0, 3.0], bad])
    with pytest.raises(UndefinedError, match=f"^row 1: {words}") as error:
        by_name(metric, x)
    assert error.value.row == 1 and error.value.why.startswith(words)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (0,), (2, 2, 2)])
def test_bad_shapes(shape):
    with pytest.raises(DataError, match="at least 2 matrices"):
        gini(np.ones(shape))


def test_no_rows_give_no_scores():
    for metric in METRICS:
        assert by_name(metric, np.ones((0, 5))).shape == (0,)


def test_a_probe_groups_its_norms_by_layer_and_by_kind(tmp_path):
    norms = make_probe(tmp_path / "probe")  # layers.0.0 to layers.1.6
    probe = Probe.load(tmp_path / "probe")
    square = norms.reshape(-1, 2, 7) ** 2
    layers, kinds = np.arange(14) // 7, np.arange(14) % 7
    np.testing.assert_allclose(probe.scores("gini_layers"), gini(np.sqrt(square.sum(axis=2))))
    np.testing.assert_allclose(probe.scores("gini_kinds"), gini(np.sqrt(square.sum(axis=1))))
    np.testing.assert_allclose(probe.scores("theil_layers"), theil_parts(norms, layers)[0])
    np.testing.assert_allclose(probe.scores("theil_in_kinds"), theil_parts(norms, kinds)[1])
    some = np.array([0, 3, 8, 10])  # kinds 0, 3, 1, 3 of layers 0, 0, 1, 1
    views = [View("theil_kinds", units=some), View("gini_layers", units=np.arange(7))]
    found = probe.views(views)
    np.testing.assert_allclose(found[:, 0], theil_parts(norms[:, some], kinds[some])[0])
    assert np.isnan(found[:, 1]).all()  # one layer


def test_a_metric_of_the_user_is_registered_and_checked(tmp_path):
    @METRICS.register("hoyer-test")
    def hoyer(norms):
        root = np.sqrt(norms.shape[1])
        return (root - norms.sum(axis=1) / np.linalg.norm(norms, axis=1)) / (root - 1)

    try:
        norms = make_probe(tmp_path / "probe")
        probe = Probe.load(tmp_path / "probe")
        np.testing.assert_allclose(probe.scores("hoyer-test"), hoyer(norms))
        assert "hoyer-test" in probe.measures(metrics=["hoyer-test"]).columns
        assert "hoyer-test" not in probe.measures().columns
        METRICS._known["hoyer-test"] = lambda norms: norms
        with pytest.raises(DataError, match=r"metric 'hoyer-test': gives shape .* it must give a finite number per row"):
            probe.scores("hoyer-test")
    finally:
        del METRICS._known["hoyer-test"]
