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
from kdsearch.records import Attr, StudyAttr, Timing, is_number
from kdsearch.stats import Spread, sittings_interval, spread

LEAST = 3  # sittings of a front student: with fewer, nothing is claimed of its ratio
OPTIONAL = ("eager_ratio", "teacher_seconds_1", "student_seconds_1")


@dataclass(frozen=True)
class Sitting:
    """One timing of a student."""

    timing: Timing
    at: float  # seconds since 1970; 0 if unknown


@dataclass(frozen=True)
class Ratio:
    """An inference ratio over all sittings of an architecture."""

    ratio: float  # geometric mean of the sittings' ratios
    low: float  # with `high` the 95 % interval; without `covers` that of the one sitting, too narrow for another one
    high: float
    sittings: int  # number of sittings; 0 for counted operations, which have no noise
    covers: bool  # whether the interval accounts for the spread between sittings
    microseconds: float  # of the student, per image at the study's batch; NaN for counted operations
    microseconds_1: float  # of the student, for a single image; NaN where it was not timed


def parsed(stored: object) -> Timing | None:
    """Return a stored timing; None if it is malformed, for anyone may write to a storage."""
    if not isinstance(stored, Mapping):
        return None
    found: dict[str, Any] = {field.name: stored.get(field.name) for field in dataclasses.fields(Timing)}
    numbers = {name for name, value in found.items() if value is not None or name not in OPTIONAL} - {"kind"}
    if not all(is_number(found[name]) for name in numbers):
        return None
    timing = Timing(**found)
    sound = 0 < timing.low <= timing.ratio <= timing.high and timing.batch >= 1 and isinstance(timing.kind, str)
    return timing if sound and min(timing.teacher_seconds, timing.student_seconds) > 0 else None


def attribute(key: str) -> str:
    """Return the study attribute that holds the later sittings of an architecture, by a trial's `timing_key`."""
    return f"{StudyAttr.SITTINGS}{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _rows(study_attrs: Mapping[str, Any], key: str) -> list[Any]:
    stored = study_attrs.get(attribute(key))
    rows = stored.get("sittings") if isinstance(stored, Mapping) and stored.get("key") == key else None
    return rows if isinstance(rows, list) else []


def later(study_attrs: Mapping[str, Any], key: str) -> list[Sitting]:
    """Return the sittings of an architecture after its first one; malformed ones are skipped."""
    found = []
    for row in _rows(study_attrs, key):
        if (timing := parsed(row)) is not None:
            found.append(Sitting(timing, float(row["at"]) if is_number(row.get("at")) else 0.0))
    return found


def add(study: Study, key: str, timing: Timing) -> None:
    """Add a sitting of an architecture to its study; the caller makes sure that no other process does so meanwhile."""
    figures = {name: value for name, value in dataclasses.asdict(timing).items() if value is not None}
    rows = [*_rows(study.user_attrs, key), figures | {"at": round(time.time(), 1)}]
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
    """Return the ratio of each architecture over its sittings, which are those of `by_architecture`."""
    timings = {key: [one.timing for one in each] for key, each in sittings.items()}
    pooled = spread([timing.ratio for timing in each] for each in timings.values() if each[0].pairs)
    return {key: _joined(each, pooled) for key, each in timings.items()}


def _joined(timings: Sequence[Timing], pooled: Spread) -> Ratio:
    first = timings[0]
    if not first.pairs:  # counted operations are the same at every sitting
        return Ratio(first.ratio, first.low, first.high, 0, True, math.nan, math.nan)
    found = sittings_interval([timing.ratio for timing in timings], pooled)
    middle, low, high = (found.mean, found.low, found.high) if found else (first.ratio, first.low, first.high)
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


def ratio_of(trial: FrozenTrial, found: Mapping[str, Ratio]) -> float:
    """Return a complete trial's ratio over all sittings (`found`, from `ratios`), its own value where there is none."""
    over_all = found.get(str(trial.user_attrs.get(Attr.TIMING_KEY)))
    return over_all.ratio if over_all else float(trial.values[1])


def front(trials: Sequence[FrozenTrial], found: Mapping[str, Ratio]) -> list[FrozenTrial]:
    """Return the non-dominated complete trials, by validation accuracy and the ratio over all sittings.

    Args:
        trials: of a study.
        found: from `ratios`; a trial that is not in it keeps its own value.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    points = [(trial.values[0], ratio_of(trial, found)) for trial in complete]
    return [complete[index] for index in pareto.front(points)]


def lacking(
    trials: Sequence[FrozenTrial], study_attrs: Mapping[str, Any]
) -> dict[str, tuple[FrozenTrial, Sequence[Sitting]]]:
    """Return the front's architectures with fewer than `LEAST` sittings, by timing key: a trial and its sittings."""
    sittings = by_architecture(trials, study_attrs)
    timed = ratios(sittings)
    members = {str(trial.user_attrs.get(Attr.TIMING_KEY)): trial for trial in front(trials, timed)}
    seldom = [key for key in members if key in timed and 0 < timed[key].sittings < LEAST]
    return {key: (members[key], sittings[key]) for key in seldom}
