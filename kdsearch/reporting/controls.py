"""The gain from distillation: confirmed students against the same ones trained on labels alone, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, geometric_mean, variance
from typing import Any

import plotly.graph_objects as go

from kdsearch import pareto
from kdsearch.reporting import formatting
from kdsearch.reporting.collect import StudyData
from kdsearch.reporting.confirmation import over_seeds
from kdsearch.reporting.figures.style import BLUE, ORANGE, layout, padded, rounded
from kdsearch.reporting.formatting import plain
from kdsearch.stats import Interval, student_t

CHOSEN = "Both train with the architecture, epochs and batch size that the search chose for learning from the teacher."
OLD_MIX = "In this study, begun by an older version, the loss weight also changed the size of a step: read gains so."


@dataclass(frozen=True)
class Gain:
    """The gain in test accuracy of one student from distillation."""

    trial: int
    on_front: bool  # of the search
    ratio: float  # confirmed mean ratio
    taught: tuple[float, ...]  # test accuracies with the teacher, fractions, one a seed
    labels: tuple[float, ...]  # without it, in the same order

    @property
    def values(self) -> list[float]:
        """The gain of each seed: distilled less labels alone."""
        return [a - b for a, b in zip(self.taught, self.labels, strict=True)]

    @property
    def interval(self) -> Interval:
        """The mean gain over seeds."""
        return over_seeds(self.values)


def gains(data: StudyData) -> list[Gain]:
    """Return one gain for each confirmed trial that has a control of the same seeds, by number."""
    front = set(data.front["number"])
    found = []
    for trial in sorted(set(data.runs) & set(data.controls)):
        taught = {run.seed: run for run in data.runs[trial]}
        labels = {run.seed: run.test_accuracy for run in data.controls[trial] if run.seed in taught}
        if labels:
            ratio = geometric_mean(taught[seed].ratio for seed in labels)  # as of the confirmation
            accuracies = tuple(taught[seed].test_accuracy for seed in labels)
            found.append(Gain(trial, trial in front, ratio, accuracies, tuple(labels.values())))
    return found


def overall(found: Sequence[Gain]) -> Interval | None:
    """Return the mean gain over these students with a 95 % interval over seeds; the students are taken as fixed.

    The variance of the mean is the sum of the variances of the students' means, with Welch-Satterthwaite degrees of
    freedom. None where a student has a single seed, no seeds differ, or there is no student.
    """
    if not found or any(len(gain.values) < 2 for gain in found):
        return None
    mean = fmean(fmean(gain.values) for gain in found)
    parts = [(variance(gain.values) / len(gain.values), len(gain.values)) for gain in found]
    whole = sum(part for part, _ in parts)
    if whole == 0:
        return None
    degrees = whole**2 / sum(part**2 / (count - 1) for part, count in parts)
    half = student_t(max(1, math.floor(degrees))) * math.sqrt(whole) / len(found)
    return Interval(mean, mean - half, mean + half, len(found))


def _chosen(found: Sequence[Gain]) -> Sequence[Gain]:
    return [gain for gain in found if gain.on_front] or found


def sentence(data: StudyData) -> str:
    """Say in a sentence whether distillation gained accuracy; empty without controls."""
    chosen = _chosen(gains(data))
    if not chosen:
        return ""
    where = f"{len(chosen)} student{'' if len(chosen) == 1 else 's'}{' of the front' if chosen[0].on_front else ''}"
    mean = overall(chosen)
    if mean is None:
        average = 100 * fmean(fmean(gain.values) for gain in chosen)
        why = "one seed each shows" if any(len(gain.values) < 2 for gain in chosen) else "these few seeds show"
        return f"Over {where} distillation gained {average:+.2f} points; {why} no spread."
    said = "made no difference that these seeds can tell"
    if mean.low > 0:
        said = "gained accuracy"
    elif mean.high < 0:
        said = "cost accuracy"
    return (
        f"Distillation {said}: {100 * mean.mean:+.2f} points of test accuracy ({100 * mean.low:+.2f} to "
        f"{100 * mean.high:+.2f}, 95 % over seeds) against labels alone, over {where}."
    )


def note(data: StudyData) -> str:
    """Say what the comparison does not control for."""
    old = data.study_file and data.study_file.get("distillation", 1) == 1
    recipe = (data.study_file.get("student") or {}).get("recipe") or {}
    return f"{CHOSEN} {OLD_MIX}" if old and recipe.get("optimizer") in ("sgd", "schedulefree") else CHOSEN


COLUMNS = ("trial", "ratio", "distilled", "labels alone", "gain, points", "95 % over seeds", "seeds")


def rows(data: StudyData) -> list[tuple[str, ...]]:
    """Return the cells of the table with COLUMNS, a row a student."""

    def cells(gain: Gain) -> tuple[str, ...]:
        name = f"{gain.trial}" + ("" if gain.on_front else " (not on the front)")
        taught, labels = (formatting.percent(fmean(side)) for side in (gain.taught, gain.labels))
        mean, low, high = map(formatting.points, (gain.interval.mean, gain.interval.low, gain.interval.high))
        spread = low if low == formatting.NOTHING else f"{low} to {high}"
        return name, formatting.ratio(gain.ratio), taught, labels, mean, spread, str(gain.interval.n)

    return [cells(gain) for gain in gains(data)]


def result(data: StudyData) -> dict[str, Any]:
    """Return the comparison for JSON, accuracies as fractions."""
    found = gains(data)
    mean = overall(_chosen(found))
    trials = [
        {"trial": gain.trial, "on_front": gain.on_front, "distilled": gain.taught, "labels_alone": gain.labels,
         "gain": told.mean, "seeds": told.n, "low": told.low, "high": told.high}
        for gain in found for told in [gain.interval]
    ]  # fmt: skip
    return {
        "sentence": sentence(data),
        "gain": mean and {"mean": mean.mean, "low": mean.low, "high": mean.high, "students": mean.n},
        "trials": plain(trials),
    }


def figure(data: StudyData) -> go.Figure | None:
    """Draw the front of the confirmed students beside the same students on labels alone; None for fewer than two."""
    found = gains(data)
    if len(found) < 2:
        return None
    ratios = [gain.ratio for gain in found]
    taught = [100 * fmean(gain.taught) for gain in found]
    labels = [100 * fmean(gain.labels) for gain in found]
    traces: list[go.Scatter] = []
    for name, heights, color, symbol in (
        ("distilled", taught, BLUE, "circle"), ("labels alone", labels, ORANGE, "square")
    ):  # fmt: skip
        kept = sorted((ratios[i], heights[i]) for i in pareto.front([*zip(heights, ratios, strict=True)]))
        traces += [
            go.Scatter(
                x=rounded(ratios), y=rounded(heights), mode="markers", name=name,
                marker={"color": color, "symbol": symbol, "size": 9}, text=[str(gain.trial) for gain in found],
                hovertemplate="trial %{text}: %{y:.2f} %, ratio %{x}<extra>" + name + "</extra>",
            ),
            go.Scatter(x=rounded(x for x, _ in kept), y=rounded(y for _, y in kept), mode="lines",
                       line={"color": color, "width": 2, "shape": "vh"}, hoverinfo="skip", showlegend=False),
        ]  # fmt: skip
    x_axis = {"title": {"text": "inference ratio"}, "type": "log"}
    y_axis = {"title": {"text": "mean test accuracy, %"}, "range": padded(min(taught + labels), max(taught + labels))}
    return go.Figure(traces, layout(x_axis, y_axis, 380, 1))
