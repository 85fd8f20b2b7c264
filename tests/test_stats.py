from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize, signal, stats

from kdsearch.stats import (
    count_of,
    crossed,
    difference_from_one_run,
    holm,
    mean_exceeds,
    mean_interval,
    mean_upper_margin,
    median_interval,
    paired_upper_bound,
    proportion_interval,
    rank_agreement,
    sittings_interval,
    spread,
    told_apart,
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


NOISES = ("independent", "AR(0.7)", "sitting", "heavy-tailed sitting")


def sittings(noise: str, count: int, random: np.random.Generator, *, scale: float = 1.0) -> list[float]:
    """Ratios of a student whose true one is 1: medians of 15 pairs, in so many sittings."""
    found = []
    for _ in range(count):
        effect = 0.0
        errors = random.normal(0, 0.05, 15)
        if noise == "AR(0.7)":
            errors = signal.lfilter([math.sqrt(1 - 0.7**2)], [1, -0.7], random.normal(0, 0.05, 60))[-15:]
        elif noise == "sitting":
            effect = random.normal(0, 0.1)
        elif noise == "heavy-tailed sitting":
            effect = 0.06 * random.standard_t(3)
        found.append(math.exp(scale * (effect + float(np.median(errors)))))
    return found


def coverage(noise: str, counts: list[int], repeats: int, *, uneven: bool = False) -> float:
    """How often the 95 % interval of a student holds its ratio, over students of so many sittings each."""
    random = np.random.default_rng(15)
    hits = []
    for _ in range(repeats):
        students = [
            sittings(noise, count, random, scale=3.0 if uneven and index % 3 == 0 else 1.0)
            for index, count in enumerate(counts)
        ]
        pooled = spread(students)
        found = [sittings_interval(each, pooled) for each in students]
        hits += [each.low <= 1 <= each.high for each in found if each is not None]
    return float(np.mean(hits))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("students", [1, 2, 3, 10])
def test_the_interval_over_three_sittings_covers(noise: str, students: int):
    assert coverage(noise, [3] * students, 400 // students) >= 0.92


@pytest.mark.parametrize("noise", NOISES)
def test_it_covers_where_some_students_sat_once_and_some_are_noisier(noise: str):
    assert coverage(noise, [3, 3, 3, 3, 3, 1, 1, 1, 2], 50) >= 0.92
    assert coverage(noise, [3] * 9, 50, uneven=True) >= 0.90


def test_the_interval_of_one_sitting_does_not_cover_the_next_one():
    """What stood here before: the median of the pairs, with their order statistics."""
    random = np.random.default_rng(0)
    hits = []
    for _ in range(300):
        _, low, high = median_interval(list(np.exp(random.normal(0, 0.1) + random.normal(0, 0.05, 15))))
        hits.append(low <= 1 <= high)
    assert np.mean(hits) < 0.6


def test_students_lend_each_other_what_they_know_of_the_noise():
    random = np.random.default_rng(1)
    alone, together = [], []
    for _ in range(200):
        students = [sittings("sitting", 3, random) for _ in range(10)]
        for found, pooled in ((alone, None), (together, spread(students))):
            interval = sittings_interval(students[0], pooled)
            assert interval is not None
            found.append(math.log(interval.high / interval.low))
    assert np.mean(together) < 0.7 * np.mean(alone)


def test_alone_it_is_students_interval_of_log_ratios():
    ratios = [10.0, 12.0, 11.0, 15.0]
    logs = np.log(ratios)
    low, high = stats.t.interval(0.95, 3, loc=logs.mean(), scale=stats.sem(logs))
    for pooled in (None, spread([ratios]), spread([ratios, [7.0]])):
        found = sittings_interval(ratios, pooled)
        assert found is not None
        assert (found.mean, found.n) == (pytest.approx(stats.gmean(ratios)), 4)
        assert (found.low, found.high) == (pytest.approx(math.exp(low)), pytest.approx(math.exp(high)))


def test_a_single_sitting_has_an_interval_where_others_show_how_far_sittings_lie_apart():
    assert sittings_interval([10.0]) is None
    assert sittings_interval([10.0], spread([[10.0], [3.0]])) is None
    found = sittings_interval([10.0], spread([[5.0, 6.0], [5.0, 6.0, 5.5], [10.0]]))
    assert found is not None
    assert 0 < found.low < 10.0 < found.high


@given(st.lists(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=5), min_size=1, max_size=6), st.floats(0.01, 100.0))
def test_the_unit_of_a_ratio_does_not_matter(students: list[list[float]], factor: float):
    found = [sittings_interval(each, spread(students)) for each in students]
    scaled = [[factor * ratio for ratio in each] for each in students]
    for one, other in zip(found, (sittings_interval(each, spread(scaled)) for each in scaled), strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.low <= one.mean <= one.high
            for name in ("low", "mean", "high"):
                assert getattr(other, name) == pytest.approx(factor * getattr(one, name), rel=1e-6)


def test_ratios_are_told_apart_when_their_quotient_leaves_out_1():
    assert not told_apart((705.0, 650.0, 760.0), (701.0, 660.0, 740.0))
    assert told_apart((705.0, 650.0, 760.0), (350.0, 340.0, 360.0))
    # the intervals overlap, and still the quotient's does not hold 1: 10 % each way, 15 % apart
    assert told_apart((115.0, 105.0, 126.0), (100.0, 91.0, 110.0))
    assert not told_apart((2.0, 2.0, 2.0), (2.0, 2.0, 2.0))
    assert told_apart((2.0, 2.0, 2.0), (2.1, 2.1, 2.1))  # counted operations have no noise


def test_equal_students_are_told_apart_as_rarely_as_promised():
    random = np.random.default_rng(2)
    wrong = []
    for _ in range(300):
        students = [sittings("sitting", 3, random) for _ in range(8)]
        pooled = spread(students)
        one, other = (sittings_interval(each, pooled) for each in students[:2])
        assert one is not None
        assert other is not None
        wrong.append(told_apart((one.mean, one.low, one.high), (other.mean, other.low, other.high)))
    assert np.mean(wrong) <= 0.05


@given(*[st.lists(st.floats(0.0, 1.0), min_size=2, max_size=8)] * 2)
def test_a_mean_exceeds_another_where_welchs_interval_lies_above_0(ours: list[float], theirs: list[float]):
    assume(min(np.std(ours), np.std(theirs)) > 1e-3)
    found = mean_exceeds(mean_interval(ours), mean_interval(theirs))
    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assume(abs(interval.low) > 1e-6)
    assert found == (interval.low > 0)


def test_means_without_spread_say_nothing():
    assert not mean_exceeds(mean_interval([0.9, 0.9]), mean_interval([0.1, 0.2]))


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
    shares = [hit % (count + 1) / count for hit in hits]
    found = count_of(shares)
    assert (found is None) == all(share in (0, 1) for share in shares)
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
    found = holm(values, tests=len(values))
    assert all(a >= b for a, b in zip(found, values, strict=True))
    assert min(found) == pytest.approx(min(1.0, len(values) * min(values)))
    assert sorted(found) == [found[i] for i in sorted(range(len(values)), key=lambda i: values[i])]
    assert holm(values, tests=len(values) + 3)[0] >= found[0]


def test_the_interval_of_two_one_sided_tests_is_the_narrower_one():
    found = crossed([[0.1, 0.4, 0.2, 0.6]])
    wide, narrow = found.interval(), found.interval(0.9)
    assert (narrow.high - narrow.mean) / (wide.high - wide.mean) == pytest.approx(
        stats.t.ppf(0.95, 3) / stats.t.ppf(0.975, 3)
    )
