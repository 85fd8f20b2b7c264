"""Figures of the search space: parameter importances, and accuracy against each parameter."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from kdsearch.reporting import formatting
from kdsearch.reporting.collect import CONFIG, StudyData
from kdsearch.reporting.figures.style import (
    BLUE,
    GREY,
    LEGEND_ROW,
    MENU,
    ORANGE,
    TITLES,
    buttons_above,
    layout,
    rounded,
)
from kdsearch.reporting.formatting import records

HEIGHT = 420
DECADES = 30  # largest over smallest value from which an axis is logarithmic
MOST = 8  # buttons in a row


def importances(data: StudyData) -> go.Figure:
    """Draw the shares of each objective's variance that the parameters explain, as grouped bars."""
    rows = records(data.importances)[::-1]  # Plotly draws from below
    names = [str(row["parameter"]).replace("_", " ") for row in rows]
    traces = [
        go.Bar(y=names, x=rounded(100 * row[objective] for row in rows), name=name, orientation="h",
               marker={"color": color, "pattern": {"shape": pattern}}, hovertemplate="%{y}: %{x:.0f} %<extra></extra>")
        for objective, name, color, pattern in (
            ("ratio", "inference ratio", ORANGE, "/"), ("accuracy", "validation accuracy", BLUE, ""))
    ]  # fmt: skip
    figure = go.Figure(traces)
    x_axis = {"title": {"text": "share of the spread explained, %"}, "range": [0, 100]}
    figure.update_layout(layout(x_axis, {"automargin": True}, 120 + 44 * len(rows), 1), barmode="group")
    figure.update_layout(legend_traceorder="reversed")
    return figure


def slices(data: StudyData) -> go.Figure | None:
    """Draw validation accuracy against one parameter, with buttons for the others; None where none varied."""
    rows = [row for row in records(data.trials) if not formatting.missing(row["accuracy"]) and row["epochs_run"] > 0]
    keys = [key for key in data.trials.columns if key.startswith(CONFIG) and _varies(rows, key)][:MOST]
    if not keys:
        return None
    groups = [("other trials", [row for row in rows if not row["on_front"]], {"color": GREY, "size": 6, "symbol": "x"}),
              ("front", [row for row in rows if row["on_front"]], {"color": BLUE, "size": 10})]  # fmt: skip
    traces = [
        go.Scatter(x=[_value(row.get(keys[0])) for row in group], y=rounded(100 * row["accuracy"] for row in group),
                   mode="markers", name=name, marker=marker, opacity=0.55 if name != "front" else 1,
                   customdata=[row["number"] for row in group],
                   hovertemplate="trial %{customdata}: %{x}, %{y:.2f} %<extra></extra>")
        for name, group, marker in groups
    ]  # fmt: skip
    figure = go.Figure(traces)
    buttons = [
        {"label": _title(key), "method": "update",
         "args": [{"x": [[_value(row.get(key)) for row in group] for _, group, _ in groups]},
                  {"xaxis.title.text": _title(key), "xaxis.type": _axis(rows, key), "xaxis.autorange": True}]}
        for key in keys
    ]  # fmt: skip
    x_axis = {"title": {"text": _title(keys[0])}, "type": _axis(rows, keys[0])}
    figure.update_layout(layout(x_axis, {"title": {"text": TITLES["accuracy"]}}, HEIGHT + LEGEND_ROW, 1))
    if len(buttons) > 1:
        figure.update_layout(margin_t=MENU, updatemenus=[buttons_above(buttons)])
    return figure


def _title(key: str) -> str:
    return key.removeprefix(CONFIG).replace("_", " ")


def _value(value: object) -> Any:
    """Return a number as a number, anything else as text for a categorical axis."""
    if formatting.missing(value):
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return round(value, 6)
    return formatting.setting(value)


def _varies(rows: list[dict[str, Any]], key: str) -> bool:
    return len({value for row in rows if (value := _value(row.get(key))) is not None}) > 1


def _axis(rows: list[dict[str, Any]], key: str) -> str:
    values = [value for row in rows if (value := _value(row.get(key))) is not None]
    if not all(isinstance(value, int | float) for value in values):
        return "category"
    return "log" if min(values) > 0 and max(values) >= DECADES * min(values) else "linear"
