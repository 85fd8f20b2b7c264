from __future__ import annotations

import json

import pytest
from optuna.trial import TrialState, create_trial

from kdsearch.records import Attr
from kdsearch.reporting.collect import StudyData
from kdsearch.reporting.pages import one_trial


def test_a_pruned_trial_tells_what_it_was_what_it_reached_and_why_it_ended(data: StudyData):
    found = one_trial.facts(data, 5)
    assert found == {
        "study": "mnist", "trial": 5, "anchor": None, "state": "pruned", "on_front": False,
        "params": {"width": 300, "loss_weight": 0.5, "epochs": 3}, "epochs_run": 1, "epochs": 3, "best_epoch": 1,
        "accuracy": 0.91, "test_accuracy": 0.912, "ratio": 100.0, "ratio_low": 98.0, "ratio_high": 102.0,
            "sittings": None, "microseconds": None, "microseconds_1": None,
        "reason": "at epoch 1: it could hope for 95.00 % by epoch 3, which would not beat trials 1, 3",
        "why": {"step": 1, "at": 3, "forecast": 0.95, "trials": [1, 3],
                "reason": "at step 1, a sentence of the pruner"},
    }  # fmt: skip
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert one_trial.lines(found) == [
        ("trial", "5 of mnist"),
        ("state", "pruned"),
        ("parameters", "width 300, epochs 3, loss weight 0.5"),
        ("epochs", "1 of 3"),
        ("accuracy", "91.00 % validation, 91.20 % test, at epoch 1"),
        ("ratio", "100 (98.0 to 102)"),
        ("why", found["reason"]),
    ]


def test_a_member_of_the_front_says_so_and_has_nothing_to_explain(data: StudyData):
    found = one_trial.facts(data, 0)
    assert (found["on_front"], found["why"], found["reason"]) == (True, None, "")
    said = dict(one_trial.lines(found))
    assert said["trial"] == "0 (m1) of mnist"
    assert said["state"] == "complete, on the front"
    assert "why" not in said


@pytest.mark.parametrize("state", [TrialState.WAITING, TrialState.RUNNING, TrialState.FAIL])
def test_a_trial_that_reached_nothing_is_told_all_the_same(gather, state):
    found = one_trial.facts(gather([create_trial(state=state)], bare=True), 0)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["state"], found["accuracy"], found["best_epoch"]) == (state.name.lower(), None, None)
    said = dict(one_trial.lines(found))
    assert (said["epochs"], said["accuracy"], said["ratio"]) == ("0", "– validation, – test", "–")


def test_a_running_trial_tells_its_best_epoch_so_far(gather):
    curve = {"0": [None, 2.0], "1": [0.3, 2.0], "2": [0.5, 2.0], "3": [0.5, 2.0]}
    running = create_trial(state=TrialState.RUNNING, user_attrs={Attr.CURVE: curve, Attr.CONFIG: {"epochs": 9}})
    found = one_trial.facts(gather([running]), 0)
    assert (found["epochs_run"], found["epochs"], found["best_epoch"], found["accuracy"]) == (3, 9, 2, 0.5)
