from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdsearch.stats import difference_from_one_run, mean_interval, median_interval, proportion_interval


def test_the_median_and_its_order_statistics():
    # Conover's table for n = 15: the 4th smallest and the 4th largest value
    assert median_interval([float(v) for v in range(15, 0, -1)]) == (8, 4, 12)


@pytest.mark.parametrize("n", range(6, 80))
def test_the_interval_is_the_narrowest_that_covers_95_percent(n):
    _, low, high = median_interval([float(value) for value in range(1, n + 1)])
    k = int(low)
    assert high == n + 1 - k
    # the median lies below the k-th smallest of n values if fewer than k fall below it
    assert 1 - 2 * stats.binom.cdf(k - 1, n, 0.5) >= 0.95
    assert 1 - 2 * stats.binom.cdf(k, n, 0.5) < 0.95


def test_of_a_skewed_distribution_the_median_is_covered_as_often_as_promised():
    draws = np.random.default_rng(0).lognormal(size=(2000, 15))
    covered = [low <= 1.0 <= high for _, low, high in (median_interval(list(row)) for row in draws)]
    assert np.mean(covered) >= 0.95


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_the_interval_holds_the_median_and_knows_no_order(values, random):
    median, low, high = median_interval(values)
    assert min(values) <= low <= median <= high <= max(values)
    shuffled = values[:]
    random.shuffle(shuffled)
    assert median_interval(shuffled) == (median, low, high)


def test_below_six_values_the_interval_is_the_range():
    assert median_interval([3.0]) == (3, 3, 3)
    assert median_interval([5.0, 1.0, 2.0, 4.0, 3.0]) == (3, 1, 5)


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=20))
def test_the_mean_has_students_interval(values):
    found = mean_interval(values)
    assert (found.mean, found.n) == (pytest.approx(np.mean(values)), len(values))
    if np.std(values) > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    else:
        assert found.low == pytest.approx(found.high, abs=1e-6)


def test_one_value_has_no_interval_of_its_mean():
    with pytest.raises(ValueError, match=r"two values or more \(got 1\)"):
        mean_interval([0.5])


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (9597, 10_000), (3, 7)])
def test_a_proportion_has_wilsons_interval(hits, count):
    found = proportion_interval(hits / count, count)
    expected = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert (found.mean, found.n) == (hits / count, count)
    assert (found.low, found.high) == (pytest.approx(expected.low, abs=1e-9), pytest.approx(expected.high, abs=1e-9))


def test_a_published_run_of_the_same_spread_is_inside_as_often_as_promised():
    draws = np.random.default_rng(0).normal(0.9, 0.01, size=(4000, 6))
    inside = []
    for *ours, published in draws:
        found = difference_from_one_run(ours, published, 10_000)
        inside.append(found.low <= 0 <= found.high)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.01)


def test_one_run_against_one_published_run_differs_by_what_test_images_tell():
    found = difference_from_one_run([0.95], 0.96, 10_000)
    assert (found.mean, found.n) == (pytest.approx(-0.01), 1)
    half = 1.959964 * math.sqrt((0.95 * 0.05 + 0.96 * 0.04) / 10_000)
    assert (found.low, found.high) == (pytest.approx(-0.01 - half), pytest.approx(-0.01 + half))
