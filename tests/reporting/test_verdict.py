from __future__ import annotations

import dataclasses

import pytest
from helpers.elsewhere import confirmed
from optuna.trial import TrialState, create_trial

from kdsearch.records import Attr
from kdsearch.reporting.choice import ship
from kdsearch.reporting.collect import StudyData
from kdsearch.reporting.verdict import details, effort, headline, knee, looks, picks, verdict, worth

URL = "sqlite:///x.db"


def test_the_knee_has_the_largest_product_of_scaled_objectives(make_trial, gather):
    points = [(0.98, 10.0), (0.95, 100.0), (0.94, 200.0), (0.80, 1000.0)]
    # scaled: (1, 0), (0.83, 0.5), (0.78, 0.65), (0, 1): products 0, 0.42, 0.51, 0
    found = gather([make_trial([a], r) for a, r in points])
    assert knee(found.front) == 2


@pytest.mark.parametrize("points", [[(0.9, 10.0)], [(0.9, 10.0), (0.8, 20.0)]])
def test_the_knee_of_a_small_front_is_the_most_accurate(make_trial, gather, points):
    found = gather([make_trial([a], r) for a, r in points])
    assert knee(found.front) == 0


def test_the_picks(data: StudyData):
    assert [(pick.title, pick.row["number"]) for pick in picks(data)] == [
        ("To ship", 4), ("Most accurate", 4), ("Knee", 3), ("Fastest", 0)
    ]  # fmt: skip
    assert picks(data)[1].config == {"blocks": [2, 2, 0, 0], "epochs": 10}


def test_the_verdict_is_the_student_to_ship_with_its_figures(data: StudyData):
    assert headline(data) == (
        "Ship trial 4: 20.0 times as fast as the teacher, 0.8 points above its 97.0 % test accuracy "
        "(at most 0.4 below with 95 % confidence)."
    )
    assert details(data) == (
        "The fastest shown to be within 1 point of the teacher; ratio 19.6 to 20.4 (95 %); "
        "0.73 times the teacher's errors; one seed, not confirmed, so the bound is over test images alone, accuracies "
        "not paired by image."
    )
    assert verdict(data) == f"{headline(data)} {details(data)}"


def test_counts_by_image_make_the_bound_narrower_and_another_student_qualify(make_trial, gather):
    counts = [9600, 90, 80, 230]  # 96.9 % of the teacher's, 96.8 % of the student's
    trials = [
        make_trial([0.97], 100.0, test=0.968, against_teacher=counts),
        make_trial([0.975], 20.0, test=0.97, against_teacher=[9600, 100, 100, 200]),
    ]
    assert verdict(gather(trials)) == (
        "Ship trial 0: 100 times as fast as the teacher, 0.1 points below its 96.9 % test accuracy "
        "(at most 0.3 below with 95 % confidence). The fastest shown to be within 1 point of the teacher; "
        "ratio 98.0 to 102 (95 %); 1.03 times the teacher's errors; one seed, not confirmed, "
        "so the bound is over test images alone."
    )


def test_counted_operations_are_not_called_faster(make_trial, gather):
    trials = [make_trial([0.97], 12.0, ratio_low=12.0, ratio_high=12.0, test=0.97)]
    said = verdict(gather(trials, {"definition": {"cost": "flops"}}))
    assert "12.0 times fewer operations than the teacher, at its 97.0 % test accuracy" in said


def test_none_near_the_teacher_names_the_nearest_and_what_it_lacks(make_trial, gather):
    found = gather([make_trial([0.9], 1.5), make_trial([0.8], 5.0)])
    assert verdict(found) == (
        "No student is shown to be within 1 point of the teacher; the nearest is trial 0: 1.50 times as fast as the "
        "teacher, 7.0 points below its 97.0 % test accuracy (at most 13.3 below with 95 % confidence). "
        "That bound exceeds the allowed 1 point by 12.3; ratio 1.47 to 1.53 (95 %); 3.33 times the teacher's errors; "
        "one seed, not confirmed, so the bound is over test images alone, accuracies not paired by image."
    )
    assert looks(found, ship(found)) == (
        "Validation puts no student of the front that is faster than the teacher within 1 point of the teacher."
    )


def test_where_no_student_is_faster_than_the_teacher_none_is_to_be_shipped(make_trial, gather):
    found = gather([make_trial([0.97], 0.5, test=0.97), make_trial([0.8], 0.8)])
    assert verdict(found).startswith(
        "No student here is faster than the teacher; the nearest in accuracy is trial 0: 2.00 times slower "
        "than the teacher, at its 97.0 % test accuracy"
    )
    assert ". Only a student faster than the teacher is one to ship; ratio 0.49 to 0.51 (95 %);" in verdict(found)
    assert looks(found, ship(found)) == "No student of the front is faster than the teacher, so none is a candidate."
    counted = dataclasses.replace(found, cost="flops")
    assert verdict(counted).startswith("No student here is of fewer operations than the teacher; ")
    assert "Only a student of fewer operations than the teacher is one to ship" in verdict(counted)


def test_the_confirmed_ratio_decides_whether_a_student_is_faster(make_trial, make_study, gather):
    study = make_study([make_trial([0.97], 1.05, test=0.97), make_trial([0.96], 0.99, test=0.9)])
    confirm(study, 0, [0.972, 0.974, 0.976], 0.97)
    found = ship(gather(study))
    assert (found.chosen, found.faster) == (None, 0)
    confirm(study, 0, [0.972, 0.974, 0.976], 2.05)
    assert ship(gather(study)).chosen.row["number"] == 0


def test_without_test_accuracy_and_teacher_the_verdict_says_validation(gather):
    found = gather([create_trial(values=[0.9, 5.0])], bare=True)
    assert verdict(found) == (
        "Trial 0, the knee of the front, is 5.00 times as fast as the teacher at 90.0 % validation accuracy; "
        "how far it is below the teacher is not known."
    )


def confirm(study, trial: int, accuracies: list[float], ratio: float) -> None:
    """Keeps runs of 1,000 test images, on which the teacher is right in 970."""
    counts = []
    for right in (round(1000 * accuracy) for accuracy in accuracies):
        both = min(right, 970) - 5
        counts.append([both, 970 - both, right - both, 1000 - 970 - right + both])
    runs = confirmed(trial, accuracies, [ratio] * len(accuracies), counts=counts)
    study.set_user_attr(f"confirmed:{trial}", runs)


def test_what_was_confirmed_is_what_the_verdict_says_and_like_is_compared_with_like(typical, gather):
    confirm(typical, 3, [0.972, 0.974, 0.976], 92.0)
    found = verdict(gather(typical))
    assert found.startswith(
        "Ship trial 3: 92.0 times as fast as the teacher, 0.4 points above its 97.0 % test accuracy"
    )
    assert "; confirmed with 3 new seeds;" in found
    row = "row m2 of the slide deck, run in this study"
    assert f"{row}, by 0.8 points at the same ratio (one seed each, equal epochs)" in found
    confirm(typical, 1, [0.97, 0.971, 0.969], 90.0)
    found = verdict(gather(typical))
    assert f"{row}, by 0.4 points at a higher ratio (both confirmed, equal epochs)" in found


def test_microseconds_stand_where_they_are_known_with_the_batch_that_was_timed(data: StudyData):
    timed = create_trial(value=0.9, user_attrs={Attr.TIMING: {"batch": 1000}})  # of a GPU: not the study file's
    data = dataclasses.replace(data, stored=(timed,))
    row = data.trials.to_dict("records")[3] | {"microseconds": 1.234, "microseconds_1": 12.6}
    assert "; 1.23 µs an image at batch 1000, 12.6 µs at batch 1;" in worth(data, row)
    slow = row | {"microseconds": 1238.0, "microseconds_1": 2912.0}
    assert "; 1,238 µs an image at batch 1000, 2,912 µs at batch 1;" in worth(data, slow)


@pytest.mark.parametrize(
    ("states", "said"),
    [([], "no trials yet"), ([TrialState.FAIL] * 2, "All trials failed (2 failed)"),
     ([TrialState.RUNNING, TrialState.FAIL], "No trial is complete yet (1 failed, 1 running)")],
)  # fmt: skip
def test_nothing_to_recommend_is_said(gather, states, said):
    found = gather([create_trial(state=state) for state in states])
    assert said in verdict(found)
    assert picks(found) == []


FORECAST = {"step": 1, "at": 5, "forecast": 0.5, "trials": [], "reason": "too little"}
BUDGET = {"step": 1, "reason": "the epochs budget was spent"}


def five(make_trial, epochs_run, state=TrialState.COMPLETE, **attrs):
    return make_trial([0.5] * epochs_run, 9.0, state=state, config={"epochs": 5}, **attrs)


def test_pruning_saved_what_finished_trials_had_planned_and_did_not_train(make_trial, gather):
    trials = [
        five(make_trial, 5),
        five(make_trial, 2, TrialState.PRUNED),  # saved 3
        five(make_trial, 1, stopped_by=FORECAST),  # saved 4
        five(make_trial, 1, stopped_by=BUDGET),  # cut, which is no saving
        five(make_trial, 4, TrialState.FAIL),  # spent, for nothing
        create_trial(state=TrialState.RUNNING, user_attrs={Attr.CURVE: {"0": [None, 2.0], "1": [0.1, 2.0]}}),
        create_trial(state=TrialState.PRUNED, user_attrs={Attr.CURVE: {"0": [None, 2.0]}}),  # never trained
    ]
    assert effort(gather(trials)) == "spent 14 epochs on 6 trials; pruning saved 7 of 20 planned epochs"


def test_where_nothing_was_saved_or_planned_only_what_was_spent_is_said(make_trial, gather):
    assert effort(gather([five(make_trial, 5)])) == "spent 5 epochs on 1 trial"
    unknown = make_trial([0.5], 9.0, config={"width": 3})
    assert effort(gather([unknown, five(make_trial, 1, TrialState.PRUNED)])) == "spent 2 epochs on 2 trials"


def test_a_study_without_training_spent_nothing(gather):
    assert effort(gather([])) == effort(gather([create_trial(values=[0.5, 2.0])], bare=True)) == ""


@pytest.mark.parametrize("epochs", ["many", [1], None])
def test_planned_epochs_that_are_no_number_are_not_added_up(make_trial, gather, epochs):
    trials = [make_trial([0.9], 50.0, config={"epochs": epochs}), make_trial([0.8], 9.0, state=TrialState.PRUNED)]
    assert effort(gather(trials)) == "spent 2 epochs on 2 trials"


def test_the_audit_says_what_pruning_cost(make_trial, gather):
    def audited(would_end, accuracies, ratio):
        audit = {"trial": 0, "never_pruned": "drawn at random", "would_end": would_end}
        best = accuracies.index(max(accuracies)) + 1
        return make_trial(accuracies, ratio, config={"epochs": 5}, audit=audit, best_epoch=best)

    trials = [
        five(make_trial, 2, TrialState.PRUNED),
        audited(None, [0.5, 0.6, 0.7, 0.8, 0.9], 9.0),  # never in danger
        audited(1, [0.1, 0.1, 0.1, 0.1, 0.7], 20.0),  # a late bloomer
        audited(2, [0.3, 0.3, 0.3, 0.3, 0.4], 5.0),  # rightly given up
    ]
    assert effort(gather(trials)).endswith(
        "; of 3 trials that were never pruned, to check this, 2 would have been ended, "
        "and 1 of these came to the front later"
    )
