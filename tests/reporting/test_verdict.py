from __future__ import annotations

import dataclasses

import pytest
from optuna.trial import TrialState, create_trial

from kdsearch.records import Attr
from kdsearch.reporting.choice import ship
from kdsearch.reporting.collect import StudyData, collect
from kdsearch.reporting.verdict import details, headline, knee, looks, picks, verdict, worth

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
        "The fastest shown to be within 1 point of the teacher; ratio 19.6 to 20.4; 0.73 times the teacher's errors; "
        "one seed, not confirmed, accuracies not paired by image."
    )
    assert verdict(data) == f"{headline(data)} {details(data)}"


def test_counts_by_image_make_the_bound_narrower_and_another_student_qualify(make_trial, make_study):
    counts = [9600, 90, 80, 230]  # 96.9 % of the teacher's, 96.8 % of the student's
    study = make_study(
        [
            make_trial([0.97], 100.0, test=0.968, against_teacher=counts),
            make_trial([0.975], 20.0, test=0.97, against_teacher=[9600, 100, 100, 200]),
        ]
    )
    assert verdict(collect(study, storage_url=URL)) == (
        "Ship trial 0: 100 times as fast as the teacher, 0.1 points below its 96.9 % test accuracy "
        "(at most 0.3 below with 95 % confidence). The fastest shown to be within 1 point of the teacher; "
        "ratio 98.0 to 102; 1.03 times the teacher's errors; one seed, not confirmed."
    )


def test_counted_operations_are_not_called_faster(make_trial, make_study):
    study = make_study([make_trial([0.97], 12.0, ratio_low=12.0, ratio_high=12.0, test=0.97)])
    study.set_user_attr("definition", {"cost": "flops"})
    assert "12.0 times fewer operations than the teacher, at its 97.0 % test accuracy" in verdict(
        collect(study, storage_url=URL)
    )


def test_none_near_the_teacher_names_the_nearest_and_what_it_lacks(make_trial, make_study):
    found = collect(make_study([make_trial([0.9], 1.5), make_trial([0.8], 5.0)]), storage_url=URL)
    assert verdict(found) == (
        "No student is shown to be within 1 point of the teacher; the nearest is trial 0: 1.50 times as fast as the "
        "teacher, 7.0 points below its 97.0 % test accuracy (at most 13.3 below with 95 % confidence). "
        "It lacks 12.3 points at that bound; ratio 1.47 to 1.53; 3.33 times the teacher's errors; "
        "one seed, not confirmed, accuracies not paired by image."
    )
    assert looks(found, ship(found)) == (
        "Validation puts no student of the front that is faster than the teacher within 1 point of the teacher."
    )


def test_where_no_student_is_faster_than_the_teacher_none_is_to_be_shipped(make_trial, make_study):
    found = collect(make_study([make_trial([0.97], 0.5, test=0.97), make_trial([0.8], 0.8)]), storage_url=URL)
    assert verdict(found).startswith(
        "No student here is faster than the teacher; the nearest in accuracy is trial 0: 2.00 times slower "
        "than the teacher, at its 97.0 % test accuracy"
    )
    assert ". Only a student faster than the teacher is one to ship; ratio 0.49 to 0.51;" in verdict(found)
    assert looks(found, ship(found)) == "No student of the front is faster than the teacher, so none is a candidate."
    counted = dataclasses.replace(found, cost="flops")
    assert verdict(counted).startswith("No student here is of fewer operations than the teacher; ")
    assert "Only a student of fewer operations than the teacher is one to ship" in verdict(counted)


def test_the_confirmed_ratio_decides_whether_a_student_is_faster(make_trial, make_study):
    study = make_study([make_trial([0.97], 1.05, test=0.97), make_trial([0.96], 0.99, test=0.9)])
    confirm(study, 0, [0.972, 0.974, 0.976], 0.97)
    found = ship(collect(study, storage_url=URL))
    assert (found.chosen, found.faster) == (None, 0)
    confirm(study, 0, [0.972, 0.974, 0.976], 2.05)
    assert ship(collect(study, storage_url=URL)).chosen.row["number"] == 0


def test_without_test_accuracy_and_teacher_the_verdict_says_validation(make_study):
    found = collect(make_study([create_trial(values=[0.9, 5.0])], bare=True), storage_url=URL)
    assert verdict(found) == (
        "Trial 0, the knee of the front, is 5.00 times as fast as the teacher at 90.0 % validation accuracy; "
        "how far it is below the teacher is not known."
    )


def confirm(study, trial: int, accuracies: list[float], ratio: float) -> None:
    """Keeps runs of 1,000 test images, on which the teacher is right in 970."""
    runs = []
    for seed, accuracy in enumerate(accuracies):
        right = round(1000 * accuracy)
        counts = [min(right, 970) - 5, 970 - min(right, 970) + 5, right - min(right, 970) + 5, 0]
        counts[3] = 1000 - sum(counts)
        runs.append({"seed": seed, "test_accuracy": accuracy, "ratio": ratio, "ratio_low": 0.99 * ratio,
                     "ratio_high": 1.01 * ratio, "seconds": 2.0, "against_teacher": counts})  # fmt: skip
    study.set_user_attr(f"confirmed:{trial}", {"trial": trial, "epochs": 2, "runs": runs})


def test_what_was_confirmed_is_what_the_verdict_says_and_like_is_compared_with_like(typical):
    confirm(typical, 3, [0.972, 0.974, 0.976], 92.0)
    found = verdict(collect(typical, storage_url=URL))
    assert found.startswith(
        "Ship trial 3: 92.0 times as fast as the teacher, 0.4 points above its 97.0 % test accuracy"
    )
    assert "; confirmed with 3 new seeds;" in found
    assert "slide row m2, run in this study, by 0.8 points at the same ratio (one seed each, equal epochs)" in found
    confirm(typical, 1, [0.97, 0.971, 0.969], 90.0)
    found = verdict(collect(typical, storage_url=URL))
    assert "slide row m2, run in this study, by 0.4 points at a higher ratio (both confirmed, equal epochs)" in found


def test_microseconds_stand_where_they_are_known_with_the_batch_that_was_timed(data: StudyData):
    timed = create_trial(value=0.9, user_attrs={Attr.TIMING: {"batch": 1000}})  # of a GPU: not the study file's
    data = dataclasses.replace(data, stored=(timed,))
    row = data.trials.to_dict("records")[3] | {"microseconds": 1.234, "microseconds_1": 12.6}
    assert "; 1.23 µs an image at batch 1000, 12.6 µs at batch 1;" in worth(data, row)
    slow = row | {"microseconds": 1238.0, "microseconds_1": 2912.0}
    assert "; 1,238 µs an image at batch 1000, 2,912 µs at batch 1;" in worth(data, slow)


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
