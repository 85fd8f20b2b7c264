"""Gather what the figures show before it is drawn, and place the labels of crowded points; tests compare these."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdsearch.reporting import formatting
from kdsearch.reporting.collect import StudyData, configuration, untrained
from kdsearch.reporting.formatting import number, records

METRICS = ("test_accuracy", "accuracy")
"""The columns of `StudyData.trials` that the front's figure can plot; the second is validation accuracy."""

LAYERS = ("dominated", "pruned", "front", "published", "recipe", "measured", "confirmed", "teacher")
LAYER_COLUMNS = ("label", "trial", "ratio", "low", "high", "percent", "least", "most", "hover")


def layers(data: StudyData, metric: str = "test_accuracy") -> dict[str, pd.DataFrame]:
    """Return the points of the front's figure.

    Args:
        data: a collected study.
        metric: one of METRICS.

    Returns:
        Frames by layer (LAYERS) with the columns label, trial, ratio, low, high (the ratio's interval),
        percent (the accuracy; NaN where there is none, as for published points on validation), least, most (the
        accuracy's interval) and hover. A layer has the same rows for both metrics. "recipe" holds the results of
        `kdsearch slides`, "measured" repeats the complete trials that ran a slide row; "front" is ordered by ratio.
    """
    groups: dict[str, list[dict[str, Any]]] = {name: [] for name in LAYERS}
    for row in records(data.trials):
        if row["state"] not in ("COMPLETE", "PRUNED") or untrained(row) or not row["ratio"] > 0:
            continue
        entry = _entry(row["anchor"] or "", row["number"], row["ratio"], row[metric], hover(row))
        entry |= {"low": row["ratio_low"], "high": row["ratio_high"]}
        pruned = row["state"] == "PRUNED"
        groups["front" if row["on_front"] else "pruned" if pruned else "dominated"].append(entry)
        if row["anchor"] and not pruned:
            groups["measured"].append(entry)
    for row in records(data.anchors):
        if row["published_ratio"] > 0:
            fraction = row["published_accuracy"] if metric == "test_accuracy" else math.nan
            groups["published"].append(
                _entry(row["anchor"], math.nan, row["published_ratio"], fraction, _published_hover(row))
            )
        if row["recipe_ratio"] > 0:
            fraction = row["recipe_test_accuracy"] if metric == "test_accuracy" else math.nan
            groups["recipe"].append(_entry(row["anchor"], math.nan, row["recipe_ratio"], fraction, _recipe_hover(row)))
    groups["confirmed"] = [_confirmed(row, metric) for row in records(data.confirmed)]
    if data.teacher:
        fraction = number(data.teacher.get({"test_accuracy": "accuracy"}.get(metric, "validation_accuracy")))
        groups["teacher"].append(_entry("teacher", math.nan, 1.0, fraction, _teacher_hover(data.teacher)))
    groups["front"].sort(key=lambda entry: (entry["ratio"], entry["trial"]))
    return {name: pd.DataFrame(rows, columns=list(LAYER_COLUMNS)) for name, rows in groups.items()}


def _entry(label: str, trial: float, ratio: float, fraction: float, text: str) -> dict[str, Any]:
    return {"label": label, "trial": trial, "ratio": ratio, "low": math.nan, "high": math.nan,
            "percent": 100 * fraction, "least": math.nan, "most": math.nan, "hover": text}  # fmt: skip


def _confirmed(row: dict[str, Any], metric: str) -> dict[str, Any]:
    tested = metric == "test_accuracy"
    fraction = row["test_accuracy"] if tested else math.nan
    entry = _entry("", row["trial"], row["ratio"], fraction, _confirmed_hover(row))
    entry |= {"low": row["ratio_low"], "high": row["ratio_high"]}
    return entry | ({"least": 100 * row["test_low"], "most": 100 * row["test_high"]} if tested else {})


def hover(row: dict[str, Any]) -> str:
    """Return a trial's hover text in Plotly's HTML subset; text that comes from the study is escaped."""
    title = f"trial {row['number']}" + (f" · {row['anchor']}" if row["anchor"] else "")
    setting = "<br>".join(map(html.escape, textwrap.wrap(formatting.configuration(configuration(row)), 44)))
    accuracy = f"test {formatting.percent(row['test_accuracy'])} · validation {formatting.percent(row['accuracy'])}"
    ratio = formatting.interval(row["ratio"], row["ratio_low"], row["ratio_high"])
    lines = (f"<b>{html.escape(title)}</b>", setting, accuracy, f"at epoch {formatting.count(row['best_epoch'])}")
    return "<br>".join(line for line in (*lines, f"ratio {ratio}", formatting.times(row)) if line)


def _published_hover(row: dict[str, Any]) -> str:
    lines = (
        f"<b>{html.escape(row['anchor'])} as published</b>",
        f"test {formatting.percent(row['published_accuracy'])}",
        f"ratio {formatting.ratio(row['published_ratio'])}, timed on another machine",
    )
    return "<br>".join(lines)


def _recipe_hover(row: dict[str, Any]) -> str:
    lines = (
        f"<b>{html.escape(row['anchor'])} by the deck’s recipe</b>",
        f"test {formatting.percent(row['recipe_test_accuracy'])}, "
        f"mean of {formatting.count(row['recipe_seeds'])} seeds",
        f"ratio {formatting.ratio(row['recipe_ratio'])}, timed as the deck did",
    )
    return "<br>".join(lines)


def _confirmed_hover(row: dict[str, Any]) -> str:
    lines = (
        f"<b>trial {row['trial']:.0f} confirmed</b>",
        f"test {formatting.span(row['test_accuracy'], row['test_low'], row['test_high'])}",
        f"ratio {formatting.interval(row['ratio'], row['ratio_low'], row['ratio_high'])}",
        f"{formatting.count(row['repeats'])} new seeds, the whole training set",
    )
    return "<br>".join(lines)


def _teacher_hover(teacher: dict[str, Any]) -> str:
    test, validation = (formatting.percent(teacher.get(key)) for key in ("accuracy", "validation_accuracy"))
    family = html.escape(str(teacher.get("family", "")))
    return f"<b>teacher</b> {family}<br>test {test} · validation {validation}<br>ratio 1"


def curve_groups(data: StudyData) -> dict[str, list[dict[str, Any]]]:
    """Return the learning curves grouped by the trial's outcome.

    Returns:
        "front" (by ratio), "pruned" and "other", each a list of {trial, anchor, ratio, epochs, percents}.
        Trials without a curve are left out.
    """
    groups: dict[str, list[dict[str, Any]]] = {"front": [], "pruned": [], "other": []}
    curves: dict[int, list[dict[str, Any]]] = {}
    for point in records(data.curves):
        curves.setdefault(point["trial"], []).append(point)
    for row in records(data.trials):
        points = curves.get(row["number"])
        if not points:
            continue
        name = "front" if row["on_front"] else "pruned" if row["state"] == "PRUNED" else "other"
        groups[name].append({
            "trial": row["number"], "anchor": row["anchor"], "ratio": row["ratio"],
            "epochs": [point["epoch"] for point in points],
            "percents": [100 * point["accuracy"] for point in points],
        })  # fmt: skip
    groups["front"].sort(key=lambda curve: (curve["ratio"], curve["trial"]))
    return groups


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
