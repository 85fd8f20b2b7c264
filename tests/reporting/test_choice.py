from __future__ import annotations

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, create_trial

from kdsearch.records import StudyAttr
from kdsearch.reporting.choice import images_of, ship, standing
from kdsearch.reporting.collect import StudyData, collect

IMAGES = 1000
TEACHER = {"accuracy": 0.97, "validation_accuracy": 0.97}


def trial(accuracy: float, ratio: float, below: int) -> FrozenTrial:
    """A student that is right on so many fewer of the teacher's 970 images, and on 5 others."""
    counts = [970 - below - 5, below + 5, 5, 20]
    attrs = {"test_accuracy": (970 - below) / IMAGES, "against_teacher": counts, "config": {"epochs": 3}}
    return create_trial(values=[accuracy, ratio], user_attrs=attrs)


def study_of(trials: list[FrozenTrial], **attrs: object) -> StudyData:
    study = optuna.create_study(directions=["maximize"] * 2)
    for name, value in {StudyAttr.TEACHER: TEACHER, **attrs}.items():
        study.set_user_attr(name, value)
    for each in trials:
        study.add_trial(each)
    return collect(study, storage_url="sqlite:///x.db")


# a front: the faster, the less accurate by validation
fronts = st.lists(st.tuples(st.integers(0, 40), st.integers(-5, 60)), min_size=1, max_size=6)


def front(steps: list[tuple[int, int]]) -> list[FrozenTrial]:
    """Ever faster students, ever less accurate by validation; what they lose on the test set is as it comes."""
    lost = 0
    found = []
    for number, (step, below) in enumerate(steps):
        lost += step + 1
        found.append(trial(0.975 - lost / 2000, 10.0 * 2**number, below))
    return found


@settings(deadline=None, max_examples=60)
@given(fronts, st.floats(0.3, 3.0), st.integers(0, 5))
def test_a_useless_member_of_the_front_does_not_change_the_choice(steps, within, place):
    trials = front(steps)
    before = ship(study_of(trials), within=within)
    base = trials[min(place, len(trials) - 1)]
    # as accurate by validation as a member and a little faster or slower, but far off on the test set
    for accuracy, ratio in ((base.values[0] - 1e-6, base.values[1] * 1.01), (0.99, 0.5), (0.3, 1e6)):
        after = ship(study_of([*trials, trial(accuracy, ratio, 900)]), within=within)
        chosen = before.chosen and before.chosen.row["number"]
        assert (after.chosen and after.chosen.row["number"]) == chosen


@settings(deadline=None, max_examples=60)
@given(fronts, st.floats(0.3, 3.0))
def test_the_choice_is_the_fastest_whose_bound_is_within(steps, within):
    data = study_of(front(steps))
    found = ship(data, within=within)
    rows = data.front.to_dict("records")
    fitting = [
        row for row in rows
        if 97 - 100 * row["accuracy"] <= within + 1e-9 and 100 * standing(data, row).bound <= within + 1e-9
    ]  # fmt: skip
    assert (found.chosen is None) == (not fitting)
    if fitting:
        assert found.chosen.row["number"] == max(fitting, key=lambda row: row["ratio"])["number"]
        assert found.looks <= found.candidates <= len(rows)


def test_a_student_no_faster_than_its_teacher_is_not_shipped():
    slow, fast = trial(0.99, 0.8, -10), trial(0.94, 3.0, 40)
    found = ship(study_of([slow, fast]), within=1.0)
    assert found.chosen is None
    assert found.nearest.row["number"] == 1  # of those that are faster
    alone = ship(study_of([slow]), within=1.0)
    assert (alone.chosen, alone.candidates, alone.nearest.row["number"]) == (None, 0, 0)


def test_the_limit_is_the_studys_and_changes_no_definition(make_trial, make_study):
    study = make_study([make_trial([0.97], 10.0)])
    assert collect(study, storage_url="").within == 1.0
    study.set_user_attr(StudyAttr.STUDY_FILE, study.user_attrs[StudyAttr.STUDY_FILE] | {"report": {"within": 2.5}})
    assert ship(collect(study, storage_url="")).within == 2.5


def test_more_seeds_that_spread_less_bring_the_bound_down():
    def runs(*below: int) -> dict[str, object]:
        kept = [
            {"seed": n, "test_accuracy": (970 - b) / IMAGES, "ratio": 10.0, "ratio_low": 9.0, "ratio_high": 11.0,
             "seconds": 1.0, "against_teacher": [965 - b, b + 5, 5, 25]}
            for n, b in enumerate(below)
        ]  # fmt: skip
        return {"confirmed:0": {"trial": 0, "epochs": 3, "runs": kept}}

    trials = [trial(0.97, 10.0, 2)]
    few, many, wide = (
        standing(data := study_of(trials, **runs(*below)), data.front.to_dict("records")[0])
        for below in ((2, 8), (2, 8) * 3, (0, 10) * 3)
    )
    alone = standing(data := study_of(trials), data.front.to_dict("records")[0])
    assert (alone.seeds, few.seeds, many.seeds) == (0, 2, 6)
    assert many.below == pytest.approx(0.005)
    assert many.bound < wide.bound < few.bound
    assert alone.paired
    assert many.paired


def test_without_counts_the_test_sets_size_is_read_from_its_accuracies():
    def plain(*accuracies: float) -> StudyData:
        trials = [create_trial(values=[0.97, n + 1.0], user_attrs={"test_accuracy": a})
                  for n, a in enumerate(accuracies)]  # fmt: skip
        return study_of(trials, teacher={"accuracy": 440 / 450})

    assert images_of(plain(430 / 450, 401 / 450)) == 450
    assert images_of(plain(0.9600001234567)) is None
    found = standing(data := plain(430 / 450, 401 / 450), data.trials.to_dict("records")[0])
    assert (found.paired, found.below) == (False, pytest.approx(10 / 450))
