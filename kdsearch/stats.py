"""Intervals of 95 %: of a median, a ratio over sittings, a mean over seeds, a proportion, a difference to one run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.95
NORMAL = statistics.NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)  # 1.96


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval.

    Attributes:
        mean: the estimate.
        low, high: ends of the interval.
        n: how many values it is from.
    """

    mean: float
    low: float
    high: float
    n: int


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and its distribution-free interval of at least 95 % from order statistics.

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
    k, tail = 0, 0.0
    while k < n // 2:
        tail += math.comb(n, k) / 2**n
        if 2 * tail > 1 - CONFIDENCE:
            break
        k += 1
    k = max(k, 1)
    return statistics.median(ordered), ordered[k - 1], ordered[n - k]


@cache
def student_t(degrees: int) -> float:
    """The two-sided 95 % quantile of Student's t with so many degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf(0.5 + CONFIDENCE / 2, degrees))


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean with Student's t interval.

    Args:
        values: at least two, one a seed.

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
    """Whether a mean of runs lies above another one beyond chance: Welch's two-sided test at 5 %.

    Args:
        better, worse: of `mean_interval`, of two runs or more each; where one shows no spread the answer is False.
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
    """How far the sittings of one student's timing lie apart, over all students of a study.

    Attributes:
        variance: of log ratios within a student, pooled.
        degrees: of freedom that it has.
    """

    variance: float
    degrees: int


PRIOR_DEGREES = 4
"""At most so many degrees of freedom are lent to a student by the others (see `sittings_interval`)."""


def spread(groups: Iterable[Sequence[float]]) -> Spread:
    """The pooled variance of the log ratios of students that sat twice or more.

    Args:
        groups: the ratios of each student, one a sitting, all above 0.
    """
    several = [[math.log(ratio) for ratio in group] for group in groups if len(group) > 1]
    degrees = sum(len(logs) - 1 for logs in several)
    squares = sum((len(logs) - 1) * statistics.variance(logs) for logs in several)
    return Spread(squares / degrees if degrees else 0.0, degrees)


def sittings_interval(ratios: Sequence[float], pooled: Spread | None = None) -> Interval | None:
    """The geometric mean of a ratio over sittings with its 95 % interval; None where nothing tells how they spread.

    Student's t over log ratios, one value a sitting: pairs within a sitting share its disturbance, so their number
    does not count. Three sittings alone leave two degrees of freedom and t = 4.3. The variance is therefore moderated
    by that of the study's other students, s^2 = (d0 s0^2 + d s^2) / (d0 + d) with d0 + d degrees of freedom: the
    moderated t of Smyth, Statistical Applications in Genetics and Molecular Biology 3(1), 2004. d0 is the others'
    degrees, at most `PRIOR_DEGREES`: Smyth's estimate of d0 from the variances covered 90 to 92 % in simulations of few
    students whose noise differs, this 93 % and more. A student that sat once has the others' variance alone.

    Args:
        ratios: of one student, one a sitting, at least one, all above 0.
        pooled: of all students of the study, this one included; None: there are no others.
    """
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
    """Whether two ratios differ beyond their noise: the 95 % interval of their quotient leaves out 1.

    That interval is recovered from the two of the ratios, on the log scale: the squares of the half widths that face
    each other add up (Zou and Donner, Statistics in Medicine 27, 2008: MOVER).

    Args:
        one, other: ratio, low, high, all above 0; an interval without width is exact.
    """
    slower, faster = sorted((one, other))
    gap = math.log(faster[0] / slower[0])
    noise = math.hypot(math.log(faster[0] / faster[1]), math.log(slower[2] / slower[0]))
    return gap > noise


def proportion_interval(share: float, count: int) -> Interval:
    """A proportion with Wilson's score interval.

    Args:
        share: in [0, 1], of whole items.
        count: how many it is a share of, at least 1.
    """
    from scipy.stats import binomtest

    found = binomtest(round(share * count), count).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(share, min(float(found.low), share), max(float(found.high), share), count)


def difference_from_one_run(values: Sequence[float], published: float, count: int) -> Interval:
    """Mean of our runs minus a published figure that is one run, with the interval that one run's noise leaves.

    With several runs it is Student's prediction interval, mean - published +- t s sqrt(1 + 1/n), as if the published
    run had our runs' spread. One run shows no spread: then it is the interval of the difference of two proportions of
    `count` test images each.

    Args:
        values: accuracies of our runs, fractions, at least one.
        published: accuracy of the published run, a fraction.
        count: test images.
    """
    n = len(values)
    mean = statistics.fmean(values)
    if n == 1:
        half = NORMAL * math.sqrt((mean * (1 - mean) + published * (1 - published)) / count)
    else:
        half = student_t(n - 1) * statistics.stdev(values) * math.sqrt(1 + 1 / n)
    return Interval(mean - published, mean - published - half, mean - published + half, n)
