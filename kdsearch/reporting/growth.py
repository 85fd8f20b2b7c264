"""The growth of a study's hypervolume over trials, epochs of training and hours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pandas as pd

from kdsearch import pareto
from kdsearch.reporting.formatting import number, records

COLUMNS = ("finished", "trial", "hypervolume", "epochs", "hours")


BELOW_TEACHER = 0.2  # accuracy: a student this far below its teacher adds no hypervolume


def lowest(wanted: float | None, teacher: Mapping[str, Any], classes: int | None) -> float | None:
    """Return the accuracy from which hypervolume counts: a student below it is of no use.

    Args:
        wanted: the study file's `[report] floor`, in percent, or None.
        teacher: TeacherFacts as a dictionary; empty: not known.
        classes: of the data set; None: not known.

    Returns:
        A fraction: as wanted, else 20 points below the teacher's validation accuracy (its test accuracy where that is
        not known), and never below chance; chance where the teacher is not known. None where nothing is known.
    """
    if wanted is not None:
        return wanted / 100
    known = [number(teacher.get(name)) for name in ("validation_accuracy", "accuracy")]
    below = [accuracy - BELOW_TEACHER for accuracy in known if not math.isnan(accuracy)][:1]
    chance = [] if classes is None else [1 / classes]
    return max([*below, *chance], default=None) if below or chance else None


def history(trials: pd.DataFrame, floor: float | None, *, begin: datetime | None) -> pd.DataFrame | None:
    """Return the hypervolume of the complete trials after each finished one.

    Args:
        trials: `StudyData.trials`.
        floor: of `lowest`; None: there is no reference point.
        begin: of the study's first trial.

    Returns:
        Rows in the order in which trials finished: number finished, the trial, the hypervolume so far, epochs trained
        so far by finished trials, hours since the beginning (NaN where a time is missing). None without a floor.
    """
    if floor is None:
        return None
    rows: list[tuple[int, int, float, float, float]] = []
    best: list[tuple[float, float]] = []
    volume = pareto.study_hypervolume(best, floor)
    epochs = 0.0
    finished = trials[(trials["state"] == "COMPLETE") | (trials["state"] == "PRUNED") & (trials["epochs_run"] > 0)]
    for row in records(finished.sort_values(["finished", "number"])):
        epochs += row["epochs_spent"]
        point = (row["accuracy"], row["ratio"])
        if row["state"] == "COMPLETE" and not any(pareto.dominates(known, point) for known in best):
            # dominated points add no area, so the front so far suffices
            best = [known for known in best if not pareto.dominates(point, known)] + [point]
            volume = pareto.study_hypervolume(best, floor)
        rows.append((len(rows) + 1, row["number"], volume, epochs, _hours(begin, row["finished"])))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _hours(begin: datetime | None, end: object) -> float:
    if begin is None or not isinstance(end, datetime) or pd.isna(end):
        return math.nan
    return (end - begin).total_seconds() / 3600
