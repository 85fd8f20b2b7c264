"""Students whose times do not differ beyond noise: which ones they are, and the most accurate among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kdsearch import stats
from kdsearch.reporting import formatting
from kdsearch.reporting.collect import StudyData
from kdsearch.reporting.frames import records

NAMED = 5  # pairs that the sentence names


def told_apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the ratios of two rows of `StudyData.trials` differ beyond their noise (`stats.told_apart`)."""
    figures = [_figures(row) for row in (one, other)]
    return figures[0] != figures[1] and stats.told_apart(*figures)


def _figures(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return ratio and interval; a ratio stored without an interval counts as exact."""
    ratio, low, high = (formatting.number(row[name]) for name in ("ratio", "ratio_low", "ratio_high"))
    return (ratio, low, high) if 0 < low <= ratio <= high else (ratio, ratio, ratio)


def fastest(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the most accurate by validation of the trials that cannot be told apart from the largest ratio's.

    Args:
        rows: of `StudyData.trials`, at least one, ratios above 0.
    """
    top = max(rows, key=lambda row: (row["ratio"], row["accuracy"], -row["number"]))
    tied = [row for row in rows if not told_apart(row, top)]
    return max(tied, key=lambda row: (row["accuracy"], row["ratio"], -row["number"]))


def ties(front: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Map members of a front that are not shown to be faster than a more accurate one to the most accurate such one.

    Args:
        front: rows of `StudyData.trials`.
    """
    found = {}
    for row in front:
        ahead = [other for other in front if other["accuracy"] > row["accuracy"] and row["ratio"] > 0]
        tied = [other for other in ahead if not told_apart(row, other)]
        if tied:
            found[int(row["number"])] = int(max(tied, key=lambda other: (other["accuracy"], other["ratio"]))["number"])
    return found


def sentence(data: StudyData) -> str:
    """Say which of the front's times do not differ beyond noise, and which intervals do not cover; else empty."""
    rows = records(data.front)
    if data.cost == "flops" or not rows:
        return ""
    pairs = [f"trial {number} from trial {other}" for number, other in ties(rows).items()]
    more = f" and {len(pairs) - NAMED} more" if len(pairs) > NAMED else ""
    told = (
        f"Timing cannot tell {', '.join(pairs[:NAMED])}{more}: it does not rank them, the more accurate comes first."
        if pairs
        else "Timing tells the front's students apart: no one is within noise of a more accurate one."
        if len(rows) > 1
        else ""
    )
    single = [row for row in rows if row["covers"] is False or row["covers"] == 0]
    aside = (
        f"The ratio of {len(single)} of {len(rows)} is of one sitting: its interval says nothing of the next sitting, "
        "and is too narrow."
        if single and not all(math.isnan(formatting.number(row["ratio_low"])) for row in single)
        else ""
    )
    device = str(data.environment.get("device", ""))
    replayed = (
        "Timed as replayed graphs over one batch: what fits of it and of the weights is in the GPU's L2 cache."
        if data.cost == "latency" and device.startswith("cuda")
        else ""
    )
    return " ".join(part for part in (told, aside, replayed) if part)
