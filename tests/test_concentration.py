from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradprism.concentration import METRICS, UndefinedError, coefficient_of_variation, gini, kurtosis
from gradprism.probing.result import Probe
from gradprism.runtime.errors import DataError
from helpers.probes import make_probe

# Rows with a clear spread, so that rounding in the *input* does not decide the result.
entries = st.floats(min_value=1e-3, max_value=1e3)
rows = hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 40)), elements=entries).filter(
    lambda x: bool((np.ptp(x, axis=1) > 1e-3).all())
)


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
    np.testing.assert_array_equal(METRICS[metric](np.ldexp(x, exponent)), METRICS[metric](x))


@pytest.mark.parametrize("metric", METRICS)
@given(x=rows, scale=st.floats(1e-6, 1e6))
def test_scale_invariance_for_any_factor(metric, x, scale):
    np.testing.assert_allclose(METRICS[metric](x * scale), METRICS[metric](x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@given(x=rows, seed=st.integers(0, 2**32 - 1))
def test_permutation_invariance(metric, x, seed):
    shuffled = np.random.default_rng(seed).permuted(x, axis=1)
    np.testing.assert_allclose(METRICS[metric](shuffled), METRICS[metric](x), rtol=1e-9, atol=1e-9)


@given(rows)
def test_bounds(x):
    N = x.shape[1]
    assert (gini(x) >= 0).all()
    assert (gini(x) <= 1 - 1 / N + 1e-12).all()
    assert (coefficient_of_variation(x) <= np.sqrt(N - 1) + 1e-12).all()
    assert (kurtosis(x) >= -2 - 1e-9).all()


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
    for metric in METRICS.values():
        assert metric(x).dtype == np.float64
        np.testing.assert_array_equal(metric(x), metric(x.astype(np.float64)))


@pytest.mark.parametrize("value", [5e-324, 0.1, 1e-300, 1e300, 1.7e308])
def test_equal_entries_are_no_concentration(value):
    x = np.full((2, 7), value)
    np.testing.assert_array_equal(gini(x), 0)
    np.testing.assert_array_equal(coefficient_of_variation(x), 0)
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
        METRICS[metric](x)
    assert error.value.row == 1 and error.value.why.startswith(words)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (0,), (2, 2, 2)])
def test_bad_shapes(shape):
    with pytest.raises(DataError, match="at least 2 matrices"):
        gini(np.ones(shape))


def test_no_rows_give_no_scores():
    for metric in METRICS.values():
        assert metric(np.ones((0, 5))).shape == (0,)


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
