"""The gain from distillation: confirmed students against the same ones trained on labels alone, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

import plotly.graph_objects as go

from kdsearch import pareto
from kdsearch.reporting import formatting
from kdsearch.reporting.collect import StudyData
from kdsearch.reporting.figures.style import BLUE, ORANGE, layout, padded, rounded
from kdsearch.stats import Interval, mean_interval, student_t

OLD_MIX = "In this study, begun by an older version, the loss weight also changed the size of a step: read gains so."


@dataclass(frozen=True)
class Gain:
    """The gain in test accuracy of one student from distillation.

    Attributes:
        trial: its number.
        on_front: whether it is on the search's front.
        ratio: its confirmed mean ratio.
        taught, labels: test accuracies with and without the teacher, fractions, one a seed, in the same order.
    """

    trial: int
    on_front: bool
    ratio: float
    taught: tuple[float, ...]
    labels: tuple[float, ...]

    @property
    def values(self) -> list[float]:
        """Return the gain of each seed: distilled less labels alone."""
        return [a - b for a, b in zip(self.taught, self.labels, strict=True)]

    @property
    def interval(self) -> Interval:
        """Return the mean gain with Student's 95 % interval over seeds; with one seed its ends are NaN."""
        if len(self.values) < 2:
            return Interval(self.values[0], math.nan, math.nan, 1)
        return mean_interval(self.values)


def gains(data: StudyData) -> list[Gain]:
    """Return one gain for each confirmed trial that has a control of the same seeds, by number."""
    front = set(data.front["number"])
    found = []
    for trial in sorted(set(data.runs) & set(data.controls)):
        taught = {run.seed: run for run in data.runs[trial]}
        pairs = [(taught[run.seed], run) for run in data.controls[trial] if run.seed in taught]
        if pairs:
            ratio = fmean(run.ratio for run, _ in pairs)
            both = tuple(tuple(run.test_accuracy for run in side) for side in zip(*pairs, strict=True))
            found.append(Gain(trial, trial in front, ratio, *both))
    return found


def overall(found: Sequence[Gain]) -> Interval | None:
    """Return the mean gain over these students with a 95 % interval over seeds; the students are taken as fixed.

    The variance of the mean is the sum of the variances of the students' means, with Welch-Satterthwaite degrees of
    freedom. None where a student has a single seed, or there is no student.
    """
    if not found or any(len(gain.values) < 2 for gain in found):
        return None
    mean = fmean(fmean(gain.values) for gain in found)
    parts = [(variance(gain.values) / len(gain.values), len(gain.values)) for gain in found]
    whole = sum(part for part, _ in parts)
    if whole == 0:
        return Interval(mean, mean, mean, len(found))
    degrees = whole**2 / sum(part**2 / (count - 1) for part, count in parts)
    half = student_t(max(1, math.floor(degrees))) * math.sqrt(whole) / len(found)
    return Interval(mean, mean - half, mean + half, len(found))


def sentence(data: StudyData) -> str:
    """Say in a sentence whether distillation gained accuracy; empty without controls."""
    found = gains(data)
    if not found:
        return ""
    of_front = [gain for gain in found if gain.on_front]
    chosen = of_front or found
    where = f"{len(chosen)} student{'' if len(chosen) == 1 else 's'}{' of the front' if of_front else ''}"
    mean = overall(chosen)
    if mean is None:
        average = 100 * fmean(fmean(gain.values) for gain in chosen)
        return f"Over {where} distillation gained {average:+.2f} points; one seed each shows no spread."
    clear = "more" if mean.low > 0 else "less" if mean.high < 0 else ""
    said = {"more": "was worth it", "less": "cost accuracy", "": "made no difference that these seeds can tell"}[clear]
    return (
        f"Distillation {said}: over {where} it gained {100 * mean.mean:+.2f} points of test accuracy "
        f"({100 * mean.low:+.2f} to {100 * mean.high:+.2f}, 95 % over seeds) against labels alone."
    )


def note(data: StudyData) -> str:
    """Say what the comparison does not control for; empty where it controls for everything."""
    old = data.study_file and data.study_file.get("distillation", 1) == 1
    recipe = (data.study_file.get("student") or {}).get("recipe") or {}
    return OLD_MIX if old and recipe.get("optimizer") in ("sgd", "schedulefree") else ""


def rows(data: StudyData) -> list[tuple[str, ...]]:
    """Return the cells of the table, a row a student: trial, ratio, taught, labels alone, gain, its interval, seeds."""
    found: list[tuple[str, ...]] = []
    for gain in gains(data):
        told = gain.interval
        spread = (
            formatting.NOTHING
            if math.isnan(told.low)
            else f"{formatting.points(told.low)} to {formatting.points(told.high)}"
        )
        found.append(
            (f"{gain.trial}" + ("" if gain.on_front else " (not on the front)"), formatting.ratio(gain.ratio),
             formatting.percent(fmean(gain.taught)), formatting.percent(fmean(gain.labels)),
             formatting.points(told.mean), spread,
             str(told.n))
        )  # fmt: skip
    return found


COLUMNS = ("trial", "ratio", "distilled", "labels alone", "gain, points", "95 % over seeds", "seeds")


def result(data: StudyData) -> dict[str, Any]:
    """Return the comparison for JSON, accuracies as fractions."""
    found = gains(data)
    mean = overall([gain for gain in found if gain.on_front] or found)
    return {
        "sentence": sentence(data),
        "gain": mean and {"mean": mean.mean, "low": mean.low, "high": mean.high, "students": mean.n},
        "trials": [
            {"trial": gain.trial, "on_front": gain.on_front, "distilled": list(gain.taught),
             "labels_alone": list(gain.labels), "gain": told.mean, "seeds": told.n,
             "low": None if math.isnan(told.low) else told.low, "high": None if math.isnan(told.high) else told.high}
            for gain in found for told in [gain.interval]
        ],
    }  # fmt: skip


def figure(data: StudyData) -> go.Figure | None:
    """Draw the front of the confirmed students beside the same students on labels alone; None for fewer than two."""
    found = gains(data)
    if len(found) < 2:
        return None
    sides = {"distilled": [gain.taught for gain in found], "labels alone": [gain.labels for gain in found]}
    traces: list[go.Scatter] = []
    heights: list[float] = []
    for (name, values), color, symbol in zip(sides.items(), (BLUE, ORANGE), ("circle", "square"), strict=True):
        points = [(gain.ratio, 100 * fmean(one), gain.trial) for gain, one in zip(found, values, strict=True)]
        heights += [y for _, y, _ in points]
        kept = sorted(points[i] for i in pareto.front([(y, x) for x, y, _ in points]))
        look = {"color": color, "symbol": symbol, "size": 9}
        traces.append(
            go.Scatter(
                x=rounded(x for x, _, _ in points), y=rounded(y for _, y, _ in points), mode="markers", name=name,
                marker=look, text=[str(trial) for _, _, trial in points],
                hovertemplate="trial %{text}: %{y:.2f} %, ratio %{x}<extra>" + name + "</extra>",
            )
        )  # fmt: skip
        traces.append(
            go.Scatter(x=rounded(x for x, _, _ in kept), y=rounded(y for _, y, _ in kept), mode="lines",
                       line={"color": color, "width": 2, "shape": "vh"}, hoverinfo="skip", showlegend=False)
        )  # fmt: skip
    x_axis = {"title": {"text": "inference ratio"}, "type": "log"}
    y_axis = {"title": {"text": "mean test accuracy, %"}, "range": padded(min(heights), max(heights))}
    return go.Figure(traces, layout(x_axis, y_axis, 380, 1))
