"""Which student to ship: the fastest that is shown to be within so many points of the teacher's test accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from kdsearch.records import AgainstTeacher, ConfirmedRun
from kdsearch.reporting.collect import StudyData
from kdsearch.reporting.formatting import number
from kdsearch.reporting.frames import records
from kdsearch.stats import count_of, mean_upper_margin, paired_upper_bound, unpaired_upper_bound

EXACT = 1e-9  # points: a bound that equals the limit but for rounding holds


@dataclass(frozen=True)
class Standing:
    """How far a student is below its teacher on the test set, and how sure that is.

    Attributes:
        row: of `StudyData.trials`; ratio and test accuracy are those of confirmation where it was confirmed.
        below: teacher's test accuracy less the student's, a fraction.
        bound: its one-sided 95 % upper bound.
        seeds: runs of confirmation that it is from; 0: the search's own one run.
        paired: whether it is known which test images the two differ on; if not, the bound is wider.
    """

    row: dict[str, Any]
    below: float
    bound: float
    seeds: int
    paired: bool


@dataclass(frozen=True)
class Shipping:
    """What a study recommends to ship.

    Attributes:
        within: points below the teacher that are acceptable.
        chosen: the fastest candidate whose bound is within; None: no candidate qualifies.
        nearest: the front's member of the lowest bound, where there is one.
        candidates: members of the front that validation puts within reach.
        looks: candidates whose bound on the test set was looked at, the fastest first.
    """

    within: float
    chosen: Standing | None
    nearest: Standing | None
    candidates: int
    looks: int


def ship(data: StudyData, *, within: float | None = None, rows: Sequence[dict[str, Any]] | None = None) -> Shipping:
    """The fastest student whose accuracy is shown to be within so many points of the teacher's.

    Candidates are the members of the front, and the confirmed trials within noise of it, whose validation accuracy is
    no more than that below the teacher's (all of them where the teacher's is not known). Each is tested by itself, the
    fastest first: the one-sided 95 % bound of (teacher - student) on the test set has to be within. So what else stands
    on the front does not matter to the choice. The test set does not choose among those that qualify, but it is looked
    at more than once.

    Args:
        data: a collected study.
        within: points of test accuracy; None: what the study says.
        rows: of `StudyData.trials`, to choose among; None: the front's and those that were confirmed.
    """
    limit = data.within if within is None else within
    eligible = data.trials["on_front"].astype(bool) | data.trials["number"].isin(list(data.runs))
    members = records(data.trials[eligible]) if rows is None else list(rows)
    members.sort(key=lambda row: (-row["ratio"], -row["accuracy"], row["number"]))
    theirs = number((data.teacher or {}).get("validation_accuracy"))
    reach = [row for row in members if not 100 * (theirs - row["accuracy"]) > limit + EXACT]
    looks = 0
    for row in reach:
        found = standing(data, row)
        if found is None:
            continue
        looks += 1
        if 100 * found.bound <= limit + EXACT:
            return Shipping(limit, found, found, len(reach), looks)
    known = [each for row in members if (each := standing(data, row)) is not None]
    return Shipping(limit, None, min(known, key=lambda each: each.bound, default=None), len(reach), looks)


def standing(data: StudyData, row: dict[str, Any]) -> Standing | None:
    """How far a trial's student is below the teacher; None where the teacher or the test set is not known.

    Over test images the bound is paired (`stats.paired_upper_bound`); over confirmed seeds, the mean's is Student's;
    both together are squared and added (Zou and Donner, Statistics in Medicine 27, 2008), which counts the noise that
    images and seeds share twice and so errs on the safe side. Where counts by image are missing it is unpaired.
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
    """Images of the test set: as counted, else the fewest that all test accuracies are shares of, which may be too few.

    Too few images make a bound too wide, never too narrow. None where no test accuracy is known.
    """
    for counts in data.trials["against_teacher"]:
        if isinstance(counts, AgainstTeacher):
            return counts.images
    shares = [*data.trials["test_accuracy"].tolist(), number((data.teacher or {}).get("accuracy"))]
    shares += [run.test_accuracy for runs in data.runs.values() for run in runs]
    return count_of(shares)
