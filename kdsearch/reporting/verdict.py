"""What a study recommends: three picks from its front, and one sentence with figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdsearch.reporting import formatting
from kdsearch.reporting.collect import StudyData, configuration
from kdsearch.reporting.formatting import number
from kdsearch.reporting.frames import records
from kdsearch.reporting.ties import fastest

LEAST_GAIN = 0.05  # points of accuracy: less would be printed as 0.0


@dataclass(frozen=True)
class Pick:
    """A member of the front worth a look.

    Attributes:
        title: "Most accurate", "Knee" or "Fastest".
        why: what the title means, in a few words.
        row: the member's row of `StudyData.trials`.
        config: its configuration.
    """

    title: str
    why: str
    row: dict[str, Any]
    config: dict[str, Any]


def knee(front: pd.DataFrame) -> int:
    """Number of the front's trial that gives up least on both objectives together.

    Validation accuracy and log10 ratio are scaled so that the front's worst is 0 and its best is 1; the knee
    has the largest product of the two. The ends of the front have the product 0, so with one or two members
    (and among equal products) the more accurate one is taken, then the one with the lower number.

    Args:
        front: `StudyData.front`, at least one row, ratios above 0.
    """
    rows = records(front)
    accuracy = [row["accuracy"] for row in rows]
    speed = [math.log10(row["ratio"]) if row["ratio"] > 0 else -math.inf for row in rows]

    def scaled(values: list[float], i: int) -> float:
        low, high = min(values), max(values)
        return (values[i] - low) / (high - low) if math.isfinite(low) and high > low else 0.0

    def merit(i: int) -> tuple[float, float, int]:
        return scaled(accuracy, i) * scaled(speed, i), accuracy[i], -rows[i]["number"]

    return int(rows[max(range(len(rows)), key=merit)]["number"])


def picks(data: StudyData) -> list[Pick]:
    """Most accurate (by validation), knee and fastest; a trial may be picked twice. Empty without a front."""
    front = data.front
    if front.empty:
        return []
    rows = records(front)
    chosen = knee(front)
    best = max(rows, key=lambda row: (row["accuracy"], row["ratio"], -row["number"]))
    quick = fastest(rows)
    middle = next(row for row in rows if row["number"] == chosen)
    return [
        Pick("Most accurate", "the best validation accuracy", best, configuration(best)),
        Pick("Knee", "gives up least on both together", middle, configuration(middle)),
        Pick("Fastest", "the largest inference ratio, within its noise", quick, configuration(quick)),
    ]


def speed(data: StudyData, row: dict[str, Any]) -> str:
    """A trial's ratio in words: "14.2x faster than the teacher (13.8 to 14.6)"."""
    value, low, high = row["ratio"], row["ratio_low"], row["ratio_high"]
    slower = 0 < value < 1
    if slower:
        value, low, high = 1 / value, 1 / high if high else high, 1 / low if low else low
    word = {False: "faster than the teacher", True: "slower than the teacher"}[slower]
    if data.cost == "flops":
        word = {False: "fewer operations than the teacher", True: "more operations than the teacher"}[slower]
    span = formatting.interval(value, low, high).removeprefix(formatting.ratio(value))
    return f"{formatting.ratio(value)}x {word}{span}"


def confirmed(data: StudyData, row: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A trial's row with what confirmation found in place of the search's figures, and how sure that is, in words."""
    found = [each for each in records(data.confirmed) if each["trial"] == row["number"]]
    if not found:
        return row, ""
    told = found[0]
    seeds = "1 new seed" if told["repeats"] == 1 else f"{told['repeats']:.0f} new seeds"
    low, high = told["test_low"], told["test_high"]
    span = "" if math.isnan(low) else f"{100 * low:.1f} to {100 * high:.1f}, "
    names = ("test_accuracy", "ratio", "ratio_low", "ratio_high")
    return row | {name: told[name] for name in names}, f" ({span}confirmed with {seeds})"


def verdict(data: StudyData) -> str:
    """One sentence with figures on the knee of the front, or why there is none to recommend."""
    chosen = picks(data)
    if not chosen:
        return _nothing(data.counts)
    row = chosen[1].row
    tested = not math.isnan(row["test_accuracy"])
    kind, key = ("test", "test_accuracy") if tested else ("validation", "accuracy")
    sentence = f"Trial {row['number']}"
    sentence += f" (slide row {row['anchor']})" if row["anchor"] else ""
    shown, sure = confirmed(data, row)
    sentence += f" needs {speed(data, shown)}" if data.cost == "flops" else f" is {speed(data, shown)}"
    sentence += f" at {formatting.percent(shown[key], 1)} {kind} accuracy{sure}"
    theirs = number((data.teacher or {}).get("accuracy" if tested else "validation_accuracy"))
    if not math.isnan(theirs):
        sentence += f" against its {formatting.percent(theirs, 1)}"
    return sentence + _beaten(data, row) + "."


def _beaten(data: StudyData, row: dict[str, Any]) -> str:
    """The most accurate slide row measured here that the trial beats without being slower."""
    rows = [
        anchor for anchor in records(data.anchors)
        if anchor["anchor"] != row["anchor"] and anchor["ratio"] <= row["ratio"]
        and anchor["test_accuracy"] < row["test_accuracy"]
    ]  # fmt: skip
    if not rows:
        return ""
    best = max(rows, key=lambda anchor: anchor["test_accuracy"])
    gain = 100 * (row["test_accuracy"] - best["test_accuracy"])
    if gain < LEAST_GAIN:
        return ""
    pace = "the same" if best["ratio"] == row["ratio"] else "a higher"
    return f"; it beats slide row {best['anchor']}, run in this study, by {gain:.1f} points at {pace} ratio"


def _nothing(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    if not total:
        return "This study has no trials yet, so there is no student to choose."
    states = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    if counts["failed"] == total:
        return f"All trials failed ({states}), so there is no student to choose; the reasons stand below."
    return f"No trial is complete yet ({states}), so there is no student to choose."
