"""Intervals of 95 %: of a median, a mean over seeds, a proportion, and of what a published single run differs by."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

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


def proportion_interval(share: float, count: int) -> Interval:
    """A proportion with Wilson's score interval (Wilson, JASA 22, 1927).

    Args:
        share: in [0, 1].
        count: how many it is a share of, at least 1.
    """
    z2 = NORMAL**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = NORMAL * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return Interval(share, min(middle - half, share), max(middle + half, share), count)


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
