"""Sittings: repeated timings of a study's students, kept with the study, and the ratio's interval over them.

A trial is timed before its training. This is the first sitting of its architecture, and its ratio stays the trial's
value in Optuna. Students of the front are timed again later (see `search.retime`); these later sittings are kept in
attributes of the study.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from kdsearch import pareto
from kdsearch.records import Attr, StudyAttr, Timing
from kdsearch.stats import Spread, sittings_interval, spread

LEAST = 3
"""Least number of sittings of a front student, below which nothing is claimed of its ratio."""

OPTIONAL = ("eager_ratio", "teacher_seconds_1", "student_seconds_1")


@dataclass(frozen=True)
class Sitting:
    """One timing of a student.

    Attributes:
        timing: the measurement.
        at: time of the measurement, in seconds since 1970; 0 if unknown.
    """

    timing: Timing
    at: float


@dataclass(frozen=True)
class Ratio:
    """An inference ratio over all sittings of an architecture.

    Attributes:
        ratio: geometric mean of the sittings' ratios.
        low, high: 95 % interval; where `covers` is False it is that of the one sitting, too narrow for another one.
        sittings: number of sittings; 0 for counted operations, which have no noise.
        covers: whether the interval accounts for the spread between sittings.
        microseconds: of the student, per image at the study's batch; NaN for counted operations.
        microseconds_1: of the student, for a single image; NaN where it was not timed.
    """

    ratio: float
    low: float
    high: float
    sittings: int
    covers: bool
    microseconds: float
    microseconds_1: float


def parsed(stored: object) -> Timing | None:
    """Return a stored timing; None if it is malformed, for anyone may write to a storage."""
    if not isinstance(stored, Mapping):
        return None
    names = {field.name for field in dataclasses.fields(Timing)}
    found = {name: stored[name] for name in names if stored.get(name) is not None}
    numbers = names - {"kind"}
    if not all(_is_number(found[name]) for name in numbers & set(found)) or names - set(found) - set(OPTIONAL):
        return None
    timing = Timing(**found)
    sound = 0 < timing.low <= timing.ratio <= timing.high and timing.batch >= 1 and isinstance(timing.kind, str)
    return timing if sound and min(timing.teacher_seconds, timing.student_seconds) > 0 else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def attribute(key: str) -> str:
    """Return the study attribute that holds the later sittings of an architecture.

    Args:
        key: a trial's `timing_key`, shared by equal architectures.
    """
    return f"{StudyAttr.SITTINGS}{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def later(study_attrs: Mapping[str, Any], key: str) -> list[Sitting]:
    """Return the sittings of an architecture after its first one; malformed ones are skipped."""
    stored = study_attrs.get(attribute(key))
    rows = stored.get("sittings") if isinstance(stored, Mapping) and stored.get("key") == key else None
    found = []
    for row in rows if isinstance(rows, list) else []:
        timing = parsed(row)
        if timing is not None:
            found.append(Sitting(timing, float(row["at"]) if _is_number(row.get("at")) else 0.0))
    return found


def add(study: Study, key: str, timing: Timing) -> None:
    """Add a sitting of an architecture to its study; the caller makes sure that no other process does so meanwhile."""
    figures = {name: value for name, value in dataclasses.asdict(timing).items() if value is not None}
    stored = study.user_attrs.get(attribute(key))
    before = stored.get("sittings", []) if isinstance(stored, Mapping) and stored.get("key") == key else []
    rows = [*before, figures | {"at": round(time.time(), 1)}]
    study.set_user_attr(attribute(key), {"key": key, "sittings": rows})


def by_architecture(trials: Iterable[FrozenTrial], study_attrs: Mapping[str, Any]) -> dict[str, list[Sitting]]:
    """Return all sittings of each timed architecture by timing key, the first trial's before the later ones."""
    found: dict[str, list[Sitting]] = {}
    for trial in trials:
        key = trial.user_attrs.get(Attr.TIMING_KEY)
        if not isinstance(key, str) or key in found:
            continue
        first = parsed(trial.user_attrs.get(Attr.TIMING))
        if first is not None:
            began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            found[key] = [Sitting(first, began), *later(study_attrs, key)]
    return found


def ratios(sittings: Mapping[str, Sequence[Sitting]]) -> dict[str, Ratio]:
    """Return the ratio of each architecture over its sittings.

    Args:
        sittings: from `by_architecture`, at least one each.
    """
    pooled = spread([one.timing.ratio for one in each] for each in sittings.values() if is_noisy(each))
    return {key: joined([one.timing for one in each], pooled) for key, each in sittings.items()}


def is_noisy(sittings: Sequence[Sitting]) -> bool:
    """Return whether time was measured; counted operations are the same at every sitting."""
    return sittings[0].timing.pairs > 0


def joined(timings: Sequence[Timing], pooled: Spread | None = None) -> Ratio:
    """Return the ratio over the sittings of one architecture.

    Args:
        timings: one per sitting, at least one.
        pooled: spread between sittings over all students that were timed alike.
    """
    first = timings[0]
    if not first.pairs:
        return Ratio(first.ratio, first.low, first.high, 0, True, math.nan, math.nan)
    found = sittings_interval([timing.ratio for timing in timings], pooled)
    middle = first.ratio if found is None else found.mean
    low, high = (first.low, first.high) if found is None else (found.low, found.high)
    if len(timings) == 1:  # the others may by chance have spread less than the pairs of this one
        low, high = min(low, first.low), max(high, first.high)
    alone = [1e6 * timing.student_seconds_1 for timing in timings if timing.student_seconds_1]
    return Ratio(
        ratio=middle,
        low=low,
        high=high,
        sittings=len(timings),
        covers=found is not None,
        microseconds=statistics.median(1e6 * timing.student_seconds / timing.batch for timing in timings),
        microseconds_1=statistics.median(alone) if alone else math.nan,
    )


def front(trials: Sequence[FrozenTrial], found: Mapping[str, Ratio]) -> list[FrozenTrial]:
    """Return the non-dominated complete trials, by validation accuracy and the ratio over all sittings.

    Args:
        trials: of a study.
        found: from `ratios`; a trial that is not in it keeps its own value.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    points = [(trial.values[0], _ratio(trial, found)) for trial in complete]
    return [complete[index] for index in pareto.front(points)]


def _ratio(trial: FrozenTrial, found: Mapping[str, Ratio]) -> float:
    known = found.get(str(trial.user_attrs.get(Attr.TIMING_KEY)))
    return float(trial.values[1]) if known is None else known.ratio


def lacking(
    trials: Sequence[FrozenTrial], study_attrs: Mapping[str, Any]
) -> dict[str, tuple[FrozenTrial, Sequence[Sitting]]]:
    """Return the front's architectures with fewer than `LEAST` sittings, by timing key: a trial and its sittings."""
    sittings = by_architecture(trials, study_attrs)
    found: dict[str, tuple[FrozenTrial, Sequence[Sitting]]] = {}
    for trial in front(trials, ratios(sittings)):
        key = str(trial.user_attrs.get(Attr.TIMING_KEY))
        if key in sittings and is_noisy(sittings[key]) and len(sittings[key]) < LEAST:
            found[key] = (trial, sittings[key])
    return found
