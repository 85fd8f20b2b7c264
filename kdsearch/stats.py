"""Intervals of 95 % for medians, ratios over sittings, means over seeds, proportions, and differences from one run."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

CONFIDENCE = 0.95
MOST_CASES = 1_000_000
DRAWS = 1000  # of a bootstrap
PRIOR_DEGREES = 4  # upper limit of the degrees of freedom that a student borrows from others (see `sittings_interval`)
NORMAL = statistics.NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)  # 1.96
TWO_TESTS = 0.9  # confidence of the interval equivalent to two one-sided tests at 5 % each (Schuirmann 1987)
ONE_SIDED = statistics.NormalDist().inv_cdf(CONFIDENCE)  # 1.64


@dataclass(frozen=True)
class Interval:
    """An estimate, `mean`, its 95 % interval, and the number of values it rests on."""

    mean: float
    low: float
    high: float
    n: int


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and its distribution-free interval of at least 95 %, from order statistics.

    export/device_script.py, which runs alone on a device, has a copy.

    The interval runs from the k-th smallest to the k-th largest value, k the largest with
    2 P(Binomial(n, 1/2) < k) <= 0.05 (Conover, Practical Nonparametric Statistics, section 3.2). Below 6 values no
    such k exists, and the range is returned.

    Args:
        values: at least one.

    Returns:
        median, low, high.
    """
    ordered = sorted(values)
    n = len(ordered)
    tails = itertools.accumulate(math.comb(n, k) / 2**n for k in range(n // 2))
    k = max(1, sum(2 * tail <= 1 - CONFIDENCE for tail in tails))
    return statistics.median(ordered), ordered[k - 1], ordered[n - k]


@cache
def student_t(degrees: float, confidence: float = CONFIDENCE) -> float:
    """Return the two-sided quantile of Student's t distribution."""
    from scipy.stats import t

    return float(t.ppf(0.5 + confidence / 2, degrees))


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of values, one a seed, with Student's t interval.

    Raises:
        ValueError: there are fewer than two.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"an interval of a mean needs two values or more (got {n})")
    mean = statistics.fmean(values)
    half = student_t(n - 1) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def mean_exceeds(better: Interval, worse: Interval) -> bool:
    """Return whether one mean of runs exceeds another significantly: Welch's two-sided test at 5 %.

    Both are from `mean_interval`, of at least two runs each. False if either has no spread.
    """
    from scipy.stats import ttest_ind_from_stats

    deviations = [(each.high - each.low) / 2 / student_t(each.n - 1) * math.sqrt(each.n) for each in (better, worse)]
    if not min(deviations) > 0:
        return False
    test = ttest_ind_from_stats(
        better.mean, deviations[0], better.n, worse.mean, deviations[1], worse.n, equal_var=False
    )
    return bool(better.mean > worse.mean and test.pvalue < 1 - CONFIDENCE)


@dataclass(frozen=True)
class Spread:
    """How far the sittings of one student's timing lie apart, pooled over all students of a study.

    This is the variance of the log ratios within a student, with its degrees of freedom.
    """

    variance: float
    degrees: int


def spread(groups: Iterable[Sequence[float]]) -> Spread:
    """Return the pooled spread of students' ratios, one per sitting, all above 0; a single sitting has none."""
    several = [[math.log(ratio) for ratio in group] for group in groups if len(group) > 1]
    degrees = sum(len(logs) - 1 for logs in several)
    squares = sum((len(logs) - 1) * statistics.variance(logs) for logs in several)
    return Spread(squares / degrees if degrees else 0.0, degrees)


def sittings_interval(ratios: Sequence[float], pooled: Spread | None = None) -> Interval | None:
    """Return the geometric mean of a ratio over sittings with its 95 % interval; None if their spread is unknown.

    Student's t over log ratios, one value per sitting: pairs within a sitting share its disturbance, so their number
    does not count. Three sittings alone leave two degrees of freedom and t = 4.3. The variance is therefore moderated
    by that of the study's other students, s^2 = (d0 s0^2 + d s^2) / (d0 + d) with d0 + d degrees of freedom: the
    moderated t of Smyth, Statistical Applications in Genetics and Molecular Biology 3(1), 2004. d0 is the others'
    degrees, at most `PRIOR_DEGREES`: in simulations of few students with unequal noise, Smyth's estimate of d0 from the
    variances covered 90 to 92 %, this limit 93 % and more. A student with one sitting uses the others' variance alone.

    Args:
        ratios: of one student, one per sitting, at least one, all above 0.
        pooled: spread over all students of the study, this one included; None if there are no others.
    """
    if len(ratios) > 1 and min(ratios) == max(ratios):
        return Interval(ratios[0], ratios[0], ratios[0], len(ratios))  # counted, not timed: exact, without rounding
    logs = [math.log(ratio) for ratio in ratios]
    own = len(logs) - 1
    variance = statistics.variance(logs) if own else 0.0
    others = min(PRIOR_DEGREES, pooled.degrees - own) if pooled else 0
    degrees = own + max(0, others)
    if not degrees:
        return None
    if pooled and others > 0:
        variance = (others * pooled.variance + own * variance) / degrees
    middle = statistics.fmean(logs)
    half = student_t(degrees) * math.sqrt(variance / len(logs))
    return Interval(math.exp(middle), math.exp(middle - half), math.exp(middle + half), len(logs))


def told_apart(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
    """Return whether two ratios differ beyond their noise: the 95 % interval of their quotient excludes 1.

    The interval is recovered from those of the two ratios on the log scale: the squares of the half widths that face
    each other add up (MOVER; Zou and Donner, Statistics in Medicine 27, 2008).

    Args:
        one, other: (ratio, low, high), all above 0; an interval of width 0 is exact.
    """
    slower, faster = sorted((one, other))
    gap = math.log(faster[0] / slower[0])
    noise = math.hypot(math.log(faster[0] / faster[1]), math.log(slower[2] / slower[0]))
    return gap > noise


def proportion_interval(share: float, count: int) -> Interval:
    """Return a proportion, in [0, 1], of at least one item, with Wilson's score interval."""
    from scipy.stats import binomtest

    found = binomtest(round(share * count), count).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(share, min(float(found.low), share), max(float(found.high), share), count)


def difference_from_one_run(
    values: Sequence[float], published: float, count: int, *, confidence: float = CONFIDENCE
) -> Interval:
    """Return the mean of our runs minus a published figure from one run, with an interval that covers that run's noise.

    With several runs of ours it is Student's prediction interval, mean - published +- t s sqrt(1 + 1/n), which assumes
    that the published run has the spread of ours. A single run has no spread: then it is the interval of the difference
    of two proportions of `count` test images each.

    Args:
        values: accuracies of our runs, fractions, at least one.
        published: accuracy of the published run, a fraction.
        count: number of test images.
        confidence: of the interval; 0.9 gives two one-sided tests of equivalence at 5 % each.
    """
    n = len(values)
    mean = statistics.fmean(values)
    if n == 1:
        normal = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
        half = normal * math.sqrt((mean * (1 - mean) + published * (1 - published)) / count)
    else:
        half = student_t(n - 1, confidence) * statistics.stdev(values) * math.sqrt(1 + 1 / n)
    return Interval(mean - published, mean - published - half, mean - published + half, n)


def paired_upper_bound(only_first: float, only_second: float, count: int) -> float:
    """Return the one-sided 95 % upper bound of p1 - p2 for two proportions of the same cases: Tango's score bound.

    Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
    Statistics in Medicine 17 (1998): the largest difference d that a one-sided score test does not reject, with the
    nuisance proportion at its maximum likelihood under d. Unlike the normal interval of a difference it does not
    collapse where few cases differ. Cases where both are right and where both are wrong enter only through `count`.

    Args:
        only_first, only_second: number of cases where the first alone, or the second alone, is right; fractions are
            allowed, for means of several counts.
        count: number of all cases, at least 1.

    Returns:
        In [-1, 1], never below the estimate (only_first - only_second) / count.
    """
    gap = only_first - only_second

    def score(difference: float) -> float:
        b = (2 * count - gap) * difference - only_first - only_second
        c = -only_second * difference * (1 - difference)
        likely = (math.sqrt(max(0.0, b * b - 8 * count * c)) - b) / (4 * count)  # P(second alone right)
        variance = count * (2 * likely + difference * (1 - difference))
        return (gap - count * difference) / math.sqrt(variance) if variance > 0 else -math.inf

    low, high = gap / count, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > -ONE_SIDED else (low, middle)
    return high


def unpaired_upper_bound(first: float, second: float, count: int) -> float:
    """Return the one-sided 95 % upper bound of p1 - p2 if the paired counts are unknown: Newcombe's hybrid score bound.

    Method 10 of Newcombe, "Interval estimation for the difference between independent proportions", Statistics in
    Medicine 17 (1998), which treats the two sets of cases as independent although they are the same: agreement between
    them narrows the true interval, so the bound is valid and conservative.

    Args:
        first, second: proportions.
        count: number of cases of each, at least 1.
    """
    above, below = _wilson(first, count, ONE_SIDED)[1] - first, second - _wilson(second, count, ONE_SIDED)[0]
    return min(1.0, first - second + math.hypot(above, below))


def mean_upper_margin(values: Sequence[float]) -> float:
    """Return the distance from a mean to its one-sided 95 % upper bound by Student's t; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    return student_t(len(values) - 1, TWO_TESTS) * statistics.stdev(values) / math.sqrt(len(values))


@dataclass(frozen=True)
class Crossed:
    """A mean over `n` pairs of teacher and seed, with its standard error and the error's degrees of freedom."""

    mean: float
    error: float  # 0 if there is no spread
    degrees: float
    n: int

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Return Student's t interval."""
        half = student_t(self.degrees, confidence) * self.error
        return Interval(self.mean, self.mean - half, self.mean + half, self.n)

    def above(self, margin: float) -> float:
        """Return the one-sided p value of the test that the mean exceeds a margin; 1 - p is that of being below it."""
        from scipy.stats import t

        if self.error == 0:
            return 0.0 if self.mean > margin else 1.0 if self.mean < margin else 0.5
        return float(t.sf((self.mean - margin) / self.error, self.degrees))


def crossed(rows: Sequence[Sequence[float]], images_error: float = 0.0) -> Crossed:
    """Return the mean of differences over teachers, seeds and test images, each crossed with the others.

    Its variance is the sum of those that bootstraps over teachers, over seeds and over images each give in the limit
    (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007: the sum is conservative by their
    interactions), with n / (n - 1) for few draws, and Satterthwaite's degrees of freedom. A single teacher has no
    spread between teachers: then the interval holds for that teacher alone.

    Args:
        rows: (teachers, seeds), at least two values in all.
        images_error: standard error of the mean over test images; 0 leaves it out.

    Raises:
        ValueError: there are fewer than two values.
    """
    values = [value for row in rows for value in row]
    if len(values) < 2:
        raise ValueError(f"an interval of a mean needs two values or more (got {len(values)})")
    sides = [[statistics.fmean(row) for row in rows], [statistics.fmean(column) for column in zip(*rows, strict=True)]]
    parts = [(statistics.variance(side) / len(side), len(side) - 1) for side in sides if len(side) > 1]
    whole = sum(part for part, _ in parts) + images_error**2
    slack = sum(part**2 / degrees for part, degrees in parts)
    degrees = whole**2 / slack if slack > 0 else math.inf
    return Crossed(statistics.fmean(values), math.sqrt(whole), min(degrees, 1e6), len(values))


def holm(values: Sequence[float], *, tests: int) -> list[float]:
    """Return p values adjusted for multiple tests, step-down (Holm, Scandinavian Journal of Statistics 6, 1979).

    Args:
        values: p of each test, in any order.
        tests: size of the family, at least as many as there are values: some of its tests may not have been run.
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    steps = itertools.accumulate((min(1.0, (tests - rank) * values[i]) for rank, i in enumerate(order)), max)
    return [adjusted for _, adjusted in sorted(zip(order, steps, strict=True))]


def rank_agreement(ours: Sequence[Sequence[float]], theirs: Sequence[float], *, spread: Sequence[float]) -> Interval:
    """Return Kendall's tau-b between the order of our means and of single figures, with a 95 % bootstrap interval.

    Kendall, "A new measure of rank correlation", Biometrika 30 (1938). Each draw resamples our runs with replacement
    and adds the noise of one run to the single figures; the interval holds the middle 95 % of the draws' tau. Noise
    weakens an order, so the interval may lie below the estimate. The draws are seeded: equal figures give equal
    intervals.

    Args:
        ours: runs of each item, at least one.
        theirs: one figure an item, as many.
        spread: standard deviation of one run of each item.

    Raises:
        ValueError: there are fewer than three items, or all values of one side are equal.
    """
    import numpy as np
    from scipy.stats import kendalltau

    averages = [statistics.fmean(runs) for runs in ours]
    if len(ours) < 3 or len(set(averages)) < 2 or len(set(theirs)) < 2:
        raise ValueError(f"an order needs three items or more that are not all equal (got {len(ours)})")
    rng = np.random.default_rng(0)
    tau = float(kendalltau(averages, theirs).statistic)
    drawn = []
    for _ in range(DRAWS):
        means = [
            rng.choice(runs, len(runs)).mean() + (rng.normal(0, deviation) if len(runs) == 1 else 0.0)
            for runs, deviation in zip(ours, spread, strict=True)
        ]
        drawn.append(kendalltau(means, rng.normal(theirs, spread)).statistic)
    low, high = np.nanquantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    return Interval(tau, low, high, len(ours))


def count_of(shares: Iterable[float]) -> int | None:
    """Return the fewest cases that all these proportions can be shares of: a divisor of their true number.

    None if they are not fractions of up to a million cases, or carry no information (all 0 or 1, or NaN).
    """
    least = 1
    for share in {share for share in shares if not math.isnan(share)}:
        fraction = Fraction(share).limit_denominator(MOST_CASES)
        least = math.lcm(least, fraction.denominator)
        if abs(fraction - Fraction(share)) > 1e-12 or least > MOST_CASES:
            return None
    return least if least > 1 else None


def _wilson(share: float, count: int, z: float) -> tuple[float, float]:
    """Return Wilson's interval of a share that may be a mean over seeds; `scipy.stats.binomtest` takes whole counts."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    return min(middle - half, share), max(middle + half, share)
