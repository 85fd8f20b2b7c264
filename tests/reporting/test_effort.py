from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from kdsearch.records import Attr
from kdsearch.reporting.collect import collect
from kdsearch.reporting.verdict import effort

FORECAST = {"step": 1, "at": 5, "forecast": 0.5, "trials": [], "reason": "too little"}
BUDGET = {"step": 1, "reason": "the epochs budget was spent"}


def of(study: optuna.Study) -> str:
    return effort(collect(study, storage_url="sqlite:///x.db"))


def five(make_trial, epochs_run, state=TrialState.COMPLETE, **attrs):
    return make_trial([0.5] * epochs_run, 9.0, state=state, config={"epochs": 5}, **attrs)


def test_pruning_saved_what_finished_trials_had_planned_and_did_not_train(make_trial, make_study):
    study = make_study(
        [
            five(make_trial, 5),
            five(make_trial, 2, TrialState.PRUNED),  # saved 3
            five(make_trial, 1, stopped_by=FORECAST),  # saved 4
            five(make_trial, 1, stopped_by=BUDGET),  # cut, which is no saving
            five(make_trial, 4, TrialState.FAIL),  # spent, for nothing
            create_trial(state=TrialState.RUNNING, user_attrs={Attr.CURVE: {"0": [None, 2.0], "1": [0.1, 2.0]}}),
            create_trial(state=TrialState.PRUNED, user_attrs={Attr.CURVE: {"0": [None, 2.0]}}),  # never trained
        ]
    )
    assert of(study) == "spent 14 epochs on 6 trials; pruning saved 7 of 20 planned epochs"


def test_where_nothing_was_saved_or_planned_only_what_was_spent_is_said(make_trial, make_study):
    assert of(make_study([five(make_trial, 5)])) == "spent 5 epochs on 1 trial"
    unknown = make_trial([0.5], 9.0, config={"width": 3})
    assert of(make_study([unknown, five(make_trial, 1, TrialState.PRUNED)])) == "spent 2 epochs on 2 trials"


def test_a_study_without_training_spent_nothing(make_study):
    assert of(make_study([])) == of(make_study([create_trial(values=[0.5, 2.0])], bare=True)) == ""


@pytest.mark.parametrize("epochs", ["many", [1], None])
def test_planned_epochs_that_are_no_number_are_not_added_up(make_trial, make_study, epochs):
    trials = [make_trial([0.9], 50.0, config={"epochs": epochs}), make_trial([0.8], 9.0, state=TrialState.PRUNED)]
    assert effort(collect(make_study(trials), storage_url="sqlite:///x.db")) == "spent 2 epochs on 2 trials"


def test_the_audit_says_what_pruning_cost(make_trial, make_study):
    def audited(would_end, accuracies, ratio):
        audit = {"trial": 0, "never_pruned": "drawn at random", "would_end": would_end}
        best = accuracies.index(max(accuracies)) + 1
        return make_trial(accuracies, ratio, config={"epochs": 5}, audit=audit, best_epoch=best)

    study = make_study(
        [
            five(make_trial, 2, TrialState.PRUNED),
            audited(None, [0.5, 0.6, 0.7, 0.8, 0.9], 9.0),  # never in danger
            audited(1, [0.1, 0.1, 0.1, 0.1, 0.7], 20.0),  # a late bloomer
            audited(2, [0.3, 0.3, 0.3, 0.3, 0.4], 5.0),  # rightly given up
        ]
    )
    assert of(study).endswith(
        "; of 3 trials that were never pruned, to check this, 2 would have been ended, "
        "and 1 of these came to the front later"
    )
