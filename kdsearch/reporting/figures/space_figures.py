"""Figures of the search space: parameter importances, and accuracy against each parameter."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
import pandas as pd
import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState

from kdsearch.reporting import formatting
from kdsearch.reporting.collect import CONFIG, StudyData
from kdsearch.reporting.figures import style
from kdsearch.reporting.figures.style import BLUE, GREY, ORANGE, layout, rounded
from kdsearch.reporting.formatting import records

HEIGHT = 420
DECADES = 30  # largest over smallest value from which an axis is logarithmic
MOST = 8  # buttons in a row
IMPORTANCES = ["parameter", "accuracy", "ratio"]
LEAST = 10  # complete trials: with fewer, an importance means nothing
USUAL = 0.8  # share of the trials that must have a parameter; those without it are left out for it


def importances(trials: Sequence[FrozenTrial]) -> pd.DataFrame:
    """Return how much of each objective's variance among the complete trials each parameter explains.

    Mean decrease of impurity in a random forest, as implemented in Optuna: for each objective by itself, shares that
    add up to 1. (For a real study's ratio, which the width alone decides, PED-ANOVA gave the width a quarter; fANOVA
    agrees with the forest and takes two minutes for 1,000 trials.) A parameter that many trials do not have, such as
    the temperature at loss weight 0, is judged from those that have it.

    Returns:
        One row a parameter, the most important for accuracy first; empty with fewer than LEAST complete trials or where
        a single value was tried.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and len(trial.values) == 2]
    names = sorted({name for trial in complete for name in trial.params})
    usual = [name for name in names if sum(name in trial.params for trial in complete) >= USUAL * len(complete)]
    chosen = [trial for trial in complete if all(name in trial.params for name in usual)]
    if len(chosen) < LEAST or not usual:
        return pd.DataFrame(columns=IMPORTANCES)
    found = [_shares(chosen, usual, objective) for objective in (0, 1)]
    rows = [(name, *(each.get(name, 0.0) for each in found)) for name in usual]
    frame = pd.DataFrame(rows, columns=IMPORTANCES)
    return frame.sort_values(["accuracy", "parameter"], ascending=[False, True], ignore_index=True)


def _shares(trials: Sequence[FrozenTrial], names: list[str], objective: int) -> dict[str, Any]:
    study = optuna.create_study(directions=["maximize"] * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna marks the evaluator as experimental
        evaluator = optuna.importance.MeanDecreaseImpurityImportanceEvaluator(seed=0)
        try:
            study.add_trials(
                optuna.trial.create_trial(
                    values=trial.values,
                    params={name: trial.params[name] for name in names},
                    distributions={name: trial.distributions[name] for name in names},
                )
                for trial in trials
            )
            return optuna.importance.get_param_importances(
                study, evaluator=evaluator, params=names, target=lambda trial: trial.values[objective]
            )
        except (ValueError, RuntimeError, KeyError):  # a range changed between trials, or no variance to explain
            return {}


def importance_bars(found: pd.DataFrame) -> go.Figure:
    """Draw what `importances` found, as grouped bars."""
    rows = records(found)[::-1]  # Plotly draws from below
    names = [str(row["parameter"]).replace("_", " ") for row in rows]
    traces = [
        go.Bar(y=names, x=rounded(100 * row[objective] for row in rows), name=name, orientation="h",
               marker={"color": color, "pattern": {"shape": pattern}}, hovertemplate="%{y}: %{x:.0f} %<extra></extra>")
        for objective, name, color, pattern in (
            ("ratio", "inference ratio", ORANGE, "/"), ("accuracy", "validation accuracy", BLUE, ""))
    ]  # fmt: skip
    x_axis = {"title": {"text": "share of the spread explained, %"}, "range": [0, 100]}
    shape = layout(x_axis, {"automargin": True}, 120 + 44 * len(rows), 1)
    return go.Figure(traces).update_layout(shape, barmode="group", legend_traceorder="reversed")


def slices(data: StudyData) -> go.Figure | None:
    """Draw validation accuracy against one parameter, with buttons for the others; None where none varied."""
    rows = [row for row in records(data.trials) if not formatting.missing(row["accuracy"]) and row["epochs_run"] > 0]
    settings = [key for key in data.trials.columns if key.startswith(CONFIG)]
    keys = [key for key in settings if len({*_values(rows, key)} - {None}) > 1][:MOST]
    if not keys:
        return None
    groups = [[row for row in rows if not row["on_front"]], [row for row in rows if row["on_front"]]]
    looks = [("other trials", 0.55, {"color": GREY, "size": 6, "symbol": "x"}),
             ("front", 1, {"color": BLUE, "size": 10})]  # fmt: skip
    traces = [
        go.Scatter(x=_values(group, keys[0]), y=rounded(100 * row["accuracy"] for row in group),
                   mode="markers", name=name, marker=marker, opacity=opacity,
                   customdata=[row["number"] for row in group],
                   hovertemplate="trial %{customdata}: %{x}, %{y:.2f} %<extra></extra>")
        for group, (name, opacity, marker) in zip(groups, looks, strict=True)
    ]  # fmt: skip
    x_axis = {"title": {"text": _title(keys[0])}, "type": _axis(rows, keys[0])}
    shape = layout(x_axis, {"title": {"text": style.TITLES["accuracy"]}}, HEIGHT + style.LEGEND_ROW, 1)
    figure = go.Figure(traces).update_layout(shape)
    if len(keys) > 1:
        figure.update_layout(margin_t=style.MENU, updatemenus=[style.buttons_above(
            (_title(key), {"x": [_values(group, key) for group in groups]},
             {"xaxis.title.text": _title(key), "xaxis.type": _axis(rows, key), "xaxis.autorange": True})
            for key in keys
        )])  # fmt: skip
    return figure


def _title(key: str) -> str:
    return key.removeprefix(CONFIG).replace("_", " ")


def _values(rows: list[dict[str, Any]], key: str) -> list[Any]:
    """Return numbers as numbers, anything else as text for a categorical axis."""

    def plotted(value: object) -> Any:
        if formatting.missing(value):
            return None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return round(value, 6)
        return formatting.setting(value)

    return [plotted(row[key]) for row in rows]


def _axis(rows: list[dict[str, Any]], key: str) -> str:
    values = [value for value in _values(rows, key) if value is not None]
    if not all(isinstance(value, int | float) for value in values):
        return "category"
    return "log" if min(values) > 0 and max(values) >= DECADES * min(values) else "linear"
