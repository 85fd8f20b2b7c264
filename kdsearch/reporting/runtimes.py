"""Compare the ratios of the front's students by runtime and device, and whether their order stays the same."""

from __future__ import annotations

import html
import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import plotly.graph_objects as go

from kdsearch.reporting import formatting
from kdsearch.reporting.collect import StudyData, plain
from kdsearch.reporting.figures.front import TICKS
from kdsearch.reporting.figures.layers import beside
from kdsearch.reporting.figures.style import BOTTOM, CYCLE, LABEL, SYMBOLS, TOP, layout, padded, rounded
from kdsearch.reporting.formatting import records
from kdsearch.reporting.measured import DEVICE, FILE, HERE, is_figure

HEIGHT = 420
TICK = 14  # characters of a line below the figure
LONGEST = 40  # characters of a column's title
NAMED = 3  # swapped pairs that the sentence names
SEARCH, TORCH = "the search", "torch"
SOURCES = (HERE, FILE, DEVICE)  # in this order
WHERE = {HERE: "in", FILE: "as", DEVICE: "on"}

Cell = tuple[float, float, float]
"""A ratio and the ends of its interval; NaN where there is none."""


@dataclass(frozen=True)
class Column:
    """The ratios of one runtime on one device.

    Attributes:
        title: short and unique.
        where: the same in a sentence: "in torch", "on Raspberry Pi 5".
        what: how the ratios were measured, in words.
        cells: by trial.
    """

    title: str
    where: str
    what: str
    cells: dict[int, Cell] = field(default_factory=dict)


@dataclass(frozen=True)
class Order:
    """The order of the students in a column compared with the search's.

    Attributes:
        where: as the column's.
        trials: those that both hold.
        swapped: pairs that change places, the slower of the search first, and whether the change exceeds noise.
    """

    where: str
    trials: int
    swapped: tuple[tuple[int, int, bool], ...]


def columns(data: StudyData) -> list[Column]:
    """Return the search's ratios, then each runtime's and device's; empty without other measurements."""
    numbers = set(data.trials["number"])
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in records(data.measured):
        if row["trial"] in numbers:
            setup = tuple(row[name] for name in ("source", "runtime", "device", "provider", "threads", "batch"))
            groups.setdefault(setup, []).append(row)
    if not groups:
        return []
    found = [_of_search(data)]
    ordered = sorted(groups.values(), key=lambda rows: (SOURCES.index(rows[0]["source"]), rows[0]["runtime"] != TORCH))
    for title, rows in zip(_titles(ordered), ordered, strict=True):
        cells = {int(row["trial"]): (row["ratio"], row["low"], row["high"]) for row in rows}
        found.append(Column(title, f"{WHERE[rows[0]['source']]} {title}", _what(rows), cells))
    return found


def _of_search(data: StudyData) -> Column:
    cells = {
        int(row["number"]): (row["ratio"], row["ratio_low"], row["ratio_high"])
        for row in records(data.trials)
        if is_figure(row["ratio"])
    }
    what = "counted operations" if data.cost == "flops" else f"as the search measured it, --cost {data.cost}"
    return Column(SEARCH, f"in {SEARCH}", what, cells)


def _titles(groups: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return a title for each group of rows, as short as possible and unique."""
    rows = [group[0] for group in groups]
    titles = [_title(row) for row in rows]
    for more in (
        lambda row: f" on {row['device']}" if row["source"] != DEVICE and row["device"] else "",
        lambda row: f", batch {row['batch']}",
        lambda row: f", {_threads(row['threads'])}",
    ):
        count = Counter(titles)
        titles = [title + (more(row) if count[title] > 1 else "") for title, row in zip(titles, rows, strict=True)]
    titles = [title if len(title) <= LONGEST else f"{title[: LONGEST - 1]}…" for title in titles]
    return [title if titles.count(title) == 1 else f"{title} ({i})" for i, title in enumerate(titles, 1)]


def _title(row: Mapping[str, Any]) -> str:
    if row["source"] == FILE:
        return f"exported {row['runtime']}"
    if row["source"] == DEVICE:
        return f"{row['device']}" + (f", {row['provider']}" if row["provider"] else "")
    return f"{row['runtime']}"


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _what(rows: Sequence[Mapping[str, Any]]) -> str:
    """Describe in one line how a column was measured; versions and dates may differ from row to row."""
    row = rows[0]
    versions = ", ".join(dict.fromkeys(each["version"] for each in rows))
    dates = sorted({each["date"][:10] for each in rows if each["date"]})
    said = [
        versions,
        row["provider"],
        row["device"],
        _threads(row["threads"]) if row["threads"] else "",
        f"{row['batch']:,} images a batch",
        " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "",
    ]
    return ", ".join(part for part in said if part)


def order(found: Sequence[Column], front: Sequence[int]) -> list[Order]:
    """Return, for each column but the search's that holds two members of the front or more, the pairs that swap.

    A pair that ties in the search (equal architectures share a timing) has no order. A swap exceeds noise where the
    two intervals are apart in the search and apart the other way round in the column.

    Args:
        found: of `columns`.
        front: numbers of the front's members.
    """
    if not found:
        return []
    told = []
    for column in found[1:]:
        both = [number for number in front if number in column.cells and number in found[0].cells]
        both.sort(key=lambda number: found[0].cells[number][0])
        swapped = [
            (slow, fast, _apart(found[0].cells, slow, fast) and _apart(column.cells, fast, slow))
            for slow, fast in combinations(both, 2)
            if found[0].cells[slow][0] < found[0].cells[fast][0] and column.cells[slow][0] > column.cells[fast][0]
        ]
        if len(both) > 1:
            told.append(Order(column.where, len(both), tuple(swapped)))
    return told


def _apart(cells: Mapping[int, Cell], slow: int, fast: int) -> bool:
    return cells[slow][2] < cells[fast][1]


def sentence(found: Sequence[Column], front: Sequence[int]) -> str:
    """Say whether the students' order stays: "In ONNX Runtime the order of the 5 students is that of the search."

    Args:
        found, front: as in `order`.
    """
    told = order(found, front)
    if not found:
        return ""
    if not told:
        return "Fewer than two students of the front were measured outside of the search: there is no order to compare."
    same: dict[int, list[str]] = {}
    for each in told:
        if not each.swapped:
            same.setdefault(each.trials, []).append(each.where)
    said = [
        f"{_listed(names)} the order of the {count} students is that of the search" for count, names in same.items()
    ]
    said += [f"{each.where} {_swaps(each)}" for each in told if each.swapped]
    text = "; ".join(said)
    return text[0].upper() + text[1:] + "."


def _swaps(each: Order) -> str:
    clear = sum(sure for *_, sure in each.swapped)
    if len(each.swapped) > NAMED:
        pairs = math.comb(each.trials, 2)
        return f"{len(each.swapped)} of {pairs} pairs of students change places, intervals apart for {clear or 'none'}"
    named = [
        f"{slow} and {fast} ({'intervals apart' if sure else 'within noise'})" for slow, fast, sure in each.swapped
    ]
    return f"trials {_listed(named, ', and ')} change places"


def _listed(names: Sequence[str], last: str = " and ") -> str:
    return last.join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def numbers(data: StudyData, found: Sequence[Column]) -> list[int]:
    """Return the trials to show: the front by ratio, then other measured ones."""
    front = [int(number) for number in data.front["number"]]
    others = {number for column in found[1:] for number in column.cells} - set(front)
    return front + sorted(others)


def rows(data: StudyData, found: Sequence[Column]) -> list[dict[str, Any]]:
    """Return one row a trial: `number`, `on_front`, `test_accuracy` and `cells`, a text a column."""
    by_number = {row["number"]: row for row in records(data.trials)}
    missing: Cell = (math.nan,) * 3
    return [
        {key: by_number[number][key] for key in ("number", "on_front", "test_accuracy")}
        | {"cells": [formatting.interval(*column.cells.get(number, missing)) for column in found]}
        for number in numbers(data, found)
    ]


def view(data: StudyData) -> dict[str, Any] | None:
    """Return what the page and Markdown show: `sentence`, `titles`, `what`, `rows`; None without measurements."""
    found = columns(data)
    if not found:
        return None
    return {
        "sentence": sentence(found, [int(number) for number in data.front["number"]]),
        "titles": [column.title for column in found],
        "what": [(column.title, column.what) for column in found],
        "rows": rows(data, found),
    }


def result(data: StudyData) -> dict[str, Any] | None:
    """Return the comparison for JSON: each column with its figures by trial."""
    found = columns(data)
    if not found:
        return None
    shown = numbers(data, found)
    listed = [
        {"title": column.title, "what": column.what, "trials": [
            {"trial": number, **dict(zip(("ratio", "low", "high"), column.cells[number], strict=True))}
            for number in shown if number in column.cells]}
        for column in found
    ]  # fmt: skip
    said: dict[str, Any] = plain(
        {"sentence": sentence(found, [int(number) for number in data.front["number"]]), "columns": listed}
    )
    return said


def figure(data: StudyData) -> go.Figure | None:
    """Draw a line a trial over runtimes and devices; where lines cross, students change places.

    None with fewer than two trials to compare.
    """
    found = columns(data)
    shown = [number for number in numbers(data, found) if any(number in column.cells for column in found[1:])]
    if len(shown) < 2:
        return None
    traces = [_line(i, number, found) for i, number in enumerate(shown)]
    heights = [math.log10(column.cells[number][0]) for column in found for number in shown if number in column.cells]
    y_range = padded(min(heights), max(heights))
    traces.append(_numbers(shown, found, y_range))
    ticks = [textwrap.wrap(column.title, TICK) for column in found]
    x_axis = {"tickvals": [*range(len(found))], "ticktext": ["<br>".join(map(html.escape, tick)) for tick in ticks],
              "range": [-0.3, len(found) - 0.5]}  # fmt: skip
    y_axis = {"title": {"text": "inference ratio: teacher / student"}, "type": "log", "range": y_range,
              "tickvals": TICKS, "ticktext": [f"{tick:,g}" for tick in TICKS]}  # fmt: skip
    lines = max(map(len, ticks))
    drawn = go.Figure(traces, layout(x_axis, y_axis, HEIGHT + LABEL * lines))
    return drawn.update_layout(margin_b=BOTTOM + LABEL * lines, showlegend=False)


def _line(i: int, number: int, found: Sequence[Column]) -> go.Scatter:
    cells = [column.cells.get(number, (math.nan,) * 3) for column in found]
    color, symbol = CYCLE[i % len(CYCLE)], SYMBOLS[i % len(SYMBOLS)]
    told = [
        f"<b>trial {number}</b><br>{html.escape(column.title)}: {formatting.interval(*cell)}"
        for column, cell in zip(found, cells, strict=True)
    ]
    bars = {"type": "data", "symmetric": False, "thickness": 1.3, "width": 4, "color": color,
            "array": rounded(high - ratio for ratio, _, high in cells),
            "arrayminus": rounded(ratio - low for ratio, low, _ in cells)}  # fmt: skip
    return go.Scatter(
        x=[*range(len(found))], y=rounded(ratio for ratio, *_ in cells), mode="lines+markers", name=f"trial {number}",
        connectgaps=True,
        line={"color": color, "width": 1.5}, marker={"symbol": symbol, "size": 8, "color": color}, error_y=bars,
        hovertext=told, hoverinfo="text", customdata=[number] * len(found),
    )  # fmt: skip


def _numbers(shown: Sequence[int], found: Sequence[Column], y_range: Sequence[float]) -> go.Scatter:
    """Draw the trials' numbers where their lines end, so that readers need not look up colours."""
    ends = []
    for number in shown:
        last = max(i for i, column in enumerate(found) if number in column.cells)
        ends.append((float(last), math.log10(found[last].cells[number][0])))
    gap = (y_range[1] - y_range[0]) * LABEL / (HEIGHT - TOP - BOTTOM)
    places = beside(ends, near=0.1, gap=gap, reach=0.15)
    return go.Scatter(
        x=rounded(place.x for place in places), y=rounded(10**place.y for place in places), mode="text",
        text=[str(number) for number in shown], textposition="middle right", textfont={"size": 11},
        hoverinfo="skip", showlegend=False,
    )  # fmt: skip
