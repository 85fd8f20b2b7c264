from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from kdsearch.stats import (
    count_of,
    crossed,
    difference_from_one_run,
    holm,
    mean_interval,
    mean_upper_margin,
    median_interval,
    paired_upper_bound,
    proportion_interval,
    rank_agreement,
    unpaired_upper_bound,
)


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


def test_tangos_bound_is_that_of_his_paper():
    # his crossover trial of soft contact lenses: 44 patients, 43 + 1 + 0 + 0, 90 % interval of p12 - p21
    assert paired_upper_bound(1, 0, 44) == pytest.approx(0.0960, abs=0.0005)


@pytest.mark.parametrize(("first", "second", "count"), [(10, 10, 100), (30, 12, 400), (0, 7, 360), (5, 0, 360)])
def test_the_paired_bound_is_where_the_score_test_with_its_likeliest_nuisance_turns(first, second, count):
    bound = paired_upper_bound(first, second, count)

    def surprise(share: float) -> float:  # multinomial, the first alone right with probability share + bound
        both = 1 - 2 * share - bound
        return -(stats.multinomial.logpmf([first, second, count - first - second], count, [share + bound, share, both]))

    likely = optimize.minimize_scalar(surprise, bounds=(0, (1 - bound) / 2), method="bounded", options={"xatol": 1e-10})
    error = math.sqrt((2 * likely.x + bound - bound**2) / count)
    assert (bound - (first - second) / count) / error == pytest.approx(stats.norm.ppf(0.95), rel=1e-3)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 500))
def test_the_paired_bound_lies_above_the_estimate_and_answers_to_each_case(first, second, same):
    count = first + second + same + 1
    bound = paired_upper_bound(first, second, count)
    assert (first - second) / count <= bound <= 1
    assert paired_upper_bound(first, second + 1, count) <= bound + 1e-9
    assert paired_upper_bound(first + 1, second, count) >= bound - 1e-9


@pytest.mark.parametrize(
    ("count", "only_first", "only_second"), [(300, 0.01, 0.01), (300, 0.04, 0.02), (2000, 0.008, 0.003), (360, 0.2, 0)]
)
def test_the_paired_bound_covers_as_often_as_promised(count, only_first, only_second):
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(count, [only_first, only_second, 1 - only_first - only_second], size=3000)
    kinds, times = np.unique(drawn[:, :2], axis=0, return_counts=True)
    above = [paired_upper_bound(first, second, count) >= only_first - only_second for first, second in kinds.tolist()]
    assert 0.94 <= np.average(above, weights=times) <= 0.985  # counts are whole: it cannot be exact


def test_the_unpaired_bound_covers_what_is_paired():
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(500, [0.9, 0.05, 0.02, 0.03], size=1000)  # both, first alone, second alone, neither
    bounds = [unpaired_upper_bound((a + b) / 500, (a + c) / 500, 500) for a, b, c, _ in drawn.tolist()]
    paired = [paired_upper_bound(b, c, 500) for _, b, c, _ in drawn.tolist()]
    assert np.mean(np.array(bounds) >= 0.03) >= 0.95
    assert np.mean(paired) < np.mean(bounds)


@given(st.integers(2, 60_000), st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_the_fewest_cases_of_shares_divide_their_true_number(count, hits):
    found = count_of([hit % (count + 1) / count for hit in hits])
    assert found is None or count % found == 0
    assert count_of([1 / count, 0.5 / count + 1e-9 * math.pi]) is None
    assert count_of([1.0, 0.0, math.nan]) is None


def test_a_mean_of_seeds_has_students_margin():
    values = [0.9, 0.92, 0.91]
    expected = stats.t.ppf(0.95, 2) * stats.sem(values)
    assert mean_upper_margin(values) == pytest.approx(expected)
    assert mean_upper_margin([0.9]) == 0


def test_the_order_of_rows_that_agree_and_that_are_noise():
    rows = [[90.0, 90.1], [92.0, 92.2], [95.0, 95.1], [97.0, 97.1]]
    same = rank_agreement(rows, [80.0, 81.0, 82.0, 83.0], spread=[0.1] * 4)
    assert (same.mean, same.low, same.n) == (1.0, 1.0, 4)
    assert rank_agreement(rows, [83.0, 82.0, 81.0, 80.0], spread=[0.1] * 4).mean == -1
    blurred = rank_agreement(rows, [80.0, 81.0, 82.0, 83.0], spread=[5.0] * 4)
    assert blurred.low < 0.5 < blurred.high
    with pytest.raises(ValueError, match="three items or more"):
        rank_agreement(rows[:2], [1.0, 2.0], spread=[0.1, 0.1])


def test_two_one_sided_tests_are_wrong_as_seldom_as_promised():
    # the published run lies exactly at the margin: equivalence must not be found in more than 5 %
    draws = np.random.default_rng(1).normal(0.9, 0.001, size=(4000, 6))
    wrong = []
    for *ours, published in draws:
        found = difference_from_one_run(ours, published + 0.005, 10_000, confidence=0.9)
        wrong.append(found.low > -0.005 and found.high < 0.005)
    assert np.mean(wrong) == pytest.approx(0.05, abs=0.012)


def test_an_interval_over_teachers_seeds_and_images_covers_as_often_as_promised():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(800):
        teachers, seeds, images = rng.normal(0, 0.5, 5), rng.normal(0, 0.3, 5), rng.normal(0, 6.0, 300)
        rest = rng.normal(0, 0.2, (5, 5))
        rows = teachers[:, None] + seeds[None] + rest + images.mean() + 1.0
        found = crossed(rows.tolist(), images.std(ddof=1) / math.sqrt(300)).interval()
        inside.append(found.low <= 1.0 <= found.high)
    assert 0.93 <= np.mean(inside) <= 0.99


def test_one_teacher_without_images_has_students_interval():
    values = [0.1, 0.4, 0.2, 0.6]
    expected = mean_interval(values)
    found = crossed([values]).interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert crossed([values]).above(0.0) == pytest.approx(stats.ttest_1samp(values, 0, alternative="greater").pvalue)
    with pytest.raises(ValueError, match="two values or more"):
        crossed([[1.0]])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holms_values_are_those_of_the_steps(values):
    found = holm(values)
    assert all(a >= b for a, b in zip(found, values, strict=True))
    assert min(found) == pytest.approx(min(1.0, len(values) * min(values)))
    assert sorted(found) == [found[i] for i in sorted(range(len(values)), key=lambda i: values[i])]
    assert holm(values, tests=len(values) + 3)[0] >= found[0]
