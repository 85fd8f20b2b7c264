"""The bench's two reports: a page with figures and tables, and the same tables in Markdown."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import plotly.graph_objects as go
import torch
from markupsafe import Markup

from kdsearch import runtime
from kdsearch.bench.replay import SAMPLED, Arm
from kdsearch.bench.search import Measured
from kdsearch.bench.summary import METRICS, SHARES, Bar, band, bars, random_arm
from kdsearch.files import write_whole

NAME = "bench-search"
# The arms of the figure: key, title, colour (near Okabe and Ito's), dash
DRAWN = (
    (random_arm("none"), "no pruning", "#868c96", "solid"),
    (random_arm("dominance"), "same-epoch dominance", "#a8821a", "dot"),
    (random_arm("moasha"), "MO-ASHA", "#a85fb8", "dash"),
    (random_arm("hub"), "OptunaHub's joint rule", "#0f9a72", "dashdot"),
    (random_arm("pruner"), "ParetoPruner", "#3a9ad0", "longdash"),
    (random_arm("ours"), "ParetoPruner and better proposals", "#1a7fc4", "solid"),
    (random_arm("oracle"), "hindsight oracle", "#d55e00", "dot"),
    (Arm("tpe", SAMPLED, "none").key, "TPE, epochs sampled, no pruning", "#3b3f46", "longdashdot"),
)
BANDED = (random_arm("none"), random_arm("ours"))  # all eight bands would hide each other
POINTS = 80
FLOOR = 0.8  # of the figure's axis: below it, all arms are alike
METHODS = {
    "none": "no pruning: every trial runs to its end",
    "dominance": "prune when a trial at least as fast was better at the same epoch",
    "moasha": "multi-objective ASHA (arXiv 2106.12639), rungs at 1, 3, 9, ... epochs, the best third goes on",
    "hub": "the joint rule of OptunaHub's `pruners/multi_metric_pruner` around Optuna's MedianPruner",
    "pruner": "`kdsearch.ParetoPruner`",
    "proposals": "better proposals alone: of several candidates, the one with the highest expected gain",
    "ours": "ParetoPruner with the better proposals",
    "oracle": "knows each row's future: goes on only while a checkpoint to come would grow the hypervolume",
}
TUNED = (
    "Tuning used tables that do not ship (digits with split_seed 1 and 450 other configurations, MNIST with 10,000 "
    "training images, split_seed 1 and 300 other configurations) and replay seeds 100 and up."
)


@dataclass(frozen=True)
class Grid:
    """A table to print.

    Attributes:
        title: above it.
        note: below the title.
        header: of its columns.
        rows: of text.
    """

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def _spread(values: Sequence[float], form: str) -> str:
    middle, low, high = (format(value, form) for value in values)
    return f"{middle} [{low}, {high}]"


def _interval(speedup: dict[str, float]) -> str:
    return f"{speedup['ratio']:.2f} ({speedup['low']:.2f} to {speedup['high']:.2f})"


def _who(arm: dict[str, Any]) -> list[str]:
    workers = f", {arm['workers']} workers" if arm["workers"] > 1 else ""
    return [arm["sampler"] + workers, arm["epochs"], arm["method"]]


def _bars_grid(found: Sequence[Bar]) -> Grid:
    rows = [[bar.table, bar.what, bar.bar, bar.figure, "met" if bar.met else "not met"] for bar in found]
    return Grid("Bars", "", ("table", "what", "bar", "figure", ""), rows)


def _arms_grid(name: str, summary: dict[str, Any], metric: str) -> Grid:
    what = {
        METRICS[0]: "Hypervolume of `study.best_trials`: a trial counts when it is COMPLETE.",
        METRICS[1]: "Hypervolume of all checkpoints: each counts at once, those of pruned trials too.",
    }[metric]
    rows = []
    for arm in summary["arms"].values():
        own = arm[metric]
        rows.append([
            *_who(arm),
            *(_spread(own["epochs_to"][str(share)], ".0f") for share in SHARES),
            *(f"{own['reach'][str(share)]:.0%}" for share in SHARES),
            _spread(own["final"], ".4f"),
            f"{arm['trials']:.0f}",
        ])  # fmt: skip
    header = [
        "sampler",
        "epochs",
        "method",
        *(f"epochs to {s:.0%}" for s in SHARES),
        *(f"reach {s:.0%}" for s in SHARES),
    ]
    note = f"{what} Budget {summary['budget']} epochs; median [quartiles] over seeds."
    return Grid(f"{name}: {metric.replace('_', ' ')}", note, [*header, "final share", "trials"], rows)


def _speedup_grid(name: str, summary: dict[str, Any]) -> Grid:
    rows = [
        [*_who(arm), *(_interval(arm["speedup"][str(share)]) for share in SHARES)]
        for arm in summary["arms"].values()
        if "speedup" in arm
    ]
    note = (
        "Median epochs without pruning / median epochs with the method, of the same sampler and kind of epochs "
        "(95 % interval of a paired bootstrap over seeds)."
    )
    return Grid(
        f"{name}: times fewer epochs", note, ["sampler", "epochs", "method", *(f"{s:.0%}" for s in SHARES)], rows
    )


def _paired_grid(name: str, summary: dict[str, Any]) -> Grid:
    rows = [
        [rival, f"{t['wins']} / {t['ties']} / {t['losses']}", f"{t['difference']:+.4f}", f"{t['p']:.2g}"]
        for rival, t in summary["paired"].items()
    ]
    note = "Random proposals, all epochs; shares of the table's best, paired by seed; Wilcoxon's test, two-sided."
    header = ("ours against", "wins / ties / losses", "median difference", "p")
    return Grid(f"{name}: final hypervolume at equal epochs", note, header, rows)


def grids(measured: Sequence[Measured], summaries: dict[str, dict[str, Any]]) -> list[Grid]:
    """All tables of the reports, the bars first."""
    judged = [bar for table in measured for bar in bars(table, summaries[table.table.name])]
    found = [_bars_grid(judged)]
    for name, summary in summaries.items():
        found += [_arms_grid(name, summary, METRICS[0]), _speedup_grid(name, summary), _paired_grid(name, summary)]
    found += [_arms_grid(name, summary, METRICS[1]) for name, summary in summaries.items()]
    return [*found, Grid("Methods", "", ("method", "what it does"), [[*item] for item in METHODS.items()])]


def facts(measured: Sequence[Measured], command: str) -> list[str]:
    """What has to stand beside the figures: command, seeds, machine, where the tables come from."""
    here = runtime.environment(torch.device("cpu"))
    seeds = measured[0].seeds
    lines = [
        f"Made by `{command}` on {time.strftime('%Y-%m-%d', time.gmtime())}.",
        "Replays count epochs, so no figure depends on the machine: "
        + ", ".join(f"{key} {here[key]}" for key in ("kdsearch", "optuna", "numpy", "python"))
        + f", {here['cores']} cores, {here['device_model']}.",
        f"{TUNED} Here: seeds {seeds[0]} to {seeds[-1]} on the tables below.",
    ]
    return lines + [_provenance(table) for table in measured]


def _provenance(measured: Measured) -> str:
    table, made = measured.table, measured.table.provenance
    data, there = made["study_file"]["data"], made.get("environment", {})
    images = made.get("images", {})
    return (
        f"Table {table.name}: {len(table.configs)} configurations x {table.epochs} epochs of {data['name']} "
        f"(split_seed {data['split_seed']}, {images.get('train', '?')} training images, seed {made.get('seed', '?')}), "
        f"{made.get('made', 'no date')}, torch {there.get('torch', '?')}, {there.get('device_model', '?')}; "
        f"best hypervolume {table.best:.4f} from accuracy {table.reference[0]:.4f} and "
        f"log10 ratio {table.reference[1]:.4f}."
    )


def figure(measured: Measured) -> go.Figure:
    """Median hypervolume of `study.best_trials` against epochs spent, with quartiles where the lines leave room."""
    epochs = np.unique(np.linspace(1, measured.budget, POINTS).round().astype(int)).tolist()
    drawn = go.Figure()
    for key, title, colour, dash in DRAWN:
        if key not in measured.arms:
            continue
        middle, low, high = (values.round(4).tolist() for values in band(measured, key, epochs))
        line = {"color": colour, "dash": dash, "width": 3 if key == random_arm("ours") else 2}
        if key in BANDED:
            drawn.add_scatter(x=epochs + epochs[::-1], y=high + low[::-1], mode="none", fill="toself",
                              fillcolor=colour, opacity=0.15, hoverinfo="skip", showlegend=False)  # fmt: skip
        drawn.add_scatter(x=epochs, y=middle, name=title, mode="lines", line=line)
    grid = {"gridcolor": "#e3e6ea", "zeroline": False}
    drawn.update_layout(
        template="none", height=460, hovermode="x unified", margin={"l": 64, "r": 16, "t": 16, "b": 56},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        xaxis=grid | {"title": {"text": f"epochs spent on {measured.table.name}"}},
        yaxis=grid | {"title": {"text": "share of the best hypervolume"}, "range": [FLOOR, 1.005], "tickformat": ".0%"},
        legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"},
    )  # fmt: skip
    return drawn


def markdown(measured: Sequence[Measured], summaries: dict[str, dict[str, Any]], command: str) -> str:
    """The report in Markdown."""

    def lines() -> Iterator[str]:
        yield "# Bench of the search: replays on tables of real learning curves\n"
        yield from (f"- {fact}" for fact in facts(measured, command))
        for grid in grids(measured, summaries):
            yield f"\n## {grid.title}\n"
            if grid.note:
                yield f"{grid.note}\n"
            yield "| " + " | ".join(grid.header) + " |"
            yield "|" + "---|" * len(grid.header)
            yield from ("| " + " | ".join(row) + " |" for row in grid.rows)

    return "\n".join(lines()) + "\n"


def html(measured: Sequence[Measured], summaries: dict[str, dict[str, Any]], command: str) -> str:
    """The report as one page; plotly.js comes from the network."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))
    drawn = [
        (table.table.name, Markup(figure(table).to_html(full_html=False, include_plotlyjs="cdn" if first else False)))
        for first, table in zip([True, *[False] * len(measured)], measured, strict=False)
    ]
    return template.render(facts=facts(measured, command), figures=drawn, grids=grids(measured, summaries))


def write(
    measured: Sequence[Measured], summaries: dict[str, dict[str, Any]], folder: Path, words: Sequence[str]
) -> Path:
    """Writes `bench-search.html` and `bench-search.md`, each whole or not at all.

    Args:
        measured: replays by table.
        summaries: of `summarise`, by the table's name.
        folder: made where it is missing.
        words: the command that ran.

    Returns:
        The page's path.

    Raises:
        KdsearchError: they cannot be written.
    """
    command = shlex.join(words)
    page = folder / f"{NAME}.html"
    _write(page, html(measured, summaries, command))
    _write(folder / f"{NAME}.md", markdown(measured, summaries, command))
    return page


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8", newline="\n"))


def as_json(summaries: dict[str, dict[str, Any]]) -> str:
    """What `--json` prints."""
    return json.dumps({"tables": summaries}, allow_nan=False)
