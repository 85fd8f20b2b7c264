"""Compare several studies in one page: overlaid fronts, hypervolumes, picks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from kdsearch.reporting import formatting
from kdsearch.reporting.collect import StudyData, result
from kdsearch.reporting.figures.layers import hover
from kdsearch.reporting.figures.style import CYCLE, LEGEND_ROW, SYMBOLS, TITLES, layout, rounded
from kdsearch.reporting.formatting import records
from kdsearch.reporting.pages.document import Document, Grid, Section
from kdsearch.reporting.verdict import KNEE, effort, picks

HEIGHT = 520


def fronts(studies: Sequence[StudyData]) -> go.Figure:
    """Draw test accuracy against inference ratio of each study's front, a step line and a marker shape a study."""
    traces = []
    for i, data in enumerate(studies):
        rows = [row for row in records(data.front) if row["ratio"] > 0 and not formatting.missing(row["test_accuracy"])]
        color, symbol = CYCLE[i % len(CYCLE)], SYMBOLS[i % len(SYMBOLS)]
        traces.append(
            go.Scatter(
                x=rounded(row["ratio"] for row in rows), y=rounded(100 * row["test_accuracy"] for row in rows),
                mode="lines+markers", name=html.escape(data.name), line={"shape": "vh", "color": color, "width": 2},
                marker={"symbol": symbol, "size": 9, "color": color}, hovertext=[hover(row) for row in rows],
                hoverinfo="text",
            )
        )  # fmt: skip
    x_axis = {"title": {"text": "inference ratio: teacher / student"}, "type": "log"}
    return go.Figure(traces, layout(x_axis, {"title": {"text": TITLES["test_accuracy"]}}, HEIGHT + LEGEND_ROW, 1))


def grid(studies: Sequence[StudyData]) -> Grid:
    """Return one row a study."""
    header = ("study", "data set", "cost", "finished trials", "on the front", "hypervolume", "knee", "test", "ratio",
              "machine")  # fmt: skip
    return Grid(header, [_cells(data) for data in studies])


def _cells(data: StudyData) -> list[str]:
    knee = next((pick.row for pick in picks(data) if pick.title == KNEE), None)
    finished = data.counts["complete"] + data.counts["pruned"]
    volume = formatting.NOTHING if data.hypervolume is None else f"{data.hypervolume:.4f}"
    of_knee = [formatting.NOTHING] * 3
    if knee:
        of_knee = [f"{knee['number']}", formatting.percent(knee["test_accuracy"]), formatting.ratio_of(knee)]
    machine = str(data.environment.get("device_model") or formatting.NOTHING)
    return [data.name, str(data.dataset or formatting.NOTHING), data.cost, f"{finished}", f"{len(data.front)}", volume,
            *of_knee, machine]  # fmt: skip


def page(studies: Sequence[StudyData]) -> Document:
    """Return the page; its verdict names the study of the largest hypervolume, or says that they do not compare."""
    notes = [f"{data.name}: {effort(data)}." for data in studies if effort(data)]
    sections = [
        Section("The fronts", figure=fronts(studies), caption="Each front is chosen by validation accuracy and ratio.",
                anchor="fronts"),
        Section("The studies", grid=grid(studies), text=[*unlike(studies), *notes], anchor="studies"),
    ]  # fmt: skip
    facts = [f"{data.name}: `{data.command}`" for data in studies if data.command]
    return Document(
        title=" and ".join(data.name for data in studies), verdict=verdict(studies), facts=facts, sections=sections
    )


def verdict(studies: Sequence[StudyData]) -> str:
    """Say which study's hypervolume is largest."""
    known = [(data.hypervolume, data.name) for data in studies if data.hypervolume is not None]
    if unlike(studies):
        return "These studies differ in data, cost or machine, so their fronts do not compare."
    if not known:
        return "No study has a complete trial yet."
    most = max(known)[0]
    if sum(f"{volume:.4f}" == f"{most:.4f}" for volume, _ in known) > 1:
        return f"No front covers more than all others; the largest hypervolume is {most:.4f}."
    ordered = ", ".join(f"{name} {volume:.4f}" for volume, name in sorted(known, reverse=True))
    return f"The front of {max(known)[1]} covers most; hypervolumes: {ordered}. One run each: no interval."


def unlike(studies: Sequence[StudyData]) -> list[str]:
    """List what differs between the studies that a comparison needs to be equal."""
    asked = {
        "data": lambda data: (data.definition.get("data") or {}).get("fingerprint"),
        "cost": lambda data: data.cost,
        "machine": lambda data: data.environment.get("device_model") if data.cost != "flops" else None,
        "floor of accuracy": lambda data: data.floor,
        "teacher": lambda data: (data.teacher or {}).get("fingerprint"),
    }
    return [
        f"The studies differ in their {name}."
        for name, find in asked.items()
        if len({str(find(data)) for data in studies}) > 1
    ]


def text(studies: Sequence[StudyData]) -> str:
    """Return the comparison for a terminal."""
    found = grid(studies)
    rows = [found.header, *found.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, verdict(studies)]) + "\n"


def compared(studies: Sequence[StudyData]) -> dict[str, Any]:
    """Return what `--compare ... --json` prints: each study's result, the verdict, and what differs between them."""
    return {
        "studies": [result(data, report=None) for data in studies],
        "verdict": verdict(studies),
        "unlike": unlike(studies),
    }
