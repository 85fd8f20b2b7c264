"""Place the labels of crowded points in a column beside each crowd, in the order of the points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Label:
    """A label's place, in the coordinates of the points it was made from.

    Attributes:
        x, y: the label's anchor point.
        crowded: whether it stands in a column, so that a leader line should join it to its point.
    """

    x: float
    y: float
    crowded: bool


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Move values as little as needed so that neighbours are at least `gap` apart, keeping their order.

    Blocks of touching neighbours are centred on the mean of their members (pool adjacent violators).

    Args:
        values: any order; equal ones keep the order they came in.
        gap: the least distance, above 0.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    blocks: list[tuple[float, int]] = []  # (where the block would begin, members)
    for i in order:
        start, members = values[i], 1
        while blocks and blocks[-1][0] + blocks[-1][1] * gap > start:
            before, many = blocks.pop()
            # the best start of the joined block: the mean of (value - its offset in the block)
            start = (before * many + (start - many * gap) * members) / (many + members)
            members += many
        blocks.append((start, members))
    places = [start + k * gap for start, members in blocks for k in range(members)]
    moved = dict(zip(order, places, strict=True))
    return [moved[i] for i in range(len(values))]


def beside(points: Sequence[tuple[float, float]], *, near: float, gap: float, reach: float) -> list[Label]:
    """Return places for the labels of points.

    A point with no other within `near` in x keeps its label close by, at its own height; a crowd (a chain of
    points, each within `near` of the next) gets a column of labels beside it.

    Args:
        points: (x, y), x in the axis's own scale (log10 where the axis is logarithmic).
        near: the distance in x below which two points may crowd.
        gap: the least distance in y between labels of a column.
        reach: how far in x a column stands from its crowd; negative puts labels to the left.
    """
    order = sorted(range(len(points)), key=lambda i: points[i][0])
    crowds: list[list[int]] = []
    for i in order:
        if crowds and points[i][0] - points[crowds[-1][-1]][0] <= near:
            crowds[-1].append(i)
        else:
            crowds.append([i])
    places: dict[int, Label] = {}
    for crowd in crowds:
        heights = spread([points[i][1] for i in crowd], gap)
        edge = (min if reach < 0 else max)(points[i][0] for i in crowd)
        crowded = len(crowd) > 1
        for i, height in zip(crowd, heights, strict=True):
            places[i] = Label(edge + (reach if crowded else reach / 3), height, crowded)
    return [places[i] for i in range(len(points))]
