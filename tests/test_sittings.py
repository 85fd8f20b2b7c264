from __future__ import annotations

import dataclasses
import math
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdsearch import sittings, stats
from kdsearch.records import Attr, StudyAttr, Timing


def timing(ratio: float, *, width: float = 0.02, pairs: int = 15, alone: float | None = 12e-6) -> Timing:
    low, high = ratio * (1 - width / 2), ratio * (1 + width / 2)
    return Timing(ratio, low, high, 0.5, 0.5 / ratio, 1000, pairs, "latency", None, None, alone)


def trial(key: str, accuracy: float, stored: Any, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    attrs = {Attr.TIMING_KEY: key, Attr.TIMING: stored}
    values = [accuracy, stored["ratio"]] if state == TrialState.COMPLETE else None
    return create_trial(state=state, values=values, user_attrs=attrs)


def study(*trials: FrozenTrial) -> optuna.Study:
    found = optuna.create_study(directions=["maximize"] * 2)
    found.add_trials(trials)
    return found


def ratios(found: optuna.Study) -> dict[str, sittings.Ratio]:
    return sittings.ratios(sittings.by_architecture(found.trials, found.user_attrs))


def test_sittings_are_kept_with_the_study_and_joined_with_the_trials_own():
    found = study(
        trial("a", 0.9, dataclasses.asdict(timing(100.0))), trial("b", 0.8, dataclasses.asdict(timing(300.0)))
    )
    sittings.add(found, "a", timing(110.0, alone=14e-6))
    sittings.add(found, "a", timing(121.0, alone=13e-6))
    by_key = ratios(found)
    expected = stats.sittings_interval([100.0, 110.0, 121.0])
    assert expected is not None
    a, b = by_key["a"], by_key["b"]
    assert (a.ratio, a.low, a.high, a.sittings, a.covers) == (expected.mean, expected.low, expected.high, 3, True)
    assert a.ratio == pytest.approx(110.0)
    assert (a.microseconds, a.microseconds_1) == (pytest.approx(1e6 * 0.5 / 110 / 1000), pytest.approx(13.0))
    # b sat once, but a shows how far sittings lie apart
    assert (b.ratio, b.sittings, b.covers) == (pytest.approx(300.0), 1, True)
    assert b.low < 297.0 < 303.0 < b.high
    assert found.trials[0].values == [0.9, 100.0]  # what the search used


def test_an_old_study_has_one_sitting_each_and_its_intervals_do_not_cover():
    old = {"ratio": 100.0, "low": 98.0, "high": 102.0, "teacher_seconds": 0.5, "student_seconds": 0.005,
           "batch": 1000, "pairs": 15, "kind": "latency", "eager_ratio": None}  # fmt: skip
    found = ratios(study(trial("a", 0.9, old), trial("a", 0.8, old | {"ratio": 99.0})))["a"]
    assert (found.ratio, found.low, found.high, found.sittings, found.covers) == (100.0, 98.0, 102.0, 1, False)
    assert found.microseconds == pytest.approx(5.0)
    assert math.isnan(found.microseconds_1)


def test_counted_operations_need_no_sittings():
    counted = Timing(4.0, 4.0, 4.0, 80, 20, 1, 0, "flops")
    found = study(trial("a", 0.9, dataclasses.asdict(counted)))
    a = ratios(found)["a"]
    assert (a.ratio, a.low, a.high, a.sittings, a.covers) == (4.0, 4.0, 4.0, 0, True)
    assert math.isnan(a.microseconds)
    assert sittings.lacking(found.trials, found.user_attrs) == {}


@pytest.mark.parametrize(
    "stored",
    [
        None, 3, [], {"ratio": 2.0}, {**dataclasses.asdict(timing(2.0)), "low": 3.0},
        {**dataclasses.asdict(timing(2.0)), "student_seconds": "fast"}, {**dataclasses.asdict(timing(2.0)), "batch": 0},
        {**dataclasses.asdict(timing(2.0)), "ratio": math.nan}, {**dataclasses.asdict(timing(2.0)), "kind": 7},
        {**dataclasses.asdict(timing(2.0)), "student_seconds": -1.0},
    ],
)  # fmt: skip
def test_what_is_malformed_falls_out(stored: object):
    assert sittings.parsed(stored) is None
    found = study(trial("a", 0.9, dataclasses.asdict(timing(100.0))))
    sittings.add(found, "a", timing(110.0))
    rows = found.user_attrs[sittings.attribute("a")]["sittings"]
    found.set_user_attr(sittings.attribute("a"), {"key": "a", "sittings": [stored, *rows]})
    assert [each.timing.ratio for each in sittings.later(found.user_attrs, "a")] == [110.0]
    assert sittings.later({sittings.attribute("a"): {"key": "of another one", "sittings": rows}}, "a") == []
    assert sittings.attribute("a").startswith(StudyAttr.SITTINGS)


def test_the_front_is_of_the_ratios_over_all_sittings_and_lacks_what_was_timed_too_seldom():
    found = study(
        trial("a", 0.9, dataclasses.asdict(timing(100.0))),
        trial("b", 0.8, dataclasses.asdict(timing(101.0))),  # by its first sitting alone it is faster than a
        trial("c", 0.95, dataclasses.asdict(timing(10.0))),
        trial("d", 0.99, dataclasses.asdict(timing(1000.0)), TrialState.PRUNED),
    )
    assert [*sittings.lacking(found.trials, found.user_attrs)] == ["a", "b", "c"]
    for ratio in (80.0, 82.0):
        sittings.add(found, "b", timing(ratio))
    assert [each.number for each in sittings.front(found.trials, ratios(found))] == [0, 2]
    assert [*sittings.lacking(found.trials, found.user_attrs)] == ["a", "c"]
    for _ in range(2):
        sittings.add(found, "a", timing(100.0))
    lacking = sittings.lacking(found.trials, found.user_attrs)
    assert {key: (member.number, len(seen)) for key, (member, seen) in lacking.items()} == {"c": (2, 1)}


def test_one_sitting_is_no_surer_than_its_own_pairs():
    first = timing(100.0, width=0.2)
    found = study(*(trial(key, 0.9, dataclasses.asdict(first)) for key in ("a", "b")))
    for _ in range(2):
        sittings.add(found, "a", timing(100.0001))
    once = ratios(found)["b"]
    assert (once.low, once.high) == pytest.approx((first.low, first.high))
