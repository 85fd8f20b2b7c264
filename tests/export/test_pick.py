from __future__ import annotations

import json
import subprocess
import sys

import optuna
import pytest
from helpers.commands import Run, refused
from helpers.elsewhere import confirmed
from optuna.trial import TrialState, create_trial

from kdsearch import storage
from kdsearch.errors import KdsearchError
from kdsearch.export.pick import Wish, choose, result
from kdsearch.records import Attr, StudyAttr
from kdsearch.reporting.collect import StudyData, collect

# validation, test, ratio, parameters: 0 to 3 on the front, 4 dominated but small, 5 pruned
ROWS = [(0.98, 0.97, 10.0, 900), (0.95, 0.96, 100.0, 500), (0.94, 0.93, 200.0, 400), (0.8, 0.8, 1000.0, 90),
        (0.9, 0.99, 50.0, 300), (0.99, 0.99, 5000.0, 10)]  # fmt: skip


@pytest.fixture
def filled(url: str) -> str:
    study = optuna.create_study(storage=storage.open_storage(url), study_name="s", directions=["maximize"] * 2)
    study.set_user_attr(StudyAttr.DEFINITION, {})
    for number, (accuracy, test, ratio, size) in enumerate(ROWS):
        attrs = {Attr.TEST_ACCURACY: test, Attr.RATIO: ratio, Attr.RATIO_LOW: 0.9 * ratio, Attr.RATIO_HIGH: 1.1 * ratio,
                 Attr.PARAMETERS: size, Attr.ACCURACY: accuracy, Attr.CONFIG: {"width": size}}  # fmt: skip
        state = TrialState.PRUNED if number == 5 else TrialState.COMPLETE
        values = None if number == 5 else [accuracy, ratio]
        study.add_trial(create_trial(state=state, values=values, user_attrs=attrs))
    return url


@pytest.fixture
def data(filled: str) -> StudyData:
    return collect(storage.load_study(storage.open_storage(filled), "s"), storage_url=filled)


@pytest.mark.parametrize(
    ("wish", "number"),
    [
        (Wish(min_accuracy=94), 2),  # the fastest of those, and 0.94 is 94 %
        (Wish(min_accuracy=94.1), 1),
        (Wish(min_ratio=60), 1),  # the most accurate by validation: trial 4's test accuracy does not count
        (Wish(max_parameters=450), 2),
        (Wish(max_parameters=350), 4),  # dominated, but not by one so small
        (Wish(min_accuracy=85, max_parameters=350), 4),
        (Wish(min_accuracy=90, min_ratio=60), 2),
        (Wish(knee=True), 2),
        (Wish(knee=True, min_accuracy=95), 0),
    ],
)
def test_the_choice_fulfils_the_wish(data: StudyData, wish: Wish, number: int):
    choice = choose(data, wish)
    assert choice.number == number
    assert choice.why.startswith(f"Trial {number} with ")
    assert ("others dominate" in choice.why) == (number == 4)


def test_what_nothing_fulfils_names_the_nearest(data: StudyData):
    with pytest.raises(KdsearchError, match=r"no trial has at least 96 % .* ratio of at least 99 .*nearest: trial 1"):
        choose(data, Wish(min_accuracy=96, min_ratio=99))
    with pytest.raises(KdsearchError, match=r"at most 50 parameters.*nearest: trial 3"):
        choose(data, Wish(max_parameters=50))


def test_the_command_prints_the_sentence_and_json(kdsearch: Run, filled: str):
    said = kdsearch("pick", "--min-accuracy", "94.1", "--storage", filled)
    assert said.out == (
        "Trial 1 with 95.00 % validation accuracy, 96.00 % test accuracy, ratio 100 (90.0 to 110) and 500 parameters "
        "is the fastest of the 2 with at least 94.1 % validation accuracy.\n"
    )
    found = json.loads(kdsearch("pick", "--knee", "--storage", filled, "--json").out)
    assert found["trial"] == 2
    assert found["params"] == {"width": 400}
    assert found["test_accuracy"] == 0.93


def test_the_commands_errors(kdsearch: Run, filled: str):
    assert "--knee" in refused(kdsearch("pick", "--storage", filled), "--within needs test accuracies")
    refused(kdsearch("pick", "--knee", "--within", "1", "--storage", filled), "exclude each other")
    refused(kdsearch("pick", "--within", "0", "--storage", filled), "points of accuracy, above 0")
    share = refused(kdsearch("pick", "--min-accuracy", "0.9", "--storage", filled), "in percent", "97.5")
    assert "(got 0.9)" in share
    far = refused(kdsearch("pick", "--min-ratio", "1e9", "--storage", filled), "ask for less, or search on")
    assert far.startswith(
        "no trial has a ratio of at least 1e+09 (got nearest: trial 3 with 80.00 % validation accuracy"
    )


def test_the_default_is_the_fastest_shown_to_be_near_the_teacher(kdsearch: Run, filled: str):
    study = storage.load_study(storage.open_storage(filled), "s")
    study.set_user_attr(StudyAttr.TEACHER, {"accuracy": 0.97, "validation_accuracy": 0.975})
    short = refused(kdsearch("pick", "--storage", filled), "No student is shown to be within 1 point", "raise --within")
    assert "nearest is trial 0" in short
    found = json.loads(kdsearch("pick", "--within", "6", "--storage", filled, "--json").out)
    assert (found["trial"], found["paired"], found["seeds"]) == (1, False, 0)
    assert found["below_teacher"] == pytest.approx(0.01)
    assert 0.01 < found["below_bound"] <= 0.06
    assert "The test set bounds each, the fastest first; it was looked at for 2 of them" in found["why"]
    small = json.loads(kdsearch("pick", "--within", "50", "--max-parameters", "350", "--storage", filled, "--json").out)
    assert small["trial"] == 3


def test_the_fastest_and_its_figures_are_by_the_confirmed_ratios(filled: str):
    study = storage.load_study(storage.open_storage(filled), "s")
    study.set_user_attr(StudyAttr.TEACHER, {"accuracy": 0.97, "validation_accuracy": 0.975})
    for trial, ratio in ((1, 100.0), (2, 60.0)):  # in the search trial 2 was the faster
        study.set_user_attr(f"{StudyAttr.CONFIRMED}{trial}", confirmed(trial, [0.965] * 3, [ratio] * 3))
    data = collect(study, storage_url=filled)
    choice = choose(data, Wish(within=6))
    assert choice.number == 1
    study.set_user_attr(f"{StudyAttr.CONFIRMED}2", confirmed(2, [0.965] * 3, [160.0] * 3))
    found = result(data := collect(study, storage_url=filled), choose(data, Wish(within=6)))
    assert (found["trial"], found["test_accuracy"], found["ratio"]) == (2, pytest.approx(0.965), pytest.approx(160.0))
    assert found["test_accuracy"] + found["below_teacher"] == pytest.approx(0.97)


def test_a_study_without_a_complete_trial(url: str, kdsearch: Run):
    optuna.create_study(storage=storage.open_storage(url), study_name="s", directions=["maximize"] * 2)
    said = refused(kdsearch("pick", "--knee", "--storage", url))
    assert said == "a choice needs a complete trial (got s); run `kdsearch optimize` with more trials"


@pytest.mark.slow
def test_picking_needs_no_torch():
    code = "import sys, kdsearch.export.pick, kdsearch.reporting.collect; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
