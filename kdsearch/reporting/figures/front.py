"""The front's figure: `layers` gathers the data, the functions here only draw."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from kdsearch.reporting.collect import StudyData
from kdsearch.reporting.figures.layers import METRICS, Label, beside, layers
from kdsearch.reporting.figures.style import (
    BLUE,
    BOTTOM,
    GREEN,
    GREY,
    LABEL,
    LEGEND_ROW,
    MENU,
    ORANGE,
    PURPLE,
    TITLES,
    buttons_above,
    layout,
    padded,
    rounded,
)

TARGET = (10.0, 100.0)
"""The aim of the slides: a student 10 to 100 times faster than its teacher."""

HEIGHT = 640  # pixels
LEGEND_ROWS = 2
PLOT_PIXELS = HEIGHT - MENU - BOTTOM - LEGEND_ROW * LEGEND_ROWS
TICKS = [m * 10.0**e for e in range(-2, 7) for m in (1, 2, 5)]


def front(data: StudyData) -> go.Figure:
    """Draw accuracy against inference ratio: front, other trials, teacher and slide rows.

    The ratio's axis is logarithmic when it spans about a decade or more. Buttons switch between test and
    validation accuracy where the study has both; published points exist for test accuracy only.
    """
    views = {metric: layers(data, metric) for metric in METRICS}
    shown = [metric for metric in METRICS if _has_trials(views[metric])] or [METRICS[0]]
    ratios = [x for frame in views[shown[0]].values() for x in frame["ratio"]] or [1.0]
    log = max(ratios) >= 8 * min(ratios)
    x_range = _x_range(ratios, log)
    y_ranges = {metric: _y_range(views[metric]) for metric in shown}
    drawn = {metric: _front_traces(views[metric], log, x_range, y_ranges[metric]) for metric in shown}
    figure = go.Figure(drawn[shown[0]])
    what = "operations" if data.cost == "flops" else "time"
    x_axis = {"title": {"text": f"inference ratio: teacher {what} / student {what}"}, "range": x_range}
    if log:
        x_axis |= {"type": "log", "tickvals": TICKS, "ticktext": [f"{tick:,g}" for tick in TICKS]}
    y_axis = {"title": {"text": TITLES[shown[0]]}, "range": y_ranges[shown[0]]}
    figure.update_layout(layout(x_axis, y_axis, HEIGHT, LEGEND_ROWS))
    # a phone's view leaves out the teacher, which lies far to the left of its students; its line remains
    figure.update_layout(margin_t=MENU, meta={"narrow": _x_range([x for x in ratios if x != 1] or ratios, log)})
    if max(ratios) >= TARGET[0]:
        figure.add_shape(
            type="rect", x0=TARGET[0], x1=TARGET[1], y0=0, y1=1, yref="paper", layer="below", line_width=0,
            fillcolor=GREY, opacity=0.13, label={"text": "target: 10 to 100", "textposition": "top right"},
        )  # fmt: skip
    if len(shown) > 1:
        figure.update_layout(updatemenus=[_switch(drawn, y_ranges)])
    return figure


def below(data: StudyData) -> int:
    """Return how many trials lie below the figure's first view (of test accuracy where the study has it)."""
    view = layers(data, METRICS[0])
    if not _has_trials(view):
        view = layers(data, METRICS[1])
    floor = _y_range(view)[0]
    return sum(int((view[name]["percent"] < floor).sum()) for name in ("dominated", "pruned"))


def _has_trials(view: dict[str, pd.DataFrame]) -> bool:
    return any(view[name]["percent"].notna().any() for name in ("front", "dominated", "pruned"))


def _x_range(ratios: list[float], log: bool) -> list[float]:
    low, high = (math.log10(f(ratios)) if log else f(ratios) for f in (min, max))
    pad = 0.07 * (high - low) or 0.5
    return [round(low - pad, 4), round(high + pad, 4)]


def _y_range(view: dict[str, pd.DataFrame]) -> list[float]:
    """Fit the range to front, slide rows and teacher: one trial at chance level must not flatten them."""
    for names in (("front", "published", "recipe", "measured", "confirmed", "teacher"), ("dominated", "pruned")):
        values = [y for name in names for y in view[name]["percent"] if not math.isnan(y)]
        if values:
            return padded(min(values), max(values))
    return [0.0, 100.0]


def _front_traces(
    view: dict[str, pd.DataFrame], log: bool, x_range: list[float], y_range: list[float]
) -> list[go.Scatter]:
    """Draw one metric; both metrics have equally many traces in the same order, which the buttons swap."""
    own = view["front"]
    bars = {"type": "data", "symmetric": False, "thickness": 1.3, "width": 4, "color": BLUE,
            "array": _length(own["high"] - own["ratio"]),
            "arrayminus": _length(own["ratio"] - own["low"])}  # fmt: skip
    crosses = {"symbol": "x-thin", "size": 7, "line": {"width": 1.5, "color": GREY}}
    hollow = {"symbol": "diamond-open", "size": 9, "color": ORANGE, "line": {"width": 1.6}}
    traces = [
        _marks(view["pruned"], "pruned", mode="markers", opacity=0.6, marker=crosses),
        _marks(view["dominated"], "dominated", mode="markers", opacity=0.45,
               marker={"size": 7, "color": GREY}),
        _marks(own, "front", mode="lines+markers", line={"shape": "vh", "color": BLUE, "width": 2},
               marker={"size": 12, "color": BLUE}, error_x=bars),
    ]  # fmt: skip
    filled = {"symbol": "diamond", "size": 8, "color": ORANGE}
    by_recipe = {"symbol": "square-open", "size": 8, "color": ORANGE, "line": {"width": 1.6}}
    traces += [
        _confirmed(view["confirmed"]),
        _marks(view["recipe"], "slides, by the deck’s recipe", mode="markers", marker=by_recipe),
    ]
    slides = (
        ("published", "slides, published (another machine’s timing)", hollow),
        ("measured", "slides, run in this study", filled),
    )
    left = _leftmost(view)
    for name, title, marker in slides:
        places = _places(view[name], log, x_range, y_range, left=name == left)
        traces += _labelled(view[name], places, title, marker, log, left=name == left)
    return traces + _teacher(view["teacher"], [10**x if log else x for x in x_range])


def _teacher(frame: pd.DataFrame, across: list[float]) -> list[go.Scatter]:
    """Draw a star at ratio 1 and a line at its accuracy, visible wherever the view is."""
    star = {"symbol": "star", "size": 16, "color": PURPLE}
    heights = [y for y in frame["percent"] for _ in across]
    return [
        go.Scatter(x=rounded(across[: len(heights)]), y=rounded(heights), mode="lines", hoverinfo="skip",
                   line={"color": PURPLE, "width": 1, "dash": "dot"}, showlegend=False,
                   legendgroup="teacher"),
        _marks(frame, "teacher", mode="markers+text", text=[*frame["label"]], textposition="top right",
               marker=star, legendgroup="teacher"),
    ]  # fmt: skip


def _confirmed(frame: pd.DataFrame) -> go.Scatter:
    """Draw means over new seeds with the intervals of both objectives."""
    bars = {"type": "data", "symmetric": False, "thickness": 1.3, "width": 3, "color": GREEN}
    across = {"array": _length(frame["high"] - frame["ratio"]), "arrayminus": _length(frame["ratio"] - frame["low"])}
    along = {"array": _length(frame["most"] - frame["percent"]),
             "arrayminus": _length(frame["percent"] - frame["least"])}  # fmt: skip
    marker = {"symbol": "circle-open", "size": 9, "color": GREEN, "line": {"width": 2}}
    return _marks(frame, "confirmed with new seeds", mode="markers", marker=marker, error_x=bars | across,
                  error_y=bars | along)  # fmt: skip


def _marks(frame: pd.DataFrame, name: str, **style: Any) -> go.Scatter:
    """Draw points with their trials' numbers as custom data, which the page uses to select them."""
    x, y, hover = ([*frame[key]] for key in ("ratio", "percent", "hover"))
    return go.Scatter(x=rounded(x), y=rounded(y), name=name, hovertext=hover, hoverinfo="text",
                      customdata=rounded(frame["trial"], 0), showlegend=bool(x), **style)  # fmt: skip


def _leftmost(view: dict[str, pd.DataFrame]) -> str:
    """Return the slides' layer at lower ratios: its labels go left, so that leaders of the two layers do not cross."""
    published, measured = (view[name]["ratio"].median() for name in ("published", "measured"))
    return "published" if published < measured else "measured"


def _places(
    frame: pd.DataFrame, log: bool, x_range: list[float], y_range: list[float], *, left: bool
) -> dict[int, Label]:
    """Place the label of each row that has an accuracy."""
    rows = [i for i, y in enumerate(frame["percent"]) if y == y]
    ratios, percents = [*frame["ratio"]], [*frame["percent"]]
    points = [(math.log10(ratios[i]) if log else ratios[i], percents[i]) for i in rows]
    width = x_range[1] - x_range[0]
    gap = (y_range[1] - y_range[0]) * LABEL / PLOT_PIXELS
    found = beside(points, near=0.03 * width, gap=gap, reach=(-0.045 if left else 0.045) * width)
    return dict(zip(rows, found, strict=True))


def _labelled(
    frame: pd.DataFrame, places: dict[int, Label], name: str, marker: dict[str, Any], log: bool, *, left: bool
) -> list[go.Scatter]:
    """Draw leader lines, points and labels of a layer of slide rows, which the legend shows and hides together."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    at: list[tuple[float | None, float | None]] = []
    for i, (ratio, percent) in enumerate(zip(frame["ratio"], frame["percent"], strict=True)):
        place = places.get(i)
        x = None if place is None else 10**place.x if log else place.x
        at.append((x, place.y if place else None))
        joined = place is not None and place.crowded
        xs += [ratio, x if joined else None, None]
        ys += [percent if joined else None, place.y if place and joined else None, None]
    leader = {"color": ORANGE, "width": 0.8}
    side = "middle left" if left else "middle right"
    own = {"legendgroup": name, "hoverinfo": "skip", "showlegend": False}
    return [
        go.Scatter(x=rounded(xs), y=rounded(ys), mode="lines", line=leader, opacity=0.7, **own),
        _marks(frame, name, mode="markers", marker=marker, legendgroup=name),
        go.Scatter(x=rounded(x for x, _ in at), y=rounded(y for _, y in at), mode="text",
                   text=[*frame["label"]], textposition=side, textfont={"size": 11},
                   cliponaxis=False, name=f"{name}: labels", **own),
    ]  # fmt: skip


def _switch(drawn: dict[str, list[go.Scatter]], y_ranges: dict[str, list[float]]) -> dict[str, Any]:
    buttons = [
        {"label": TITLES[metric].removesuffix(", %"), "method": "update",
         "args": [{"y": [list(trace.y) for trace in traces], "x": [list(trace.x) for trace in traces]},
                  {"yaxis.title.text": TITLES[metric], "yaxis.range": y_ranges[metric]}]}
        for metric, traces in drawn.items()
    ]  # fmt: skip
    return buttons_above(buttons)


def _length(values: Iterable[float]) -> list[float]:
    return [round(max(0.0, value), 4) if value == value else 0.0 for value in values]
