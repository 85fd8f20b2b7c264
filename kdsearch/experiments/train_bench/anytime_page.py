"""The page of `bench recipes`: test accuracy after each length of training, by recipe."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from kdsearch.experiments.train_bench.anytime import (
    ONE_CYCLE,
    POWER,
    RECIPES,
    Options,
    Outcome,
    best_anytime,
    best_rate,
    scores,
)
from kdsearch.reporting import formatting
from kdsearch.reporting.figures import style
from kdsearch.reporting.pages import document
from kdsearch.reporting.pages.assets import Library
from kdsearch.reporting.pages.document import Document, Grid, Section
from kdsearch.search.plan import Plan
from kdsearch.stats import Interval, mean_interval
from kdsearch.system import machine

NAME = "bench-recipes"
HEIGHT = 380  # pixels of the figure
HOW = (
    "A pruner compares students epoch by epoch, and every checkpoint may be the one that is shipped: so a recipe is "
    "judged by the accuracy it has after each of several lengths. `one-cycle` is planned for one length, so it is "
    "trained anew for each: the others are trained once, and scored on the way. That makes it the hardest rival and "
    "no choice for a search.",
    f"`averaged` takes the weights' running average with power {POWER:g}, about the last ninth of the steps so far; "
    "`schedule-free` is its authors' SGD, its learning rate ten times the others' as it lacks momentum's factor, batch "
    "norm's statistics computed again from 20 batches at each epoch's end.",
    "Each recipe tries every learning rate and keeps the one with the highest mean validation accuracy over all "
    "lengths; what is shown is test accuracy. A training whose loss did not stay finite counts as 0 from there on.",
)


def _mean(values: Sequence[float]) -> Interval:
    """Return the mean of accuracies, fractions; without an interval for a single value."""
    if len(values) > 1:
        return mean_interval(values)
    return Interval(values[0], values[0], values[0], 1)


def _shown(interval: Interval) -> str:
    text = formatting.percent(interval.mean, 2)
    if interval.n == 1:
        return text
    return f"{text} ({100 * interval.low:.2f} to {100 * interval.high:.2f})"


def result(found: Sequence[Outcome], options: Options, plan: Plan, *, command: str) -> dict[str, Any]:
    """Return what `--json` prints and `bench-recipes.json` holds; accuracies are fractions.

    Args:
        found: of `anytime.measure`.
        options: its options.
        plan: its plan.
        command: the command that ran.
    """
    best = best_anytime(found)
    return {
        "best": best,
        "recipes": {
            name: {
                "rate": best_rate(found, name),
                "test_accuracy": {str(n): statistics.fmean(scores(found, name, n)) for n in options.lengths},
            }
            for name in RECIPES
        },
        "less_than_one_cycle": _gap(found, options, best),
        "options": asdict(options),
        "data": {"name": plan.spec.data.name, "train": len(plan.split.train), "validation": len(plan.split.validation)},
        "recipe": plan.spec.student.recipe.model_dump(mode="json"),
        "outcomes": [asdict(one) for one in found],
        "environment": machine.environment(plan.device),
        "command": command,
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _gap(found: Sequence[Outcome], options: Options, best: str) -> float:
    """Return by how much the best anytime recipe is below the one-cycle schedule, mean over lengths."""
    pairs = [(scores(found, ONE_CYCLE, n), scores(found, best, n)) for n in options.lengths]
    return statistics.fmean(statistics.fmean(cycle) - statistics.fmean(ours) for cycle, ours in pairs)


def report(found: Sequence[Outcome], options: Options, made: dict[str, Any]) -> Document:
    """Return the page's text, figure and tables."""
    best, gap = made["best"], made["less_than_one_cycle"]
    verdict = (
        f"Of the recipes that may stop at any epoch, `{best}` does best here; over all lengths it stays "
        f"{100 * abs(gap):.2f} points {'below' if gap >= 0 else 'above'} a one-cycle rate planned for each."
    )
    header = ("recipe", "rate", *(f"{n} epoch{'s' if n > 1 else ''}" for n in options.lengths))
    rows = [
        [name, f"x {best_rate(found, name):g}", *(_shown(_mean(scores(found, name, n))) for n in options.lengths)]
        for name in RECIPES
    ]
    data, recipe = made["data"], made["recipe"]
    facts = [
        f"Made by `{made['command']}` on {made['made']}.",
        document.versions(made["environment"]),
        f"Student: {formatting.configuration(options.config)}.",
        f"Data: {data['name']}, {data['train']:,} training images, {data['validation']:,} for validation.",
        f"The study file's recipe: {', '.join(f'{key} {value}' for key, value in recipe.items())}.",
        f"{len(options.seeds)} seed(s) each; rates tried: {', '.join(f'x {rate:g}' for rate in options.rates)}.",
    ]
    sections = [
        Section("Test accuracy by length", figure=figure(found, options), grid=Grid(header, rows),
                note="Mean over seeds, with its 95 % interval (Student's t) where there are several."),
        Section("How it was measured", HOW),
        Section("Every rate", grid=_rates(found, options), note="Mean validation accuracy over lengths and seeds."),
    ]  # fmt: skip
    return Document("Bench of recipes", verdict, facts, sections)


def _rates(found: Sequence[Outcome], options: Options) -> Grid:
    def cell(name: str, rate: float) -> str:
        values = [one.accuracy for one in found if (one.recipe, one.rate) == (name, rate)]
        return formatting.percent(statistics.fmean(values), 2)

    header = ("recipe", *(f"rate x {rate:g}" for rate in options.rates))
    return Grid(header, [[name, *(cell(name, rate) for rate in options.rates)] for name in RECIPES])


def figure(found: Sequence[Outcome], options: Options) -> go.Figure:
    """Draw mean test accuracy against epochs, a line a recipe."""
    drawn = go.Figure()
    for name, colour, symbol in zip(RECIPES, style.CYCLE, style.SYMBOLS, strict=False):
        means = [_mean(scores(found, name, n)) for n in options.lengths]
        drawn.add_scatter(
            x=list(options.lengths), y=style.rounded(100 * mean.mean for mean in means), name=name,
            mode="lines+markers", line={"color": colour, "dash": "dash" if name == ONE_CYCLE else "solid"},
            marker={"symbol": symbol, "size": 9},
            error_y={"array": style.rounded(100 * (mean.high - mean.mean) for mean in means), "visible": True},
        )  # fmt: skip
    x_axis = {"title": {"text": "epochs of training"}, "tickvals": list(options.lengths)}
    drawn.update_layout(style.layout(x_axis, {"title": {"text": style.TITLES["test_accuracy"]}}, HEIGHT, rows=2))
    return drawn


def write(
    found: Sequence[Outcome], options: Options, made: dict[str, Any], folder: Path, *, plotlyjs: Library = "inline"
) -> Path:
    """Write `bench-recipes.html`, `.md` and `.json`, each atomically, and return the page's path.

    Raises:
        KdsearchError: a file cannot be written.
    """
    return document.write(report(found, options, made), folder, NAME, plotlyjs=plotlyjs, result=made)


def text(found: Sequence[Outcome], options: Options, made: dict[str, Any]) -> str:
    """Return a line a recipe, for a terminal."""
    lines = [
        f"{name:<14} rate x {best_rate(found, name):g}: "
        + ", ".join(f"{n}: {_shown(_mean(scores(found, name, n)))}" for n in options.lengths)
        for name in RECIPES
    ]
    return "\n".join([*lines, f"best at every epoch: {made['best']}"])
