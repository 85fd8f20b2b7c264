from __future__ import annotations

import pytest
from optuna.trial import TrialState, create_trial

from kdsearch.reporting.collect import StudyData, collect
from kdsearch.reporting.verdict import knee, picks, verdict

URL = "sqlite:///x.db"


def test_the_knee_has_the_largest_product_of_scaled_objectives(make_trial, make_study):
    points = [(0.98, 10.0), (0.95, 100.0), (0.94, 200.0), (0.80, 1000.0)]
    # scaled: (1, 0), (0.83, 0.5), (0.78, 0.65), (0, 1): products 0, 0.42, 0.51, 0
    found = collect(make_study([make_trial([a], r) for a, r in points]), storage_url=URL)
    assert knee(found.front) == 2


@pytest.mark.parametrize("points", [[(0.9, 10.0)], [(0.9, 10.0), (0.8, 20.0)]])
def test_the_knee_of_a_small_front_is_the_most_accurate(make_trial, make_study, points):
    found = collect(make_study([make_trial([a], r) for a, r in points]), storage_url=URL)
    assert knee(found.front) == 0


def test_three_picks(data: StudyData):
    assert [(pick.title, pick.row["number"]) for pick in picks(data)] == [
        ("Most accurate", 4), ("Knee", 3), ("Fastest", 0)
    ]  # fmt: skip
    assert picks(data)[0].config == {"blocks": [2, 2, 0, 0], "epochs": 10}


def test_the_verdict_says_ratio_interval_and_both_accuracies(data: StudyData):
    assert verdict(data) == (
        "Trial 3 is 100x faster than the teacher (98.0 to 102) at 96.9 % test accuracy against its 97.0 %; "
        "it beats slide row m2, run in this study, by 0.8 points at the same ratio."
    )


def test_counted_operations_are_not_called_faster(make_trial, make_study):
    study = make_study([make_trial([0.9], 12.0, ratio_low=12.0, ratio_high=12.0)])
    study.set_user_attr("definition", {"cost": "flops"})
    assert verdict(collect(study, storage_url=URL)).startswith(
        "Trial 0 needs 12.0x fewer operations than the teacher at 90.0 % test accuracy"
    )


def test_a_student_slower_than_its_teacher_is_called_so(make_trial, make_study):
    found = collect(make_study([make_trial([0.9], 0.5)]), storage_url=URL)
    assert "is 2.00x slower than the teacher (1.96 to 2.04) at" in verdict(found)


def test_without_test_accuracy_and_teacher_the_verdict_says_validation(make_study):
    found = collect(make_study([create_trial(values=[0.9, 5.0])], bare=True), storage_url=URL)
    assert verdict(found) == "Trial 0 is 5.00x faster than the teacher at 90.0 % validation accuracy."


def test_what_was_confirmed_is_what_the_verdict_says(complete):
    assert verdict(collect(complete, storage_url=URL)) == (
        "Trial 3 is 92.0x faster than the teacher (87.1 to 97.1) at 96.4 % test accuracy "
        "(95.4 to 97.4, confirmed with 3 new seeds) against its 97.0 %; "
        "it beats slide row m2, run in this study, by 0.8 points at the same ratio."
    )


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ([], "no trials yet"),
        ([TrialState.FAIL, TrialState.FAIL], "All trials failed (2 failed)"),
        ([TrialState.RUNNING, TrialState.FAIL], "No trial is complete yet (1 failed, 1 running)"),
    ],
)
def test_nothing_to_recommend_is_said(make_study, states, said):
    found = collect(make_study([create_trial(state=state) for state in states]), storage_url=URL)
    assert said in verdict(found)
    assert picks(found) == []
