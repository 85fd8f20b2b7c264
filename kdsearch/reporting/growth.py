"""How a study's hypervolume grew: over trials, epochs of training and hours."""

from __future__ import annotations

import math
from datetime import datetime

import pandas as pd

from kdsearch import pareto
from kdsearch.reporting.frames import records

COLUMNS = ("finished", "trial", "hypervolume", "epochs", "hours")


def history(trials: pd.DataFrame, classes: int | None, *, begin: datetime | None) -> pd.DataFrame | None:
    """The hypervolume of the complete trials after each finished one.

    Args:
        trials: `StudyData.trials`.
        classes: of the data set; None: unknown, and then there is no reference point.
        begin: of the study's first trial.

    Returns:
        Rows in the order in which trials finished: how many had, the trial, the hypervolume so far, epochs trained so
        far by those that finished, hours since the beginning (NaN where a time is missing). None without classes.
    """
    if classes is None:
        return None
    rows: list[tuple[int, int, float, float, float]] = []
    best: list[tuple[float, float]] = []
    volume = pareto.study_hypervolume(best, classes)
    epochs = 0.0
    finished = trials[(trials["state"] == "COMPLETE") | (trials["state"] == "PRUNED") & (trials["epochs_run"] > 0)]
    for row in records(finished.sort_values(["finished", "number"])):
        epochs += row["epochs_run"]
        point = (row["accuracy"], row["ratio"])
        if row["state"] == "COMPLETE" and not any(pareto.dominates(known, point) for known in best):
            # what is dominated adds no area, so the front so far is enough
            best = [known for known in best if not pareto.dominates(point, known)] + [point]
            volume = pareto.study_hypervolume(best, classes)
        rows.append((len(rows) + 1, row["number"], volume, epochs, _hours(begin, row["finished"])))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _hours(begin: datetime | None, end: object) -> float:
    if begin is None or not isinstance(end, datetime) or pd.isna(end):
        return math.nan
    return (end - begin).total_seconds() / 3600
