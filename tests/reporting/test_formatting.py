from __future__ import annotations

import pytest

from kdsearch.reporting import formatting

REASON = {"step": 3, "at": 20, "forecast": 0.931, "trials": [4], "reason": "at step 3, in the pruner's words"}
HOPE = "it could hope for 93.10 % by epoch 20, which would"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, f"at epoch 3: {HOPE} not beat trial 4"),
        ({"trials": [4, 7, 9]}, f"at epoch 3: {HOPE} not beat trials 4, 7, 9"),
        ({"trials": [*range(8)]}, f"at epoch 3: {HOPE} not beat trials 0, 1, 2, 3, 4 and 3 more"),
        ({"trials": []}, f"at epoch 3: {HOPE} add too little for the epochs it takes"),
        ({"step": 0}, f"before its first epoch: {HOPE} not beat trial 4"),
        ({"forecast": None}, "at epoch 3: at step 3, in the pruner's words"),
        ({"forecast": None, "reason": "the timeout had passed"}, "at epoch 3: the timeout had passed"),
    ],
)
def test_a_reason_names_epoch_forecast_and_the_trials_that_stand_in_the_way(changes, text):
    assert formatting.pruning({**REASON, **changes}) == text


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        (None, ""), ("slow", "slow"), ({}, "stopped by the pruner"),
        ({"step": 2}, "at epoch 2: stopped by the pruner"),
        ({"forecast": 0.5, "trials": 0},
         "it could hope for 50.00 %, which would add too little for the epochs it takes"),
    ],
)  # fmt: skip
def test_a_reason_may_be_missing_or_text_or_partial(stored, text):
    assert formatting.pruning(stored) == text
