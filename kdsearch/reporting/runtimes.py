"""Compare the ratios of the front's students by runtime and device, and whether their order stays the same."""

from __future__ import annotations

import html
import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import plotly.graph_objects as go

from kdsearch.reporting import formatting
from kdsearch.reporting.collect import StudyData
from kdsearch.reporting.figures.curves import HEIGHT, numbered
from kdsearch.reporting.figures.front import TICKS
from kdsearch.reporting.figures.style import BOTTOM, CYCLE, LABEL, SYMBOLS, layout, padded, rounded
from kdsearch.reporting.formatting import by, many, plain, records
from kdsearch.reporting.measured import DEVICE, FILE, HERE, is_figure

TICK = 14  # characters of a line below the figure
LONGEST = 40  # characters of a column's title
NAMED = 3  # swapped pairs that the sentence names
SEARCH, TORCH = "the search", "torch"
SOURCES = (HERE, FILE, DEVICE)  # in this order
WHERE = {HERE: "in", FILE: "as", DEVICE: "on"}

Cell = tuple[float, float, float]
"""A ratio and the ends of its interval; NaN where there is none."""
MISSING: Cell = (math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Column:
    """The ratios of one runtime on one device."""

    title: str  # short and unique
    where: str  # the same in a sentence: "in torch", "on Raspberry Pi 5"
    what: str  # how the ratios were measured, in words
    cells: dict[int, Cell]  # by trial


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
    rows = by(data.trials, "number")
    cells = {
        number: (row["ratio"], row["ratio_low"], row["ratio_high"])
        for number, row in rows.items()
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
        lambda row: f", {many(row['threads'], 'thread')}",
    ):
        count = Counter(titles)
        titles = [title + (more(row) if count[title] > 1 else "") for title, row in zip(titles, rows, strict=True)]
    titles = [title if len(title) <= LONGEST else f"{title[: LONGEST - 1]}…" for title in titles]
    return [title if titles.count(title) == 1 else f"{title} ({i})" for i, title in enumerate(titles, 1)]


def _title(row: Mapping[str, Any]) -> str:
    if row["source"] == DEVICE:
        return f"{row['device']}" + (f", {row['provider']}" if row["provider"] else "")
    return f"exported {row['runtime']}" if row["source"] == FILE else f"{row['runtime']}"


def _what(rows: Sequence[Mapping[str, Any]]) -> str:
    """Describe in one line how a column was measured; versions and dates may differ from row to row."""
    row = rows[0]
    versions = ", ".join(dict.fromkeys(each["version"] for each in rows))
    dates = sorted({each["date"][:10] for each in rows if each["date"]})
    said = [
        versions,
        row["provider"],
        row["device"],
        many(row["threads"], "thread") if row["threads"] else "",
        f"{row['batch']:,} images a batch",
        " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "",
    ]
    return ", ".join(filter(None, said))


def sentence(found: Sequence[Column], front: Sequence[int]) -> str:
    """Say whether the front's order stays: "In ONNX Runtime the order of the 5 students is that of the search."."""
    if not found:
        return ""
    before = found[0].cells
    same: dict[int, list[str]] = {}
    changed = []
    for column in found[1:]:
        both = sorted((n for n in front if n in before and n in column.cells), key=lambda number: before[number][0])
        swapped = _swapped(before, column.cells, both)
        if swapped:
            changed.append(f"{column.where} {_swaps(swapped, math.comb(len(both), 2))}")
        elif len(both) > 1:
            same.setdefault(len(both), []).append(column.where)
    kept = [f"{_listed(names)} the order of the {n} students is that of the search" for n, names in same.items()]
    if not kept and not changed:
        return "Fewer than two students of the front were measured outside of the search: there is no order to compare."
    text = "; ".join(kept + changed)
    return text[0].upper() + text[1:] + "."


def _swapped(before: Mapping[int, Cell], after: Mapping[int, Cell], both: Sequence[int]) -> list[tuple[int, int, bool]]:
    """Return the pairs that change places, the slower of the search first, and whether the change exceeds noise.

    A pair that ties in the search (equal architectures share a timing) has no order. A swap exceeds noise where the
    two intervals are apart in the search and apart the other way round in the column.
    """

    def apart(cells: Mapping[int, Cell], slow: int, fast: int) -> bool:
        return cells[slow][2] < cells[fast][1]

    return [
        (slow, fast, apart(before, slow, fast) and apart(after, fast, slow))
        for slow, fast in combinations(both, 2)
        if before[slow][0] < before[fast][0] and after[slow][0] > after[fast][0]
    ]


def _swaps(swapped: Sequence[tuple[int, int, bool]], pairs: int) -> str:
    if len(swapped) > NAMED:
        clear = sum(sure for *_, sure in swapped)
        return f"{len(swapped)} of {pairs} pairs of students change places, intervals apart for {clear or 'none'}"
    how = {True: "intervals apart", False: "within noise"}
    named = [f"{slow} and {fast} ({how[sure]})" for slow, fast, sure in swapped]
    return f"trials {_listed(named, ', and ')} change places"


def _listed(names: Sequence[str], last: str = " and ") -> str:
    return last.join(filter(None, (", ".join(names[:-1]), names[-1])))


def numbers(data: StudyData, found: Sequence[Column]) -> list[int]:
    """Return the trials to show: the front by ratio, then other measured ones."""
    front: list[int] = data.front["number"].tolist()
    others = {number for column in found[1:] for number in column.cells} - set(front)
    return front + sorted(others)


def view(data: StudyData) -> dict[str, Any] | None:
    """Return what the page and Markdown show; None without measurements.

    Returns:
        `sentence`, `titles` (of columns), `what` (how each was measured) and `rows`, one a trial: `number`, `on_front`,
        `test_accuracy` and `cells`, a text a column.
    """
    found = columns(data)
    if not found:
        return None
    trials = by(data.trials, "number")
    rows = [
        {key: trials[number][key] for key in ("number", "on_front", "test_accuracy")}
        | {"cells": [formatting.interval(*column.cells.get(number, MISSING)) for column in found]}
        for number in numbers(data, found)
    ]
    return {
        "sentence": sentence(found, data.front["number"].tolist()),
        "titles": [column.title for column in found],
        "what": [(column.title, column.what) for column in found],
        "rows": rows,
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
    return {"sentence": sentence(found, data.front["number"].tolist()), "columns": plain(listed)}


def figure(data: StudyData) -> go.Figure | None:
    """Draw a line a trial over runtimes and devices; where lines cross, students change places.

    None with fewer than two trials to compare.
    """
    found = columns(data)
    shown = [number for number in numbers(data, found) if any(number in column.cells for column in found[1:])]
    if len(shown) < 2:
        return None
    lines = [_line(i, number, found) for i, number in enumerate(shown)]
    heights = [math.log10(column.cells[number][0]) for column in found for number in shown if number in column.cells]
    y_range = padded(min(heights), max(heights))
    last = {number: max(i for i, column in enumerate(found) if number in column.cells) for number in shown}
    ends = [(float(last[number]), math.log10(found[last[number]].cells[number][0])) for number in shown]
    names = numbered(shown, ends, y_range, near=0.1, reach=0.15, log=True)
    ticks = [textwrap.wrap(column.title, TICK) for column in found]
    x_axis = {"tickvals": [*range(len(found))], "ticktext": ["<br>".join(map(html.escape, tick)) for tick in ticks],
              "range": [-0.3, len(found) - 0.5]}  # fmt: skip
    y_axis = {"title": {"text": "inference ratio: teacher / student"}, "type": "log", "range": y_range,
              "tickvals": TICKS, "ticktext": [f"{tick:,g}" for tick in TICKS]}  # fmt: skip
    below = LABEL * max(map(len, ticks))
    drawn = go.Figure([*lines, names], layout(x_axis, y_axis, HEIGHT + below))
    return drawn.update_layout(margin_b=BOTTOM + below, showlegend=False)


def _line(i: int, number: int, found: Sequence[Column]) -> go.Scatter:
    cells = [column.cells.get(number, MISSING) for column in found]
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
