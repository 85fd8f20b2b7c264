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
from kdsearch.reporting.formatting import by, count, number, percent, ratio_of, records

METRICS = ("test_accuracy", "accuracy")  # columns of `StudyData.trials`; the second is validation accuracy
LAYERS = ("dominated", "pruned", "front", "published", "recipe", "measured", "confirmed", "teacher")
LAYER_COLUMNS = ("label", "trial", "ratio", "low", "high", "percent", "least", "most", "hover")


def layers(data: StudyData, metric: str = "test_accuracy") -> dict[str, pd.DataFrame]:
    """Return the points of the front's figure, with accuracies of the metric, which is one of METRICS.

    Returns:
        Frames by layer (LAYERS) with the columns label, trial, ratio, low, high (the ratio's interval), percent (the
        accuracy; NaN where there is none, as for published points on validation), least, most (the accuracy's interval)
        and hover. A layer has the same rows for both metrics. "recipe" holds the results of `kdsearch slides`,
        "measured" repeats the complete trials that ran a slide row; "front" is ordered by ratio.
    """
    groups: dict[str, list[dict[str, Any]]] = {name: [] for name in LAYERS}
    for row in records(data.trials):
        if row["state"] not in ("COMPLETE", "PRUNED") or untrained(row) or not row["ratio"] > 0:
            continue
        entry = _entry(row["anchor"] or "", row["ratio"], row[metric], hover(row), trial=row["number"])
        entry |= {"low": row["ratio_low"], "high": row["ratio_high"]}
        pruned = row["state"] == "PRUNED"
        groups["front" if row["on_front"] else "pruned" if pruned else "dominated"].append(entry)
        if row["anchor"] and not pruned:
            groups["measured"].append(entry)

    def tested(fraction: float) -> float:
        return fraction if metric == "test_accuracy" else math.nan

    for row in records(data.anchors):
        for name, accuracy, text in (
            ("published", row["published_accuracy"], _published_hover),
            ("recipe", row["recipe_test_accuracy"], _recipe_hover),
        ):
            if row[f"{name}_ratio"] > 0:
                groups[name].append(_entry(row["anchor"], row[f"{name}_ratio"], tested(accuracy), text(row)))
    for row in records(data.confirmed):
        entry = _entry("", row["ratio"], tested(row["test_accuracy"]), _confirmed_hover(row), trial=row["trial"])
        entry |= {"low": row["ratio_low"], "high": row["ratio_high"]}
        entry |= {"least": 100 * tested(row["test_low"]), "most": 100 * tested(row["test_high"])}
        groups["confirmed"].append(entry)
    if data.teacher:
        fraction = number(data.teacher.get("accuracy" if metric == "test_accuracy" else "validation_accuracy"))
        groups["teacher"].append(_entry("teacher", 1.0, fraction, _teacher_hover(data.teacher)))
    groups["front"].sort(key=lambda entry: (entry["ratio"], entry["trial"]))
    return {name: pd.DataFrame(rows, columns=list(LAYER_COLUMNS)) for name, rows in groups.items()}


def _entry(label: str, ratio: float, fraction: float, text: str, *, trial: float = math.nan) -> dict[str, Any]:
    unknown = dict.fromkeys(LAYER_COLUMNS, math.nan)
    return unknown | {"label": label, "trial": trial, "ratio": ratio, "percent": 100 * fraction, "hover": text}


def hover(row: dict[str, Any]) -> str:
    """Return a trial's hover text in Plotly's HTML subset; text that comes from the study is escaped."""
    title = f"trial {row['number']}" + (f" · {row['anchor']}" if row["anchor"] else "")
    lines = (
        f"<b>{html.escape(title)}</b>",
        *map(html.escape, textwrap.wrap(formatting.configuration(configuration(row)), 44)),
        f"test {percent(row['test_accuracy'])} · validation {percent(row['accuracy'])}",
        f"at epoch {count(row['best_epoch'])}",
        f"ratio {ratio_of(row)}",
        formatting.times(row),
    )
    return "<br>".join(filter(None, lines))


def _published_hover(row: dict[str, Any]) -> str:
    return (
        f"<b>{html.escape(row['anchor'])} as published</b>"
        f"<br>test {percent(row['published_accuracy'])}"
        f"<br>ratio {formatting.ratio(row['published_ratio'])}, timed on another machine"
    )


def _recipe_hover(row: dict[str, Any]) -> str:
    return (
        f"<b>{html.escape(row['anchor'])} by the deck’s recipe</b>"
        f"<br>test {percent(row['recipe_test_accuracy'])}, mean of {count(row['recipe_seeds'])} seeds"
        f"<br>ratio {formatting.ratio(row['recipe_ratio'])}, timed as the deck did"
    )


def _confirmed_hover(row: dict[str, Any]) -> str:
    return (
        f"<b>trial {row['trial']:.0f} confirmed</b>"
        f"<br>test {formatting.span(row['test_accuracy'], row['test_low'], row['test_high'])}"
        f"<br>ratio {ratio_of(row)}<br>{count(row['repeats'])} new seeds, the whole training set"
    )


def _teacher_hover(teacher: dict[str, Any]) -> str:
    test, validation = (percent(teacher.get(key)) for key in ("accuracy", "validation_accuracy"))
    family = html.escape(str(teacher.get("family", "")))
    return f"<b>teacher</b> {family}<br>test {test} · validation {validation}<br>ratio 1"


def curve_groups(data: StudyData) -> dict[str, list[dict[str, Any]]]:
    """Return the learning curves grouped by the trial's outcome.

    Returns:
        "front" (by ratio), "pruned" and "other", each a list of {trial, anchor, ratio, epochs, percents}.
        Trials without a curve are left out.
    """
    groups: dict[str, list[dict[str, Any]]] = {"front": [], "pruned": [], "other": []}
    trials: dict[Any, dict[str, Any]] = by(data.trials, "number")
    for trial, points in data.curves.groupby("trial"):
        row = trials[trial]
        name = "front" if row["on_front"] else "pruned" if row["state"] == "PRUNED" else "other"
        groups[name].append({
            "trial": row["number"], "anchor": row["anchor"], "ratio": row["ratio"],
            "epochs": points["epoch"].tolist(), "percents": [100 * accuracy for accuracy in points["accuracy"]],
        })  # fmt: skip
    groups["front"].sort(key=lambda curve: (curve["ratio"], curve["trial"]))
    return groups


@dataclass(frozen=True)
class Label:
    """A label's place, in the coordinates of the points it was made from."""

    x: float
    y: float
    crowded: bool  # whether it stands in a column, so that a leader line should join it to its point


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
