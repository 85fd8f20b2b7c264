"""Dominance, front and hypervolume of points whose coordinates are all maximised."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Point = Sequence[float]

LEAST_ERROR = 1e-4  # lower limit of an error before its logarithm is taken


def dominates(a: Point, b: Point) -> bool:
    """Return whether `a` dominates `b`: at least as good everywhere and better somewhere (Pareto dominance).

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
    """Return the ascending indices of non-dominated points; equal points are all kept, points with NaN never."""
    valid = [i for i, p in enumerate(points) if not any(map(math.isnan, p))]
    found: list[int] = []
    for i in sorted(valid, key=lambda i: tuple(points[i]), reverse=True):  # a point comes after all that dominate it
        if not any(dominates(points[j], points[i]) for j in reversed(found)):
            found.append(i)
    return sorted(found)


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Return the area that the points dominate, down to the reference point (two objectives, both maximised).

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


def members(points: Floats) -> NDArray[np.int64]:
    """Return the indices of the non-dominated among (points, objectives); of equal ones the first."""
    import numpy as np

    if points.shape[1] != 2:
        found = front(points.tolist())
        _, first = np.unique(points[found], axis=0, return_index=True)
        return np.sort(np.array(found, dtype=np.int64)[first]) if found else np.zeros(0, dtype=np.int64)
    order = np.lexsort((-np.arange(len(points)), points[:, 0], points[:, 1]))[::-1]  # second, then first, descending
    best = np.concatenate([[-np.inf], np.maximum.accumulate(points[order, 0])[:-1]])
    return np.sort(order[points[order, 0] > best])


def volume(points: Floats, reference: Floats) -> float:
    """Return the hypervolume in any number of dimensions, all maximised: slices along the last one, down to areas.

    "Hypervolume by slicing objectives" (While, Hingston, Barone, Huband, IEEE TEC 2006): exact, and fast for the few
    points of a front.

    Args:
        points: (points, objectives), finite.
        reference: (objectives,); points that do not exceed it everywhere add nothing.
    """
    inside = points[(points > reference).all(axis=1)]
    if not len(inside):
        return 0.0
    if len(reference) == 1:
        return float(inside.max() - reference[0])
    if len(reference) == 2:
        return hypervolume([(x, y) for x, y in inside.tolist()], (float(reference[0]), float(reference[1])))
    ordered = inside[inside[:, -1].argsort()[::-1]]
    depths = [*ordered[:, -1].tolist(), float(reference[-1])]
    slices = (
        (depth - below) * volume(ordered[:count, :-1], reference[:-1])
        for count, (depth, below) in enumerate(itertools.pairwise(depths), 1)
        if depth > below
    )
    return float(sum(slices))


def gains(members: Floats, points: Floats, reference: Floats) -> Floats:
    """Return what each point alone would add to the hypervolume of a front (all objectives maximised).

    Args:
        members: (members, objectives) of the front, finite.
        points: (points, objectives), finite.
        reference: (objectives,).

    Returns:
        (points,), not negative.
    """
    import numpy as np

    if points.shape[1] != 2:
        before, found = volume(members, reference), np.zeros(len(points))
        for index, point in enumerate(points):
            if not (members >= point).all(axis=1).any():
                found[index] = max(0.0, volume(np.vstack([members, point]), reference) - before)
        return found
    stairs = members[(members > reference).all(axis=1)]
    stairs = stairs[stairs[:, 1].argsort()]
    edges = np.concatenate([reference[1:], stairs[:, 1], [np.inf]])
    height = np.concatenate([np.maximum.accumulate(stairs[::-1, 0])[::-1], reference[:1]])  # best x at this y or beyond
    width = np.clip(np.minimum(points[:, 1:], edges[1:]) - edges[:-1], 0.0, None)
    added: Floats = (width * np.clip(points[:, :1] - height, 0.0, None)).sum(axis=1)
    return added


def gains_along(members: Floats, point: Floats, axis: int, values: Floats, reference: Floats) -> Floats:
    """Return what a point would add to the hypervolume of a front for each value of one of its coordinates.

    The same as `gains`, and faster for many values in three or more dimensions: along an axis a gain is piecewise
    linear, with a knot at each member, and its slope is what the members beyond leave free of the point's extent in the
    other objectives.

    Args:
        members: (members, objectives) of the front, finite.
        point: (objectives,), finite; its coordinate on the axis is not used.
        axis: the objective that takes the values.
        values: (values,), finite.
        reference: (objectives,).

    Returns:
        (values,), not negative.
    """
    import numpy as np

    others = np.arange(len(point)) != axis
    base, start = reference[others], reference[axis]
    free = float(np.clip(point[others] - base, 0.0, None).prod())
    covering = members[(members > reference).all(axis=1)]
    knots = np.unique(np.append(covering[:, axis], start))
    clipped = np.minimum(covering[:, others], point[others])
    slopes = np.array([max(0.0, free - volume(clipped[covering[:, axis] > knot], base)) for knot in knots])
    below = np.concatenate([[0.0], np.cumsum(slopes[:-1] * np.diff(knots))])  # the gain at each knot
    at = np.maximum(np.searchsorted(knots, values, side="right") - 1, 0)
    found: Floats = below[at] + slopes[at] * np.clip(values - knots[at], 0.0, None)
    return found


def study_hypervolume(points: Sequence[tuple[float, float]], floor: float) -> float:
    """Return the hypervolume of (accuracy, ratio) points as reports give it.

    The axes are the reduction in error against the floor and the ratio, both as log10; the area starts at the reference
    point (accuracy at the floor, ratio 1). Points below the floor are useless and count nothing; above it, halving the
    error counts the same at 90 % and at 98 %, so the fast and inaccurate end does not outweigh the rest. The search and
    its pruner use references of their own (`pruning.scale`).

    Args:
        points: (accuracy as a fraction, teacher time / student time).
        floor: accuracy below which a point counts as nothing, a fraction below 1.
    """
    logs = [
        (math.log10((1.0 - floor) / max(1.0 - accuracy, LEAST_ERROR)), math.log10(ratio))
        for accuracy, ratio in points
        if ratio > 0 and accuracy > floor
    ]
    return hypervolume(logs, (0.0, 0.0))
