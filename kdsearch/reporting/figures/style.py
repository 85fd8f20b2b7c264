"""Shared by all figures: colours, layout, and the conversion of numbers for Plotly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kdsearch.reporting import formatting

# near Okabe and Ito's colours, each with a contrast of 3 or more on the light and on the dark page
BLUE, ORANGE, PURPLE, GREY, GREEN = "#1a7fc4", "#d55e00", "#a85fb8", "#868c96", "#0f9a72"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, "#a8821a", "#3a9ad0", "#c2577e")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "star", "hexagon")
TITLES = {"test_accuracy": "test accuracy, %", "accuracy": "validation accuracy, %"}
TOP, BOTTOM = 16, 56  # margins in pixels; the lower one holds ticks and title
MENU = 44  # pixels above a plot that has buttons
LABEL, LEGEND_ROW = 14, 22  # height in pixels of a label among others, and of a row of the legend


def layout(x_axis: dict[str, Any], y_axis: dict[str, Any], height: int, rows: int = 0) -> dict[str, Any]:
    """Return a compact layout on a transparent ground; the page recolours text and grid for its scheme.

    Args:
        x_axis, y_axis: settings of the axes beyond the shared ones.
        height: pixels.
        rows: rows that the legend below needs.
    """
    grid = {"gridcolor": "#e3e6ea", "zeroline": False}
    return {
        "template": "none", "height": height, "hovermode": "closest", "hoverlabel": {"align": "left"},
        "margin": {"l": 58, "r": 16, "t": TOP, "b": BOTTOM + LEGEND_ROW * rows},
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left",
                   "yref": "container", "y": 0, "yanchor": "bottom"},
        "xaxis": grid | x_axis, "yaxis": grid | y_axis,
    }  # fmt: skip


def buttons_above(updates: Iterable[tuple[str, dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Return buttons above a plot, dark on light in both colour schemes: Plotly paints the active one light.

    Args:
        updates: of each button: its label, what it changes in the traces, and what in the layout.
    """
    buttons = [{"label": label, "method": "update", "args": [data, shape]} for label, data, shape in updates]
    return {
        "type": "buttons", "direction": "right", "buttons": buttons, "x": 0, "xanchor": "left", "y": 1,
        "yanchor": "bottom", "pad": {"b": 8, "t": 0, "l": 0, "r": 0}, "bgcolor": "#d5dae1",
        "bordercolor": "#8d95a1", "font": {"color": "#16191d", "size": 12},
    }  # fmt: skip


def padded(low: float, high: float) -> list[float]:
    """Return a range a little wider than its ends."""
    pad = 0.08 * (high - low) or 1.0
    return [round(low - pad, 3), round(high + pad, 3)]


def rounded(values: Iterable[Any], digits: int = 4) -> list[Any]:
    """Return a plain list, None for NaN: Plotly would write a frame's array as base64, which tests cannot read."""
    return [None if formatting.missing(value) else round(value, digits) for value in values]
