"""Figures of the search's progress: learning curves and hypervolume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from kdsearch.reporting import formatting
from kdsearch.reporting.collect import StudyData
from kdsearch.reporting.figures import style
from kdsearch.reporting.figures.layers import beside, curve_groups
from kdsearch.reporting.figures.style import BLUE, CYCLE, GREY, SYMBOLS, layout, padded, rounded
from kdsearch.reporting.formatting import records

HEIGHT = 420
AXES = {"finished": "finished trials", "epochs": "epochs of training", "hours": "hours since the first trial began"}
# the trial's number is in the trace already: a text for each point would double the page of a long study
HOVER = "trial %{text} · epoch %{x}: %{y:.2f} %<extra></extra>"


def learning_curves(data: StudyData) -> go.Figure:
    """Draw validation accuracy against epoch, a line a trial.

    The front is coloured and numbered at its lines' ends; pruned trials are dotted and end in a cross.
    """
    groups = curve_groups(data)
    every = [curve for group in groups.values() for curve in group]
    percents = sorted(y for curve in every for y in curve["percents"]) or [0.0, 100.0]
    longest = max((curve["epochs"][-1] for curve in every), default=1)
    # untrained starts would flatten the curves above them: the lowest twentieth may fall outside the view
    y_range = padded(percents[len(percents) // 20], percents[-1])
    x_range = [0.5, longest + max(0.5, 0.06 * longest)]
    traces = []
    if groups["other"]:
        traces.append(_bundle(groups["other"], "dominated", {}))
    if groups["pruned"]:
        traces.append(_bundle(groups["pruned"], "pruned", {"dash": "dot"}))
        traces.append(_ends(groups["pruned"]))
    traces += [_curve(i, curve) for i, curve in enumerate(groups["front"])]
    rows = math.ceil(len(traces) / 5)
    if groups["front"]:
        ends = [(float(curve["epochs"][-1]), curve["percents"][-1]) for curve in groups["front"]]
        numbers, width = [curve["trial"] for curve in groups["front"]], x_range[1] - x_range[0]
        traces.append(numbered(numbers, ends, y_range, near=0.02 * width, reach=0.012 * width))
    x_axis: dict[str, Any] = {"title": {"text": "epoch"}, "range": x_range, "tickformat": ",d"}
    if longest <= 12:
        x_axis["dtick"] = 1
    y_axis = {"title": {"text": style.TITLES["accuracy"]}, "range": y_range}
    return go.Figure(traces, layout(x_axis, y_axis, HEIGHT + style.LEGEND_ROW * rows, rows))


def hypervolume(data: StudyData) -> go.Figure:
    """Draw the hypervolume of the complete trials, a step line over finished trials, epochs of training or hours."""
    rows = records(data.history)
    axes = [(key, title) for key, title in AXES.items() if data.history[key].notna().all()]
    text = [f"after {row['finished']} finished trials (trial {row['trial']}): {row['hypervolume']:.4f}" for row in rows]
    figure = go.Figure(
        go.Scatter(
            x=[row["finished"] for row in rows], y=rounded((row["hypervolume"] for row in rows), 5),
            mode="lines+markers", line={"shape": "hv", "color": BLUE, "width": 2},
            hovertext=text, hoverinfo="text", marker={"size": 4}, showlegend=False,
        )
    )  # fmt: skip
    x_axis = {"title": {"text": "finished trials"}, "tickformat": ",d"}
    figure.update_layout(layout(x_axis, {"title": {"text": "hypervolume"}}, 320))
    if rows and len(axes) > 1:
        figure.update_layout(margin_t=style.MENU, updatemenus=[style.buttons_above(
            (title.split(" ")[0] if key == "hours" else title, {"x": [rounded(row[key] for row in rows)]},
             {"xaxis.title.text": title})
            for key, title in axes
        )])  # fmt: skip
    return figure


def _curve(i: int, curve: dict[str, Any]) -> go.Scatter:
    name = f"trial {curve['trial']}" + (f" ({curve['anchor']})" if curve["anchor"] else "")
    color, symbol = CYCLE[i % len(CYCLE)], SYMBOLS[i % len(SYMBOLS)]
    return go.Scatter(
        x=curve["epochs"], y=rounded(curve["percents"]), name=f"{name}, ratio {formatting.ratio(curve['ratio'])}",
        mode="lines+markers", line={"color": color, "width": 2}, marker={"symbol": symbol, "size": 7},
        text=[str(curve["trial"])] * len(curve["epochs"]), hovertemplate=HOVER,
    )  # fmt: skip


def numbered(
    trials: Sequence[int], ends: Sequence[tuple[float, float]], y_range: list[float], *, near: float, reach: float,
    log: bool = False,
) -> go.Scatter:  # fmt: skip
    """Draw the trials' numbers where their lines end, so that readers need not look up colours.

    Args:
        trials, ends: their numbers, and (x, y) of each line's last point.
        y_range: of the view, HEIGHT pixels high.
        near, reach: see `layers.beside`.
        log: whether heights are log10 of what the axis shows.
    """
    gap = (y_range[1] - y_range[0]) * style.LABEL / (HEIGHT - style.TOP - style.BOTTOM)
    places = beside(ends, near=near, gap=gap, reach=reach)
    return go.Scatter(
        x=rounded(place.x for place in places), y=rounded(10**place.y if log else place.y for place in places),
        mode="text", text=[str(trial) for trial in trials], textposition="middle right", textfont={"size": 11},
        hoverinfo="skip", showlegend=False,
    )  # fmt: skip


def _bundle(curves: list[dict[str, Any]], name: str, line: dict[str, Any]) -> go.Scatter:
    """Draw many faint curves as one trace with gaps: a thousand traces would be slow."""
    x, y, text = [], [], []
    for curve in curves:
        x += [*curve["epochs"], None]
        y += [*curve["percents"], None]
        text += [str(curve["trial"])] * (len(curve["epochs"]) + 1)
    return go.Scatter(
        x=x, y=rounded(y), name=name, mode="lines+markers", marker={"size": 3}, opacity=0.5,
        line={"color": GREY, "width": 1} | line, text=text, hovertemplate=HOVER,
    )  # fmt: skip


def _ends(curves: list[dict[str, Any]]) -> go.Scatter:
    return go.Scatter(
        x=[curve["epochs"][-1] for curve in curves], y=rounded(curve["percents"][-1] for curve in curves),
        mode="markers", name="stopped here", opacity=0.7,
        text=[str(curve["trial"]) for curve in curves], hovertemplate=HOVER,
        marker={"symbol": "x-thin", "size": 7, "line": {"width": 1.6, "color": GREY}},
    )  # fmt: skip
