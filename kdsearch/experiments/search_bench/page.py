"""The bench's report: figures and tables of replays, as a page and as Markdown."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch

from kdsearch.experiments.search_bench.comparison import METRICS, SHARES, Bar, band, bars, random_arm
from kdsearch.experiments.search_bench.replay import SAMPLED, Arm
from kdsearch.experiments.search_bench.run import Measured
from kdsearch.reporting.figures.style import LEGEND_ROW, layout
from kdsearch.reporting.pages import document
from kdsearch.reporting.pages.assets import Library
from kdsearch.reporting.pages.document import Document, Grid, Section
from kdsearch.system import machine

NAME = "bench-search"
# The arms of the figure: key, title, colour (near Okabe and Ito's, seen on white and on dark), dash
DRAWN = (
    (random_arm("none"), "no pruning", "#868c96", "solid"),
    (random_arm("dominance"), "same-epoch dominance", "#a8821a", "dot"),
    (random_arm("moasha"), "MO-ASHA", "#a85fb8", "dash"),
    (random_arm("hub"), "OptunaHub's joint rule", "#0f9a72", "dashdot"),
    (random_arm("pruner"), "ParetoPruner", "#3a9ad0", "longdash"),
    (random_arm("ours"), "ParetoPruner and better proposals", "#1a7fc4", "solid"),
    (random_arm("oracle"), "hindsight oracle", "#d55e00", "dot"),
    (Arm("tpe", SAMPLED, "none").key, "TPE, epochs sampled, no pruning", "#c2577e", "longdashdot"),
)
BANDED = (random_arm("none"), random_arm("ours"))  # all eight bands would hide each other
POINTS = 80
HEIGHT = 400  # pixels of the figure, besides the legend's rows
ENTRIES = 3  # of the legend in a row
FLOOR = 0.8  # of the figure's axis: below it, all arms are alike
CAPTION = (
    "Median over seeds of the hypervolume of `study.best_trials`; bands: quartiles. Random proposals and all epochs "
    "where the legend says nothing else."
)
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


def _spread(values: Sequence[float], form: str) -> str:
    middle, low, high = (format(value, form) for value in values)
    return f"{middle} [{low}, {high}]"


def _interval(speedup: dict[str, float]) -> str:
    return f"{speedup['ratio']:.2f} ({speedup['low']:.2f} to {speedup['high']:.2f})"


def _who(arm: dict[str, Any]) -> list[str]:
    workers = f", {arm['workers']} workers" if arm["workers"] > 1 else ""
    return [arm["sampler"] + workers, arm["epochs"], arm["method"]]


def _bars_section(found: Sequence[Bar]) -> Section:
    rows = [[bar.table, bar.what, bar.bar, bar.figure, "met" if bar.met else "not met"] for bar in found]
    header = ("table", "what", "bar", "figure", "")
    return Section("Bars", grid=Grid(header, rows, marks={"met": "good", "not met": "bad"}))


def _arms_section(name: str, summary: dict[str, Any], metric: str) -> Section:
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
    grid = Grid([*header, "final share", "trials"], rows)
    return Section(f"{name}: {metric.replace('_', ' ')}", grid=grid, note=note)


def _speedup_section(name: str, summary: dict[str, Any]) -> Section:
    rows = [
        [*_who(arm), *(_interval(arm["speedup"][str(share)]) for share in SHARES)]
        for arm in summary["arms"].values()
        if "speedup" in arm
    ]
    note = (
        "Median epochs without pruning / median epochs with the method, of the same sampler and kind of epochs "
        "(95 % interval of a paired bootstrap over seeds)."
    )
    grid = Grid(["sampler", "epochs", "method", *(f"{s:.0%}" for s in SHARES)], rows)
    return Section(f"{name}: times fewer epochs", grid=grid, note=note)


def _paired_section(name: str, summary: dict[str, Any]) -> Section:
    rows = [
        [rival, f"{t['wins']} / {t['ties']} / {t['losses']}", f"{t['difference']:+.4f}", f"{t['p']:.2g}"]
        for rival, t in summary["paired"].items()
    ]
    note = "Random proposals, all epochs; shares of the table's best, paired by seed; Wilcoxon's test, two-sided."
    header = ("ours against", "wins / ties / losses", "median difference", "p")
    return Section(f"{name}: final hypervolume at equal epochs", grid=Grid(header, rows), note=note)


def report(measured: Sequence[Measured], summaries: dict[str, dict[str, Any]], command: str) -> Document:
    """The report: figures, bars, tables, and where they come from.

    Args:
        measured: replays by table.
        summaries: of `summarise`, by the table's name.
        command: that ran.
    """
    judged = [bar for table in measured for bar in bars(table, summaries[table.table.name])]
    sections = [
        Section(f"{table.table.name}: hypervolume against epochs", figure=figure(table), caption=CAPTION)
        for table in measured
    ]
    sections.append(_bars_section(judged))
    for name, summary in summaries.items():
        sections.append(_arms_section(name, summary, METRICS[0]))
        sections += [_speedup_section(name, summary), _paired_section(name, summary)]
    sections += [_arms_section(name, summary, METRICS[1]) for name, summary in summaries.items()]
    sections.append(Section("Methods", grid=Grid(("method", "what it does"), [[*item] for item in METHODS.items()])))
    return Document(
        title="Bench of the search: replays on tables of real learning curves",
        verdict=f"{sum(bar.met for bar in judged)} of {len(judged)} bars are met.",
        facts=facts(measured, command),
        sections=sections,
    )


def facts(measured: Sequence[Measured], command: str) -> list[str]:
    """What has to stand beside the figures: command, seeds, machine, where the tables come from."""
    here = machine.environment(torch.device("cpu"))
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
    rows = math.ceil(sum(key in measured.arms for key, *_ in DRAWN) / ENTRIES)
    x_axis = {"title": {"text": f"epochs spent on {measured.table.name}"}}
    y_axis = {"title": {"text": "share of the best hypervolume"}, "range": [FLOOR, 1.005], "tickformat": ".0%"}
    drawn.update_layout(layout(x_axis, y_axis, HEIGHT + LEGEND_ROW * rows, rows), hovermode="x unified")
    return drawn


def write(
    measured: Sequence[Measured],
    summaries: dict[str, dict[str, Any]],
    folder: Path,
    words: Sequence[str],
    plotlyjs: Library = "inline",
) -> Path:
    """Writes `bench-search.html` and `bench-search.md`, each whole or not at all.

    Args:
        measured: replays by table.
        summaries: of `summarise`, by the table's name.
        folder: made where it is missing.
        words: the command that ran.
        plotlyjs: see `reporting.pages.document.html`.

    Returns:
        The page's path.

    Raises:
        KdsearchError: they cannot be written.
    """
    return document.write(report(measured, summaries, shlex.join(words)), folder, NAME, plotlyjs=plotlyjs)


def as_json(summaries: dict[str, dict[str, Any]]) -> str:
    """What `--json` prints."""
    return json.dumps({"tables": summaries}, allow_nan=False)
