"""The bench's report: figures and tables of replays, as a page and as Markdown."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch

from kdsearch.experiments.search_bench.comparison import BUDGETS, LEVELS, METRICS, Bar, band, bars, common_arms
from kdsearch.experiments.search_bench.run import DEFAULT, Measured
from kdsearch.experiments.search_bench.tables import Table
from kdsearch.reporting.figures.style import LEGEND_ROW, layout
from kdsearch.reporting.pages import document
from kdsearch.reporting.pages.assets import Library
from kdsearch.reporting.pages.document import Document, Grid, Section
from kdsearch.system import machine

# The arms of the figure: key, title, colour (near Okabe and Ito's, legible on white and on dark), dash
DRAWN = (
    ("random/all/none", "random, no pruning", "#868c96", "solid"),
    ("random/all/dominance", "random, same-epoch dominance", "#a8821a", "dot"),
    ("random/all/moasha", "random, MO-ASHA", "#a85fb8", "dash"),
    ("random/all/pruner", "random, ParetoPruner", "#3a9ad0", "longdash"),
    ("tpe/all/none", "TPE, no pruning", "#c2577e", "longdashdot"),
    ("tpe/all/proposals", "our proposals, no pruning", "#0f9a72", "dashdot"),
    (DEFAULT.key, "our proposals and ParetoPruner: the default", "#1a7fc4", "solid"),
    ("random/all/oracle", "random, hindsight", "#d55e00", "dot"),
)
BANDED = ("random/all/none", DEFAULT.key)  # eight bands would hide one another
POINTS = 80
HEIGHT = 400  # pixels of the figure, besides the legend's rows
ENTRIES = 3  # of the legend in a row
FLOOR = 0.7  # lower end of the figure's axis
FIGURES = 4  # most problems with a figure
SHARES = [f"{share:.3g} of the budget" for share in BUDGETS]
CAPTION = "Median over seeds of the hypervolume of all checkpoints of all trials; bands: quartiles."
METHODS = {
    "none": "no pruning: every trial runs to its end",
    "dominance": "prune when a trial at least as fast was better at the same epoch",
    "moasha": "multi-objective ASHA (arXiv 2106.12639), rungs at 1, 3, 9, ... epochs, the best third goes on",
    "hub": "the joint rule of OptunaHub's `pruners/multi_metric_pruner` around Optuna's MedianPruner",
    "pruner": "`kdsearch.ParetoPruner`, with its audit",
    "pruner-pace-1": "`kdsearch.ParetoPruner(pace=1)`, which ends what gains less a step than the study lately did",
    "proposals": "the choice of candidates by the model, in competition with the sampler's own draws; no pruning",
    "ours": "both; under TPE with sampled epochs this is what `kdsearch optimize` does",
    "moasha+proposals": "MO-ASHA, with our proposals",
    "dominance+proposals": "`dominance`, with our proposals",
    "resume": "`ours`, and an ended trial may go on where that promises twice as much an epoch (`--resume-trials`)",
    "primo": "PriMO as NePS ships it (`neural-pipeline-search`), without priors",
    "syne-moasha": "MOASHA as Syne Tune ships it, with random configurations",
    "oracle": "hindsight: goes on only while a checkpoint to come would grow the hypervolume",
}
METRIC_WORDS = {
    METRICS[0]: "all checkpoints of all trials, those of pruned ones too, for every rule",
    METRICS[1]: "`study.best_trials`: COMPLETE trials alone",
    METRICS[2]: "all checkpoints, the front chosen by true values: what was trained, however noise misleads a choice",
}


def _spread(values: Sequence[float], form: str) -> str:
    middle, low, high = (format(value, form) for value in values)
    return f"{middle} [{low}, {high}]"


def _bars_section(found: Sequence[Bar]) -> Section:
    rows = [[bar.what, bar.bar, bar.figure, "met" if bar.met else "not met"] for bar in found]
    header = ("what", "bar", "figure (wins/ties/losses)", "")
    return Section("Bars", grid=Grid(header, rows, marks={"met": "good", "not met": "bad"}))


def _ranks_section(ranks: dict[str, Any], tasks: int) -> Section:
    rows = [
        [key, *(f"{entry['rank']:.2f} ({entry['low']:.2f} to {entry['high']:.2f})" for entry in entries)]
        for key, entries in sorted(ranks.items(), key=lambda item: item[1][-1]["rank"])
    ]
    note = f"Mean rank over {tasks} tasks, 1 is best, with the 95 % interval of a bootstrap over tasks."
    return Section("Mean ranks", grid=Grid(["sampler/epochs/method", *SHARES], rows), note=note)


def _pairs_section(pairs: Sequence[dict[str, Any]]) -> Section:
    rows = [
        [pair["arm"], pair["other"],
         *(f"{t['wins']}/{t['ties']}/{t['losses']} {t['difference']:+.4f} (p = {t['p']:.2g})" for t in pair["tests"])]
        for pair in pairs
    ]  # fmt: skip
    unit = pairs[0]["unit"] if pairs else "tasks"
    note = (
        f"Wins/ties/losses of the first over {unit}, the median difference in shares of the best, and Wilcoxon's test, "
        "two-sided and not corrected for the number of pairs."
    )
    return Section("Every pair", grid=Grid(["arm", "against", *SHARES], rows), note=note)


def _task_section(name: str, task: dict[str, Any], metric: str) -> Section:
    levels = LEVELS if metric == METRICS[0] else ()
    rows = [
        [key, *(_spread(entry, ".4f") for entry in arm[metric]),
         *(_spread(arm["epochs_to"][str(level)], ".0f") for level in levels), f"{arm['trials']:.0f}"]
        for key, arm in task["arms"].items()
    ]  # fmt: skip
    note = (
        f"Share of the best hypervolume {task['best']:.4f}, by {METRIC_WORDS[metric]}. Budget {task['budget']} epochs, "
        f"{len(task['seeds'])} seeds; median [quartiles]."
    )
    header = ["sampler/epochs/method", *SHARES, *(f"epochs to {level:.0%}" for level in levels), "trials"]
    return Section(f"{name}: {metric.replace('_', ' ')}", grid=Grid(header, rows), note=note)


def report(measured: Sequence[Measured], summary: dict[str, Any], command: str) -> Document:
    """Return the report of replays: figures, bars, the tables of their `summarise`, and provenance."""
    judged = bars(measured)
    sections = [
        Section(f"{one.problem.name}: hypervolume against epochs", figure=figure(one), caption=CAPTION)
        for one in measured[:FIGURES]
    ]
    sections += [
        _bars_section(judged),
        _ranks_section(summary["ranks"], len(measured)),
        _pairs_section(summary["pairs"]),
    ]
    sections += [_task_section(name, task, metric) for metric in METRICS for name, task in summary["tasks"].items()]
    sections.append(Section("Methods", grid=Grid(("method", "what it does"), [[*item] for item in METHODS.items()])))
    return Document(
        title="Bench of the search: replays on learning curves",
        verdict=f"{sum(bar.met for bar in judged)} of {len(judged)} bars are met.",
        facts=facts(measured, command),
        sections=sections,
    )


def facts(measured: Sequence[Measured], command: str) -> list[str]:
    """Return what must accompany the figures: command, seeds, machine, arms, sources of the problems."""
    here = machine.environment(torch.device("cpu"))
    seeds = measured[0].seeds
    lines = [
        f"Made by `{command}` on {time.strftime('%Y-%m-%d', time.gmtime())}.",
        "Replays count epochs, so no figure depends on the machine: "
        + ", ".join(f"{key} {here[key]}" for key in ("kdsearch", "optuna", "numpy", "python"))
        + f", {here['cores']} cores, {here['device_model']}.",
        f"Seeds {seeds[0]} to {seeds[-1]}, {len(measured)} problems, {len(common_arms(measured))} arms that all of "
        "them have. The front is chosen by observed values and valued by test or true ones where the problem has them.",
    ]
    return lines + [_provenance(one.problem) for one in measured if isinstance(one.problem, Table)]


def _provenance(table: Table) -> str:
    made = table.provenance
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
    """Draw median hypervolume of all checkpoints against epochs spent, with quartiles of a few arms."""
    epochs = np.unique(np.linspace(1, measured.budget, POINTS).round().astype(int)).tolist()
    drawn = go.Figure()
    for key, title, colour, dash in DRAWN:
        if key not in measured.arms:
            continue
        middle, low, high = (values.round(4).tolist() for values in band(measured, key, epochs))
        line = {"color": colour, "dash": dash, "width": 3 if key == DEFAULT.key else 2}
        if key in BANDED:
            drawn.add_scatter(x=epochs + epochs[::-1], y=high + low[::-1], mode="none", fill="toself",
                              fillcolor=colour, opacity=0.15, hoverinfo="skip", showlegend=False)  # fmt: skip
        drawn.add_scatter(x=epochs, y=middle, name=title, mode="lines", line=line)
    rows = math.ceil(sum(key in measured.arms for key, *_ in DRAWN) / ENTRIES)
    x_axis = {"title": {"text": f"epochs spent on {measured.problem.name}"}}
    y_axis = {"title": {"text": "share of the best hypervolume"}, "range": [FLOOR, 1.005], "tickformat": ".0%"}
    drawn.update_layout(layout(x_axis, y_axis, HEIGHT + LEGEND_ROW * rows, rows), hovermode="x unified")
    return drawn


def write(
    measured: Sequence[Measured],
    summary: dict[str, Any],
    folder: Path,
    words: Sequence[str],
    plotlyjs: Library = "inline",
) -> Path:
    """Write `bench-search.html` and `bench-search.md`, each atomically, and return the page's path.

    Args:
        measured, summary: replays by problem, and their `summarise`.
        folder: created where it is missing.
        words: the command that ran.
        plotlyjs: see `reporting.pages.document.html`.

    Raises:
        KdsearchError: a file cannot be written.
    """
    return document.write(report(measured, summary, shlex.join(words)), folder, "bench-search", plotlyjs=plotlyjs)
