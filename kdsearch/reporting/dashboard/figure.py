"""A small figure of the front for a study's page in optuna-dashboard: plain JSON, without Plotly's template."""

from __future__ import annotations

import html
import json
from typing import Any

from kdsearch.reporting import formatting
from kdsearch.reporting.collect import StudyData, untrained
from kdsearch.reporting.figures.style import BLUE, GREY, ORANGE, PURPLE, padded, rounded
from kdsearch.reporting.formatting import records

NEAR = 1.25  # factor of the ratio: slide rows nearer than this share a label
FAINT = 200  # how many of the latest trials off the front are drawn
INK, GRID = "#7a818c", "rgba(128,136,150,0.25)"  # legible on the dashboard's light and dark pages
Row = dict[str, Any]


def front(data: StudyData) -> str:
    """Return the figure as JSON: front, anchors as published and as run here, other trials, the teacher at ratio 1.

    Accuracies are those of the test set, in percent; the axis of the ratio is logarithmic where it spans a decade.
    """
    trials = [row for row in records(data.trials) if _is_drawn(row)]
    others = [row for row in trials if not row["on_front"]][-FAINT:]
    on_front = [row for row in records(data.front) if _is_drawn(row)]
    here = [row for row in trials if row["anchor"] and row["state"] == "COMPLETE"]
    published = [
        {"anchor": row["anchor"], "ratio": row["published_ratio"], "test_accuracy": row["published_accuracy"]}
        for row in records(data.anchors)
        if row["published_ratio"] > 0
    ]
    traces = [
        _marks(others, "others", {"size": 5, "color": GREY, "opacity": 0.45}),
        _marks(published, "slides, published (another machine)",
               {"size": 8, "symbol": "diamond-open", "color": ORANGE}),
        _marks(here, "slides, here", {"size": 8, "symbol": "diamond", "color": ORANGE}),
        _marks(on_front, "front", {"size": 10, "color": BLUE}, line={"shape": "vh", "color": BLUE}),
        *_teacher(data),
    ]  # fmt: skip
    drawn = [trace for trace in traces if trace["x"]]
    layout = _layout(data, [x for trace in drawn for x in trace["x"]])
    heights = [y for trace in drawn if trace["name"] != "others" for y in trace["y"]]
    if heights:  # one trial at chance level must not flatten the rest
        layout["yaxis"]["range"] = padded(min(heights), max(heights))
    return json.dumps({"data": drawn, "layout": layout}, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def _is_drawn(row: Row) -> bool:
    trained = row["state"] in ("COMPLETE", "PRUNED") and not untrained(row)
    return trained and row["ratio"] > 0 and not formatting.missing(row["test_accuracy"])


def _marks(rows: list[Row], name: str, marker: Row, **style: Any) -> Row:
    """Return a trace of points; the front's are joined and numbered, slide rows have their names below them."""
    front, slides = "line" in style, "diamond" in marker.get("symbol", "")
    names = [html.escape(str(row["anchor"])) if slides else str(row["number"]) for row in rows]
    labels: Row = {"hovertext": names} if slides else {"text": names}
    if front or slides:
        labels |= {"textposition": "top right" if front else "bottom center", "textfont": {"size": 10}}
        labels["text"] = names if front else _crowds(rows)
    said = "%{hovertext}" if slides else "trial %{text}"
    return {
        "type": "scatter", "mode": f"{'lines+' if front else ''}markers{'+text' if front or slides else ''}",
        "name": name, **labels,
        "x": rounded(row["ratio"] for row in rows), "y": rounded((100 * row["test_accuracy"] for row in rows), 2),
        "hovertemplate": f"{said}<br>%{{y:.2f}} % at ratio %{{x:.4g}}<extra></extra>",
        "marker": marker, **style, **(_bars(rows) if front else {}),
    }  # fmt: skip


def _bars(rows: list[Row]) -> Row:
    """Return the intervals of the ratios where all have one."""
    known = not any(formatting.missing(row[end]) for row in rows for end in ("ratio_low", "ratio_high"))
    if not known or not any(row["ratio_high"] > row["ratio_low"] for row in rows):
        return {}
    above = [round(row["ratio_high"] - row["ratio"], 3) for row in rows]
    below = [round(row["ratio"] - row["ratio_low"], 3) for row in rows]
    return {"error_x": {"type": "data", "array": above, "arrayminus": below, "thickness": 1, "width": 3}}


def _crowds(rows: list[Row]) -> list[str]:
    """Return one label for slide rows of nearly the same ratio, below the least accurate; the others get none."""
    labels = [""] * len(rows)
    left = sorted(range(len(rows)), key=lambda i: (rows[i]["test_accuracy"], i))
    while left:
        crowd = [i for i in left if 1 / NEAR < rows[i]["ratio"] / rows[left[0]]["ratio"] < NEAR]
        names = sorted(html.escape(str(rows[i]["anchor"])) for i in crowd)
        labels[left[0]] = ", ".join(names) if len(names) < 3 else f"{names[0]} ... {names[-1]} ({len(names)})"
        left = [i for i in left if i not in crowd]
    return labels


def _teacher(data: StudyData) -> list[Row]:
    accuracy = formatting.number((data.teacher or {}).get("accuracy"))
    if formatting.missing(accuracy):
        return []
    star = {"size": 13, "symbol": "star", "color": PURPLE}
    return [{
        "type": "scatter", "mode": "markers", "name": "teacher", "x": [1], "y": [round(100 * accuracy, 2)],
        "marker": star, "hovertemplate": "teacher<br>%{y:.2f} %<extra></extra>",
    }]  # fmt: skip


def _layout(data: StudyData, ratios: list[float]) -> Row:
    what = "operations" if data.cost == "flops" else "time"
    axis: Row = {"title": {"text": f"inference ratio: teacher {what} / student {what}"}, "gridcolor": GRID}
    if ratios and max(ratios) >= 8 * min(ratios):
        axis |= {"type": "log", "dtick": "D2"} if max(ratios) < 100 * min(ratios) else {"type": "log"}
    return {
        "title": {"text": f"kdsearch: the front, {data.counts['complete'] + data.counts['pruned']:,} trials",
                  "font": {"size": 16}},
        "xaxis": axis | {"zeroline": False},
        "yaxis": {"title": {"text": "test accuracy, %"}, "gridcolor": GRID, "zeroline": False},
        "font": {"color": INK}, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest", "margin": {"l": 56, "r": 16, "t": 44, "b": 90},
        "legend": {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
    }  # fmt: skip
