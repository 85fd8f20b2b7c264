"""The front's figure: `layers` gathers the data, the functions here only draw."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from kdsearch.reporting.collect import StudyData
from kdsearch.reporting.figures import style
from kdsearch.reporting.figures.layers import METRICS, Label, beside, layers
from kdsearch.reporting.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, layout, padded, rounded

TARGET = (10.0, 100.0)  # the aim of the slides: a student so many times faster than its teacher
HEIGHT = 640  # pixels
LEGEND_ROWS = 2
PLOT_PIXELS = HEIGHT - style.MENU - style.BOTTOM - style.LEGEND_ROW * LEGEND_ROWS
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
    y_axis = {"title": {"text": style.TITLES[shown[0]]}, "range": y_ranges[shown[0]]}
    figure.update_layout(layout(x_axis, y_axis, HEIGHT, LEGEND_ROWS))
    # a phone's view leaves out the teacher, which lies far to the left of its students; its line remains
    figure.update_layout(margin_t=style.MENU, meta={"narrow": _x_range([x for x in ratios if x != 1] or ratios, log)})
    if max(ratios) >= TARGET[0]:
        figure.add_shape(
            type="rect", x0=TARGET[0], x1=TARGET[1], y0=0, y1=1, yref="paper", layer="below", line_width=0,
            fillcolor=GREY, opacity=0.13, label={"text": "target: 10 to 100", "textposition": "top right"},
        )  # fmt: skip
    if len(shown) > 1:
        figure.update_layout(updatemenus=[style.buttons_above(
            (style.TITLES[metric].removesuffix(", %"), {axis: [list(trace[axis]) for trace in traces] for axis in "yx"},
             {"yaxis.title.text": style.TITLES[metric], "yaxis.range": y_ranges[metric]})
            for metric, traces in drawn.items()
        )])  # fmt: skip
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
    own, sure = view["front"], view["confirmed"]
    crosses = {"symbol": "x-thin", "size": 7, "line": {"width": 1.5, "color": GREY}}
    circles = {"symbol": "circle-open", "size": 9, "color": GREEN, "line": {"width": 2}}
    by_recipe = {"symbol": "square-open", "size": 8, "color": ORANGE, "line": {"width": 1.6}}
    hollow = {"symbol": "diamond-open", "size": 9, "color": ORANGE, "line": {"width": 1.6}}
    filled = {"symbol": "diamond", "size": 8, "color": ORANGE}
    traces = [
        _marks(view["pruned"], "pruned", mode="markers", opacity=0.6, marker=crosses),
        _marks(view["dominated"], "dominated", mode="markers", opacity=0.45, marker={"size": 7, "color": GREY}),
        _marks(own, "front", mode="lines+markers", line={"shape": "vh", "color": BLUE, "width": 2},
               marker={"size": 12, "color": BLUE},
               error_x=_whiskers(own["low"], own["ratio"], own["high"], BLUE, 4)),
        _marks(sure, "confirmed with new seeds", mode="markers", marker=circles,
               error_x=_whiskers(sure["low"], sure["ratio"], sure["high"], GREEN, 3),
               error_y=_whiskers(sure["least"], sure["percent"], sure["most"], GREEN, 3)),
        _marks(view["recipe"], "slides, by the deck’s recipe", mode="markers", marker=by_recipe),
    ]  # fmt: skip
    # the labels of the layer at lower ratios go left, so that leaders of the two layers do not cross
    published_left = view["published"]["ratio"].median() < view["measured"]["ratio"].median()
    left = "published" if published_left else "measured"
    for name, title, marker in (
        ("published", "slides, published (another machine’s timing)", hollow),
        ("measured", "slides, run in this study", filled),
    ):
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


def _marks(frame: pd.DataFrame, name: str, **look: Any) -> go.Scatter:
    """Draw points with their trials' numbers as custom data, which the page uses to select them."""
    x, y, hover = ([*frame[key]] for key in ("ratio", "percent", "hover"))
    return go.Scatter(x=rounded(x), y=rounded(y), name=name, hovertext=hover, hoverinfo="text",
                      customdata=rounded(frame["trial"], 0), showlegend=bool(x), **look)  # fmt: skip


def _places(
    frame: pd.DataFrame, log: bool, x_range: list[float], y_range: list[float], *, left: bool
) -> dict[int, Label]:
    rows = [i for i, y in enumerate(frame["percent"]) if y == y]
    ratios, percents = [*frame["ratio"]], [*frame["percent"]]
    points = [(math.log10(ratios[i]) if log else ratios[i], percents[i]) for i in rows]
    width = x_range[1] - x_range[0]
    gap = (y_range[1] - y_range[0]) * style.LABEL / PLOT_PIXELS
    found = beside(points, near=0.03 * width, gap=gap, reach=(-0.045 if left else 0.045) * width)
    return dict(zip(rows, found, strict=True))


def _labelled(
    frame: pd.DataFrame, places: dict[int, Label], name: str, marker: dict[str, Any], log: bool, *, left: bool
) -> list[go.Scatter]:
    """Draw leader lines, points and labels of a layer of slide rows, which the legend shows and hides together."""
    xs: list[float | None] = []  # of the leader lines, with gaps between them
    ys: list[float | None] = []
    at: list[tuple[float | None, float | None]] = []  # of the labels
    for i, (ratio, percent) in enumerate(zip(frame["ratio"], frame["percent"], strict=True)):
        place = places.get(i)
        x, y = (10**place.x if log else place.x, place.y) if place else (None, None)
        at.append((x, y))
        joined = place is not None and place.crowded
        xs += (ratio, x, None) if joined else (ratio, None, None)
        ys += (percent, y, None) if joined else (None, None, None)
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


def _whiskers(low: pd.Series, middle: pd.Series, high: pd.Series, color: str, width: int) -> dict[str, Any]:
    def lengths(values: pd.Series) -> list[float]:
        return [round(max(0.0, value), 4) for value in values.fillna(0.0)]

    return {"type": "data", "symmetric": False, "thickness": 1.3, "width": width, "color": color,
            "array": lengths(high - middle), "arrayminus": lengths(middle - low)}  # fmt: skip
