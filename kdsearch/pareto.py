"""Dominance, front and hypervolume of points whose coordinates are all to be maximised."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = Sequence[float]


def dominates(a: Point, b: Point) -> bool:
    """Whether `a` is at least as good as `b` everywhere and better somewhere (Pareto dominance).

    A point with a NaN dominates nothing and is dominated by every point without one.

    Raises:
        ValueError: the points differ in length.
    """
    if len(a) != len(b):
        raise ValueError(f"points must have equal length (got {len(a)} and {len(b)})")
    if any(map(math.isnan, a)):
        return False
    if any(map(math.isnan, b)):
        return True
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))


def front(points: Sequence[Point]) -> list[int]:
    """Indices, ascending, of the points that no other dominates; equal points are all kept, NaN never."""
    valid = [i for i, p in enumerate(points) if not any(map(math.isnan, p))]
    return [i for i in valid if not any(dominates(points[j], points[i]) for j in valid)]


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area that the points dominate, down to the reference point (two objectives, both maximised).

    Zitzler and Thiele, "Multiobjective optimization using evolutionary algorithms", PPSN 1998. Points that do not
    exceed the reference in both coordinates, and points with a NaN, add nothing. O(n log n).
    """
    x0, y0 = reference
    area, y_top = 0.0, y0
    for x, y in sorted((p for p in points if p[0] > x0 and p[1] > y0), reverse=True):
        if y > y_top:
            area += (x - x0) * (y - y_top)
            y_top = y
    return area


def study_hypervolume(points: Sequence[tuple[float, float]], classes: int) -> float:
    """Hypervolume of (accuracy, ratio) points as this project defines it.

    Taken over (accuracy, log10 ratio) from the reference point (chance level 1 / classes, ratio 1).

    Args:
        points: (accuracy as a fraction, teacher time / student time).
        classes: number of classes.
    """
    logs = [(accuracy, math.log10(ratio)) for accuracy, ratio in points if ratio > 0]
    return hypervolume(logs, (1.0 / classes, 0.0))
