from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from kdsearch import spec
from kdsearch.records import HANDED_BACK, Attr
from kdsearch.search import space
from kdsearch.search.space import enqueue_missing, suggest

DIGITS = spec.load(spec.shipped("digits"))
WAITING = TrialState.WAITING


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(directions=["maximize"] * 2)


def anchors_of(study: optuna.Study, *states: TrialState) -> list[str]:
    return [t.user_attrs[Attr.ANCHOR] for t in study.get_trials(states=states or None)]


def test_the_first_anchors_are_enqueued_in_their_order(study):
    enqueue_missing(study, DIGITS, at_most=3)
    assert anchors_of(study, WAITING) == ["m1", "m2", "m3"]
    trial = study.ask()
    assert (trial.number, trial.user_attrs) == (0, {Attr.ANCHOR: "m1"})
    assert suggest(trial, DIGITS.space) == DIGITS.anchors["m1"].config


def test_waiting_anchors_are_not_enqueued_again(study):
    for at_most in (3, 3, 50):
        enqueue_missing(study, DIGITS, at_most=at_most)
    assert anchors_of(study, WAITING) == list(DIGITS.anchors)


@pytest.mark.parametrize(
    ("states", "again"),
    [
        ([TrialState.COMPLETE], False),
        ([TrialState.FAIL], True),
        ([TrialState.FAIL] * 2, True),
        ([TrialState.FAIL] * space.MAX_FAILURES, False),
        ([TrialState.FAIL, TrialState.COMPLETE], False),
        ([TrialState.RUNNING], False),
    ],
)
def test_an_anchor_is_tried_again_unless_it_is_complete_or_hopeless(study, states, again):
    for state in states:
        values = [0.9, 10.0] if state == TrialState.COMPLETE else None
        study.add_trial(create_trial(state=state, values=values, user_attrs={Attr.ANCHOR: "m1"}))
    enqueue_missing(study, DIGITS, at_most=2)
    assert anchors_of(study, WAITING) == (["m1", "m2"] if again else ["m2"])


def test_that_its_worker_was_killed_is_no_failure_of_an_anchor(study):
    for _ in range(space.MAX_FAILURES):
        killed = {Attr.ANCHOR: "m1", Attr.FAIL_REASON: HANDED_BACK + "its worker died"}
        study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=killed))
    enqueue_missing(study, DIGITS, at_most=1)
    assert anchors_of(study, WAITING) == ["m1"]


def test_a_study_without_anchors_gets_none(study):
    enqueue_missing(study, DIGITS.model_copy(update={"anchors": {}}), at_most=50)
    assert study.trials == []
