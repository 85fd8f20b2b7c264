from __future__ import annotations

import dataclasses
import io
import json
from itertools import accumulate
from typing import Any

import optuna
import pandas as pd
import pytest
from helpers.elsewhere import confirmed
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, create_trial

from kdsearch import sittings
from kdsearch.export import pick
from kdsearch.records import Attr, StudyAttr, Timing
from kdsearch.reporting import choice, verdict
from kdsearch.reporting.choice import images_of, ship, standing
from kdsearch.reporting.collect import StudyData, collect, result
from kdsearch.reporting.figures import layers
from kdsearch.reporting.formatting import records
from kdsearch.reporting.pages import one_trial, study_page, text

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
    lost = accumulate(step + 1 for step, _ in steps)
    members = enumerate(zip(lost, steps, strict=True))
    return [trial(0.975 - each / 2000, 10.0 * 2**n, below) for n, (each, (_, below)) in members]


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
        tests, counts = [(970 - b) / IMAGES for b in below], [[965 - b, b + 5, 5, 25] for b in below]
        return {"confirmed:0": confirmed(0, tests, [10.0] * len(below), counts=counts)}

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


def timing(ratio: float, *, alone: float | None = 12e-6) -> Timing:
    return Timing(ratio, 0.999 * ratio, 1.001 * ratio, 0.5, 0.5 / ratio, 1000, 31, "latency", None, 2e-3, alone)


@pytest.fixture
def timed(make_trial: Any, make_study: Any) -> optuna.Study:
    """Trials 0 to 3; 2 and 3 are within noise of each other, and trial 1 was luckily fast at its first sitting."""
    later = {0: (95.0, 105.0), 1: (250.0, 240.0), 2: (620.0, 760.0), 3: (690.0, 730.0)}
    trials: list[FrozenTrial] = []
    for number, (accuracy, ratio) in enumerate([(0.98, 100.0), (0.95, 300.0), (0.96, 705.0), (0.94, 701.0)]):
        stored = {Attr.TIMING: dataclasses.asdict(timing(ratio)), Attr.TIMING_KEY: f"arch {number}"}
        trials.append(make_trial([accuracy], ratio, **stored))
    study: optuna.Study = make_study(trials)
    for number, ratios in later.items():
        for ratio in ratios:
            sittings.add(study, f"arch {number}", timing(ratio))
    return study


@pytest.fixture
def timed_data(timed: optuna.Study, gather) -> StudyData:
    return gather(timed)


def test_ratios_front_and_intervals_are_over_all_sittings(timed_data: StudyData):
    rows = records(timed_data.trials)
    assert [row["sittings"] for row in rows] == [3.0] * 4
    assert all(row["covers"] and row["ratio_low"] < row["ratio"] < row["ratio_high"] for row in rows)
    assert rows[3]["ratio"] > rows[2]["ratio"]  # the first sittings said the opposite
    assert [*timed_data.front["number"]] == [0, 2, 3]
    assert rows[2]["microseconds"] == pytest.approx(1e6 * 0.5 / 705 / 1000)
    assert rows[2]["microseconds_1"] == pytest.approx(12.0)


def test_who_is_within_noise_of_a_more_accurate_one_is_not_ranked(timed_data: StudyData):
    rows = records(timed_data.front)
    assert choice.ties(rows) == {3: 2}
    assert not choice.told_apart(rows[1], rows[2])
    assert choice.told_apart(rows[0], rows[1])
    assert choice.fastest(rows)["number"] == 2
    assert "Timing cannot tell trial 3 from trial 2: it does not rank them" in choice.timing_sentence(timed_data)
    assert [each.row["number"] for each in verdict.picks(timed_data) if each.title == "Fastest"] == [2]


def test_pick_takes_the_more_accurate_of_those_that_timing_cannot_tell_apart(timed_data: StudyData):
    chosen = pick.choose(timed_data, pick.Wish(min_accuracy=90))
    assert chosen.number == 2
    assert "for timing cannot tell it from trial 3 and it is more accurate" in chosen.why
    assert "0.71 µs an image, 12.0 µs one alone" in chosen.why
    found = pick.result(timed_data, chosen)
    assert (found["sittings"], found["microseconds_1"]) == (3, pytest.approx(12.0))


def test_reports_say_microseconds_and_what_timing_cannot_tell(timed_data: StudyData):
    told = choice.timing_sentence(timed_data)
    html, markdown = study_page.render(timed_data), study_page.as_markdown(timed_data)
    assert told in html
    assert ">µs alone</th>" in html
    assert told in markdown.replace("\\", "")
    assert "| µs | µs alone |" in markdown
    found = json.loads(text.as_json(timed_data))
    assert found["ties"] == {"3": 2}
    assert found["timing"] == told
    frame = pd.read_csv(io.StringIO(text.as_csv(timed_data)))
    assert [*frame["microseconds_1"]] == pytest.approx([12.0] * 4)
    assert [*frame["sittings"]] == [3] * 4
    front = result(timed_data, report=None)["front"]
    assert [(row["sittings"], row["microseconds_1"]) for row in front] == [(3, pytest.approx(12.0))] * 3
    assert "0.71 µs an image, 12.0 µs one alone" in layers.hover(records(timed_data.trials)[2])
    assert "over 3 sittings" in one_trial.card(timed_data, 2)
    assert "12.0 µs one alone" in one_trial.card(timed_data, 2)
    assert ("time", "0.71 µs an image, 12.0 µs one alone") in one_trial.lines(one_trial.facts(timed_data, 2))


def test_ratios_of_replayed_graphs_say_that_the_cache_is_warm(timed_data: StudyData):
    there = dataclasses.replace(timed_data, environment=timed_data.environment | {"device": "cuda:0"})
    assert choice.timing_sentence(there).endswith("what fits of it and of the weights is in the GPU's L2 cache.")
    assert "L2" not in choice.timing_sentence(timed_data)


def test_an_old_study_says_that_its_intervals_are_of_one_sitting(make_trial: Any, gather):
    old = {key: value for key, value in dataclasses.asdict(timing(100.0)).items() if not key.endswith("_1")}
    found = gather([make_trial([0.9], 100.0, timing=old, timing_key="a")])
    row = records(found.trials)[0]
    assert (row["ratio_low"], row["ratio_high"], row["sittings"], bool(row["covers"])) == (99.9, 100.1, 1.0, False)
    assert "The ratio of 1 of 1 is of one sitting" in choice.timing_sentence(found)
    html = study_page.render(found)
    assert ">µs</th>" in html
    assert ">µs alone</th>" not in html


def test_counted_operations_are_ranked_as_they_stand(make_trial: Any, gather):
    trials = []
    for number, (accuracy, ratio) in enumerate([(0.9, 10.0), (0.8, 10.1)]):
        counted = dataclasses.asdict(Timing(ratio, ratio, ratio, 80, 8, 1, 0, "flops"))
        exact = {Attr.RATIO_LOW: ratio, Attr.RATIO_HIGH: ratio, Attr.TIMING: counted, Attr.TIMING_KEY: str(number)}
        trials.append(make_trial([accuracy], ratio, **exact))
    found = gather(trials, {"definition": {"cost": "flops"}})
    assert choice.timing_sentence(found) == ""
    assert choice.fastest(records(found.front))["number"] == 1
    assert ">µs</th>" not in study_page.render(found)
