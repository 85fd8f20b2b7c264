"""Choose the student to ship, shown to be near the teacher, and tell which students' times differ beyond noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from kdsearch import stats
from kdsearch.records import AgainstTeacher
from kdsearch.reporting.collect import StudyData
from kdsearch.reporting.formatting import by, number, records
from kdsearch.stats import count_of, mean_upper_margin, paired_upper_bound, unpaired_upper_bound

EXACT = 1e-9  # points: a bound that equals the limit but for rounding holds
NAMED = 5  # pairs that the timing_sentence names
Row = dict[str, Any]


@dataclass(frozen=True)
class Standing:
    """How far a student is below its teacher on the test set, with a confidence bound."""

    row: Row  # of `StudyData.trials`; ratio and test accuracy are the confirmed ones where the trial was confirmed
    below: float  # teacher's test accuracy less the student's, a fraction
    bound: float  # its one-sided 95 % upper bound
    seeds: int  # confirmation runs behind the figures; 0: the search's single run
    paired: bool  # whether it is known on which test images the two differ; if not, the bound is wider


@dataclass(frozen=True)
class Shipping:
    """The student that a study recommends to ship."""

    within: float  # points below the teacher that are acceptable
    chosen: Standing | None  # the fastest candidate whose bound is within the margin; None: none qualifies
    nearest: Standing | None  # the front's member with the lowest bound, of those faster than the teacher if any are
    faster: int  # members of the front that are faster than the teacher
    candidates: int  # those of them whose validation accuracy is within the margin
    looks: int  # candidates whose bound on the test set was computed, the fastest first


def ship(data: StudyData, *, within: float | None = None, rows: Sequence[Row] | None = None) -> Shipping:
    """Return the fastest student whose accuracy is shown to be within a margin of the teacher's.

    Candidates are the members of the front, and the confirmed trials within noise of it, that are faster than the
    teacher, and whose validation accuracy is at most the margin below the teacher's (where that is known). Each is
    tested by itself, the fastest first: the one-sided 95 % bound of (teacher - student) on the test set has to be
    within the margin, so the other members of the front do not influence the choice. The test set does not rank the
    candidates that qualify, but it is looked at more than once.

    Args:
        within: the margin in points of test accuracy; None: the study's own.
        rows: rows of `StudyData.trials` to choose among; None: the front and the confirmed trials.
    """
    limit = data.within if within is None else within
    eligible = data.trials["on_front"].astype(bool) | data.trials["number"].isin(list(data.runs))
    members = records(data.trials[eligible]) if rows is None else list(rows)
    pace = {row["number"]: (row | _confirmed(data, row))["ratio"] for row in members}
    members.sort(key=lambda row: (-pace[row["number"]], -row["accuracy"], row["number"]))
    theirs = number((data.teacher or {}).get("validation_accuracy"))
    faster = [row for row in members if pace[row["number"]] > 1]
    reach = [row for row in faster if not 100 * (theirs - row["accuracy"]) > limit + EXACT]
    looks = 0
    for found in filter(None, (standing(data, row) for row in reach)):
        looks += 1
        if 100 * found.bound <= limit + EXACT:
            return Shipping(limit, found, found, len(faster), len(reach), looks)
    known = filter(None, (standing(data, row) for row in faster or members))
    return Shipping(limit, None, min(known, key=lambda each: each.bound, default=None), len(faster), len(reach), looks)


def standing(data: StudyData, row: Row) -> Standing | None:
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
    return _unpaired(data, shown, [run.test_accuracy for run in runs] or [row["test_accuracy"]], seeds=len(runs))


def _confirmed(data: StudyData, row: Row) -> Row:
    found = by(data.confirmed, "trial").get(row["number"], {})
    return {key: found[key] for key in ("test_accuracy", "ratio", "ratio_low", "ratio_high") if key in found}


def _paired(row: Row, counts: Sequence[AgainstTeacher], *, seeds: int) -> Standing:
    images = counts[0].images
    gaps = [(each.teacher - each.student) / images for each in counts]
    below = fmean(gaps)
    bound = paired_upper_bound(fmean(each.teacher for each in counts), fmean(each.student for each in counts), images)
    return Standing(row, below, below + math.hypot(bound - below, mean_upper_margin(gaps)), seeds, True)


def _unpaired(data: StudyData, row: Row, accuracies: Sequence[float], *, seeds: int) -> Standing | None:
    theirs, ours, images = number((data.teacher or {}).get("accuracy")), fmean(accuracies), images_of(data)
    if math.isnan(theirs) or math.isnan(ours) or images is None:
        return None
    below = theirs - ours
    margin = unpaired_upper_bound(theirs, ours, images) - below
    return Standing(row, below, below + math.hypot(margin, mean_upper_margin(accuracies)), seeds, False)


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


def told_apart(one: Row, other: Row) -> bool:
    """Whether the ratios of two rows of `StudyData.trials` differ beyond their noise (`stats.told_apart`)."""
    first, second = _figures(one), _figures(other)
    return first != second and stats.told_apart(first, second)


def _figures(row: Row) -> tuple[float, float, float]:
    """Return ratio and interval; a ratio stored without an interval counts as exact."""
    ratio, low, high = (number(row[name]) for name in ("ratio", "ratio_low", "ratio_high"))
    return (ratio, low, high) if 0 < low <= ratio <= high else (ratio, ratio, ratio)


def fastest(rows: Sequence[Row]) -> Row:
    """Return the most accurate by validation of the trials (at least one) not told apart from the largest ratio's."""
    top = max(rows, key=lambda row: (row["ratio"], row["accuracy"], -row["number"]))
    tied = [row for row in rows if not told_apart(row, top)]
    return max(tied, key=lambda row: (row["accuracy"], row["ratio"], -row["number"]))


def ties(front: Sequence[Row]) -> dict[int, int]:
    """Map members of a front that are not shown to be faster than a more accurate one to the most accurate such one."""
    found = {}
    for row in (row for row in front if row["ratio"] > 0):
        tied = [other for other in front if other["accuracy"] > row["accuracy"] and not told_apart(row, other)]
        if tied:
            found[int(row["number"])] = int(max(tied, key=lambda other: (other["accuracy"], other["ratio"]))["number"])
    return found


def timing_sentence(data: StudyData) -> str:
    """Say which of the front's times do not differ beyond noise, and which intervals do not cover; else empty."""
    rows = records(data.front)
    if data.cost == "flops" or not rows:
        return ""
    pairs = [f"trial {trial} from trial {other}" for trial, other in ties(rows).items()]
    more = f" and {len(pairs) - NAMED} more" if len(pairs) > NAMED else ""
    said = []
    if pairs:
        named = f"{', '.join(pairs[:NAMED])}{more}"
        said.append(f"Timing cannot tell {named}: it does not rank them, the more accurate comes first.")
    elif len(rows) > 1:
        said.append("Timing tells the front's students apart: none is within noise of a more accurate one.")
    single = [row for row in rows if not row["covers"]]
    if not all(math.isnan(number(row["ratio_low"])) for row in single):
        said.append(
            f"The ratio of {len(single)} of {len(rows)} is of one sitting: its interval says nothing of the next "
            "sitting, and is too narrow."
        )
    if data.cost == "latency" and str(data.environment.get("device", "")).startswith("cuda"):
        said.append(
            "Timed as replayed graphs over one batch: what fits of it and of the weights is in the GPU's L2 cache."
        )
    return " ".join(said)
