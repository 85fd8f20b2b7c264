"""Choose the student to ship, shown to be near the teacher, and tell which students' times differ beyond noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from kdsearch import stats
from kdsearch.records import AgainstTeacher, ConfirmedRun
from kdsearch.reporting import formatting
from kdsearch.reporting.collect import StudyData
from kdsearch.reporting.formatting import number, records
from kdsearch.stats import count_of, mean_upper_margin, paired_upper_bound, unpaired_upper_bound

EXACT = 1e-9  # points: a bound that equals the limit but for rounding holds


@dataclass(frozen=True)
class Standing:
    """How far a student is below its teacher on the test set, with a confidence bound.

    Attributes:
        row: of `StudyData.trials`; ratio and test accuracy are the confirmed ones where the trial was confirmed.
        below: teacher's test accuracy less the student's, a fraction.
        bound: its one-sided 95 % upper bound.
        seeds: confirmation runs behind the figures; 0: the search's single run.
        paired: whether it is known on which test images the two differ; if not, the bound is wider.
    """

    row: dict[str, Any]
    below: float
    bound: float
    seeds: int
    paired: bool


@dataclass(frozen=True)
class Shipping:
    """The student that a study recommends to ship.

    Attributes:
        within: points below the teacher that are acceptable.
        chosen: the fastest candidate whose bound is within the margin; None: no candidate qualifies.
        nearest: the front's member with the lowest bound, of those faster than the teacher if there are any.
        faster: members of the front that are faster than the teacher.
        candidates: those of them whose validation accuracy is within the margin.
        looks: candidates whose bound on the test set was computed, the fastest first.
    """

    within: float
    chosen: Standing | None
    nearest: Standing | None
    faster: int
    candidates: int
    looks: int


def ship(data: StudyData, *, within: float | None = None, rows: Sequence[dict[str, Any]] | None = None) -> Shipping:
    """Return the fastest student whose accuracy is shown to be within a margin of the teacher's.

    Candidates are the members of the front, and the confirmed trials within noise of it, that are faster than the
    teacher, and whose validation accuracy is at most the margin below the teacher's (where that is known). Each is
    tested by itself, the fastest first: the one-sided 95 % bound of (teacher - student) on the test set has to be
    within the margin, so the other members of the front do not influence the choice. The test set does not rank the
    candidates that qualify, but it is looked at more than once.

    Args:
        data: a collected study.
        within: the margin in points of test accuracy; None: the study's own.
        rows: rows of `StudyData.trials` to choose among; None: the front and the confirmed trials.
    """
    limit = data.within if within is None else within
    eligible = data.trials["on_front"].astype(bool) | data.trials["number"].isin(list(data.runs))
    members = records(data.trials[eligible]) if rows is None else list(rows)
    members.sort(key=lambda row: (-row["ratio"], -row["accuracy"], row["number"]))
    theirs = number((data.teacher or {}).get("validation_accuracy"))
    faster = [row for row in members if (row | _confirmed(data, row))["ratio"] > 1]
    reach = [row for row in faster if not 100 * (theirs - row["accuracy"]) > limit + EXACT]
    looks = 0
    for row in reach:
        found = standing(data, row)
        if found is None:
            continue
        looks += 1
        if 100 * found.bound <= limit + EXACT:
            return Shipping(limit, found, found, len(faster), len(reach), looks)
    known = [each for row in faster or members if (each := standing(data, row)) is not None]
    return Shipping(limit, None, min(known, key=lambda each: each.bound, default=None), len(faster), len(reach), looks)


def standing(data: StudyData, row: dict[str, Any]) -> Standing | None:
    """Return how far a trial's student is below the teacher; None where the teacher or the test set is not known.

    Over test images the bound is paired (`stats.paired_upper_bound`); over confirmed seeds it is Student's bound of the
    mean. The two margins are combined as a root of squares (Zou and Donner, Statistics in Medicine 27, 2008), which
    counts the noise that images and seeds share twice and so errs on the safe side. Without counts by image the bound
    is unpaired.
    """
    runs = data.runs.get(int(row["number"]), [])
    shown = row | _confirmed(data, row)
    kept = [run.against_teacher for run in runs] if runs else [row["against_teacher"]]
    counts = [each for each in kept if isinstance(each, AgainstTeacher)]
    if counts and len(counts) == len(kept) and len({each.images for each in counts}) == 1:
        return _paired(shown, counts, seeds=len(runs))
    accuracies = [run.test_accuracy for run in runs] or [row["test_accuracy"]]
    return _unpaired(data, shown, accuracies, runs)


def _confirmed(data: StudyData, row: dict[str, Any]) -> dict[str, Any]:
    found = next((each for each in records(data.confirmed) if each["trial"] == row["number"]), {})
    return {key: found[key] for key in ("test_accuracy", "ratio", "ratio_low", "ratio_high") if key in found}


def _paired(row: dict[str, Any], counts: Sequence[AgainstTeacher], *, seeds: int) -> Standing:
    images = counts[0].images
    gaps = [(each.teacher - each.student) / images for each in counts]
    below = fmean(gaps)
    bound = paired_upper_bound(fmean(each.teacher for each in counts), fmean(each.student for each in counts), images)
    return Standing(row, below, below + math.hypot(bound - below, mean_upper_margin(gaps)), seeds, True)


def _unpaired(
    data: StudyData, row: dict[str, Any], accuracies: Sequence[float], runs: Sequence[ConfirmedRun]
) -> Standing | None:
    theirs, images = number((data.teacher or {}).get("accuracy")), images_of(data)
    ours = fmean(accuracies)
    if math.isnan(theirs) or math.isnan(ours) or images is None:
        return None
    margin = unpaired_upper_bound(theirs, ours, images) - (theirs - ours)
    return Standing(
        row, theirs - ours, theirs - ours + math.hypot(margin, mean_upper_margin(accuracies)), len(runs), False
    )


def images_of(data: StudyData) -> int | None:
    """Return the size of the test set: as counted, else the smallest that all test accuracies are shares of.

    Too small a size makes a bound too wide, never too narrow. None where no test accuracy is known.
    """
    for counts in data.trials["against_teacher"]:
        if isinstance(counts, AgainstTeacher):
            return counts.images
    shares = [*data.trials["test_accuracy"].tolist(), number((data.teacher or {}).get("accuracy"))]
    shares += [run.test_accuracy for runs in data.runs.values() for run in runs]
    return count_of(shares)


NAMED = 5  # pairs that the timing_sentence names


def told_apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the ratios of two rows of `StudyData.trials` differ beyond their noise (`stats.told_apart`)."""
    figures = [_figures(row) for row in (one, other)]
    return figures[0] != figures[1] and stats.told_apart(*figures)


def _figures(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return ratio and interval; a ratio stored without an interval counts as exact."""
    ratio, low, high = (formatting.number(row[name]) for name in ("ratio", "ratio_low", "ratio_high"))
    return (ratio, low, high) if 0 < low <= ratio <= high else (ratio, ratio, ratio)


def fastest(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the most accurate by validation of the trials that cannot be told apart from the largest ratio's.

    Args:
        rows: of `StudyData.trials`, at least one, ratios above 0.
    """
    top = max(rows, key=lambda row: (row["ratio"], row["accuracy"], -row["number"]))
    tied = [row for row in rows if not told_apart(row, top)]
    return max(tied, key=lambda row: (row["accuracy"], row["ratio"], -row["number"]))


def ties(front: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Map members of a front that are not shown to be faster than a more accurate one to the most accurate such one.

    Args:
        front: rows of `StudyData.trials`.
    """
    found = {}
    for row in front:
        ahead = [other for other in front if other["accuracy"] > row["accuracy"] and row["ratio"] > 0]
        tied = [other for other in ahead if not told_apart(row, other)]
        if tied:
            found[int(row["number"])] = int(max(tied, key=lambda other: (other["accuracy"], other["ratio"]))["number"])
    return found


def timing_sentence(data: StudyData) -> str:
    """Say which of the front's times do not differ beyond noise, and which intervals do not cover; else empty."""
    rows = records(data.front)
    if data.cost == "flops" or not rows:
        return ""
    pairs = [f"trial {number} from trial {other}" for number, other in ties(rows).items()]
    more = f" and {len(pairs) - NAMED} more" if len(pairs) > NAMED else ""
    told = (
        f"Timing cannot tell {', '.join(pairs[:NAMED])}{more}: it does not rank them, the more accurate comes first."
        if pairs
        else "Timing tells the front's students apart: none is within noise of a more accurate one."
        if len(rows) > 1
        else ""
    )
    single = [row for row in rows if row["covers"] is False or row["covers"] == 0]
    aside = (
        f"The ratio of {len(single)} of {len(rows)} is of one sitting: its interval says nothing of the next sitting, "
        "and is too narrow."
        if single and not all(math.isnan(formatting.number(row["ratio_low"])) for row in single)
        else ""
    )
    device = str(data.environment.get("device", ""))
    replayed = (
        "Timed as replayed graphs over one batch: what fits of it and of the weights is in the GPU's L2 cache."
        if data.cost == "latency" and device.startswith("cuda")
        else ""
    )
    return " ".join(part for part in (told, aside, replayed) if part)
