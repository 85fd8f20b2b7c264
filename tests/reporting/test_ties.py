from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.trial import FrozenTrial

from kdsearch import sittings
from kdsearch.export import pick
from kdsearch.records import Attr, Timing
from kdsearch.reporting import choice, verdict
from kdsearch.reporting.collect import StudyData, collect, result
from kdsearch.reporting.figures import layers
from kdsearch.reporting.formatting import records
from kdsearch.reporting.pages import one_trial, study_page, text

URL = "sqlite:///x.db"


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
def timed_data(timed: optuna.Study) -> StudyData:
    return collect(timed, storage_url=URL)


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


def test_an_old_study_says_that_its_intervals_are_of_one_sitting(make_trial: Any, make_study: Any):
    old = {key: value for key, value in dataclasses.asdict(timing(100.0)).items() if not key.endswith("_1")}
    found = collect(make_study([make_trial([0.9], 100.0, timing=old, timing_key="a")]), storage_url=URL)
    row = records(found.trials)[0]
    assert (row["ratio_low"], row["ratio_high"], row["sittings"], bool(row["covers"])) == (99.9, 100.1, 1.0, False)
    assert "The ratio of 1 of 1 is of one sitting" in choice.timing_sentence(found)
    html = study_page.render(found)
    assert ">µs</th>" in html
    assert ">µs alone</th>" not in html


def test_counted_operations_are_ranked_as_they_stand(make_trial: Any, make_study: Any):
    trials = []
    for number, (accuracy, ratio) in enumerate([(0.9, 10.0), (0.8, 10.1)]):
        counted = dataclasses.asdict(Timing(ratio, ratio, ratio, 80, 8, 1, 0, "flops"))
        exact = {Attr.RATIO_LOW: ratio, Attr.RATIO_HIGH: ratio, Attr.TIMING: counted, Attr.TIMING_KEY: str(number)}
        trials.append(make_trial([accuracy], ratio, **exact))
    study = make_study(trials)
    study.set_user_attr("definition", {"cost": "flops"})
    found = collect(study, storage_url=URL)
    assert choice.timing_sentence(found) == ""
    assert choice.fastest(records(found.front))["number"] == 1
    assert ">µs</th>" not in study_page.render(found)
