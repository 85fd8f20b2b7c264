"""The timings of a study's students by sitting: kept with the study, and their ratio with an interval that covers.

A trial is timed before its training: the first sitting of its architecture, whose ratio stays the trial's value in
Optuna. Students of the front are timed again later (see `search.retime`); these sittings are attributes of the study.
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
"""Sittings that a student of the front is to have before anything is said of it."""

OPTIONAL = ("eager_ratio", "teacher_seconds_1", "student_seconds_1")


@dataclass(frozen=True)
class Sitting:
    """One timing of a student.

    Attributes:
        timing: what was measured.
        at: when, in seconds since 1970; 0 where that is not known.
    """

    timing: Timing
    at: float


@dataclass(frozen=True)
class Ratio:
    """An inference ratio over all sittings of an architecture.

    Attributes:
        ratio: geometric mean of the sittings' ratios.
        low, high: 95 % interval; where `covers` is False it is the one sitting's, and too narrow for another one.
        sittings: how many; 0 of counted operations, which have no noise.
        covers: whether the interval knows how far sittings lie apart.
        microseconds: of the student, an image at the study's batch; NaN of counted operations.
        microseconds_1: of the student, one image alone; NaN where it was not timed.
    """

    ratio: float
    low: float
    high: float
    sittings: int
    covers: bool
    microseconds: float
    microseconds_1: float


def parsed(stored: object) -> Timing | None:
    """A stored timing; None where it is malformed, for a storage is anybody's."""
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
    """The study's attribute that keeps the later sittings of an architecture.

    Args:
        key: what equal architectures share, a trial's `timing_key`.
    """
    return f"{StudyAttr.SITTINGS}{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def later(study_attrs: Mapping[str, Any], key: str) -> list[Sitting]:
    """The sittings of an architecture after its first one; what is malformed falls out."""
    stored = study_attrs.get(attribute(key))
    rows = stored.get("sittings") if isinstance(stored, Mapping) and stored.get("key") == key else None
    found = []
    for row in rows if isinstance(rows, list) else []:
        timing = parsed(row)
        if timing is not None:
            found.append(Sitting(timing, float(row["at"]) if _is_number(row.get("at")) else 0.0))
    return found


def add(study: Study, key: str, timing: Timing) -> None:
    """Keeps a further sitting of an architecture with its study; the caller sees to it that nobody else does so now."""
    figures = {name: value for name, value in dataclasses.asdict(timing).items() if value is not None}
    stored = study.user_attrs.get(attribute(key))
    before = stored.get("sittings", []) if isinstance(stored, Mapping) and stored.get("key") == key else []
    rows = [*before, figures | {"at": round(time.time(), 1)}]
    study.set_user_attr(attribute(key), {"key": key, "sittings": rows})


def by_architecture(trials: Iterable[FrozenTrial], study_attrs: Mapping[str, Any]) -> dict[str, list[Sitting]]:
    """All sittings of each architecture that was timed, by timing key, the first trial's before the later ones."""
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
    """The ratio of each architecture over its sittings.

    Args:
        sittings: of `by_architecture`, at least one each.
    """
    pooled = spread([one.timing.ratio for one in each] for each in sittings.values() if is_noisy(each))
    return {key: joined([one.timing for one in each], pooled) for key, each in sittings.items()}


def is_noisy(sittings: Sequence[Sitting]) -> bool:
    """Whether time was measured: counted operations are the same at every sitting."""
    return sittings[0].timing.pairs > 0


def joined(timings: Sequence[Timing], pooled: Spread | None = None) -> Ratio:
    """The ratio over the sittings of one architecture.

    Args:
        timings: one a sitting, at least one.
        pooled: how far sittings lie apart, over all students that were timed alike.
    """
    first = timings[0]
    if not first.pairs:
        return Ratio(first.ratio, first.low, first.high, 0, True, math.nan, math.nan)
    found = sittings_interval([timing.ratio for timing in timings], pooled)
    middle = first.ratio if found is None else found.mean
    low, high = (first.low, first.high) if found is None else (found.low, found.high)
    if len(timings) == 1:  # by luck others may have spread less than the pairs of this one
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
    """The complete trials that no other one dominates, by validation accuracy and the ratio over all sittings.

    Args:
        trials: of a study.
        found: of `ratios`; a trial that has none there stands with its own value.
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
    """Architectures of the front that sat fewer than `LEAST` times, by timing key: a trial of each and its sittings."""
    sittings = by_architecture(trials, study_attrs)
    found: dict[str, tuple[FrozenTrial, Sequence[Sitting]]] = {}
    for trial in front(trials, ratios(sittings)):
        key = str(trial.user_attrs.get(Attr.TIMING_KEY))
        if key in sittings and is_noisy(sittings[key]) and len(sittings[key]) < LEAST:
            found[key] = (trial, sittings[key])
    return found
