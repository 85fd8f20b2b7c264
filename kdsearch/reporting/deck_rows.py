"""The slide deck's rows beside a study: published, by the deck's recipe, in this study, and the best as fast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, median
from typing import Any

import optuna
import pandas as pd
from optuna.trial import TrialState

from kdsearch.records import Attr, StudyAttr
from kdsearch.reporting.formatting import number, records
from kdsearch.spec import StudySpec

MEASURED = ("trial", "accuracy", "test_accuracy", "ratio")
RECIPE = ("recipe_test_accuracy", "recipe_ratio", "recipe_seeds")
COLUMNS = (
    "anchor", "published_accuracy", "published_ratio", "published_seconds", *RECIPE, *MEASURED,
    *(f"best_{name}" for name in MEASURED), "gain",
)  # fmt: skip
STATED = "stated"  # the reading of the deck that the marks show

Recipe = Mapping[str, tuple[float, float, int]]


def by_recipe(study: optuna.Study, dataset: object) -> dict[str, tuple[float, float, int]]:
    """Return what `kdsearch slides` measured, if it is in the study's storage: mean test accuracy, median ratio, seeds.

    Args:
        study: of a search.
        dataset: of the search; only the slides' rows on the same one count, and only as the deck states them.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for other in study._storage.get_all_studies():
        definition = other.user_attrs.get(StudyAttr.DEFINITION)
        same = isinstance(definition, Mapping) and dataset is not None and definition.get("dataset") == dataset
        if other.user_attrs.get(StudyAttr.KIND) != "slides" or not same:
            continue
        for trial in study._storage.get_all_trials(other._study_id, deepcopy=False, states=(TrialState.COMPLETE,)):
            row, attrs = trial.user_attrs.get(Attr.ROW), trial.user_attrs
            point = number(attrs.get(Attr.TEST_ACCURACY)), number(attrs.get(Attr.RATIO))
            if isinstance(row, str) and attrs.get(Attr.READING) == STATED and not any(map(math.isnan, point)):
                found.setdefault(row, []).append(point)
    return {
        row: (fmean(accuracy for accuracy, _ in points), median(ratio for _, ratio in points), len(points))
        for row, points in found.items()
    }


def anchors(trials: pd.DataFrame, spec: StudySpec | None, recipe: Recipe) -> pd.DataFrame:
    """Return one row a slide row.

    Args:
        trials: `StudyData.trials`.
        spec: of the study; None: it is not known, and neither are the published figures.
        recipe: of `by_recipe`.

    Returns:
        The published figures, those of the deck's own recipe measured here (`recipe_*`), the trial that ran the row in
        this study, and the best trial at least as fast as that one (chosen by validation accuracy); `gain` is the
        difference of the two test accuracies.
    """
    complete = records(trials[trials["state"] == "COMPLETE"])
    named = dict.fromkeys([*(spec.anchors if spec else ()), *(a for a in trials["anchor"] if a)])
    rows = []
    for name in named:
        published = spec.anchors[name].published if spec and name in spec.anchors else None
        here = next((row for row in complete if row["anchor"] == name), None)
        fast = [row for row in complete if here and row["ratio"] >= here["ratio"]]
        # by validation: a choice by test accuracy would bias the reported gain upwards
        best = max(fast, key=lambda row: (row["accuracy"], row["ratio"], -row["number"]), default=None)
        gain = best["test_accuracy"] - here["test_accuracy"] if here and best else math.nan
        theirs = (published.accuracy / 100, published.ratio, published.seconds) if published else (math.nan,) * 3
        by_deck = recipe.get(name, (math.nan, math.nan, 0))
        rows.append([name, *theirs, *by_deck, *_measured(here), *_measured(best), gain])
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _measured(row: dict[str, Any] | None) -> list[float]:
    if row is None:
        return [math.nan] * len(MEASURED)
    return [float(row["number"]), *(row[name] for name in MEASURED[1:])]
