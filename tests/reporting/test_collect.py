from __future__ import annotations

import json
import math

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from kdsearch import pareto
from kdsearch.errors import StorageError
from kdsearch.records import Attr
from kdsearch.reporting.collect import StudyData, configuration, result
from kdsearch.reporting.figures.layers import layers
from kdsearch.reporting.formatting import plain, records


def test_a_row_holds_what_the_trial_stored(data: StudyData):
    row = records(data.trials)[1]
    expected = {
        "number": 1, "state": "COMPLETE", "anchor": "m2", "accuracy": 0.96, "test_accuracy": 0.961,
        "ratio": 100.0, "ratio_low": 98.0, "ratio_high": 102.0, "parameters": 238_510, "bytes": 954_040,
        "best_epoch": 2, "epochs_run": 3, "train_seconds": 12.5, "on_front": False,
        "reason": "", "config.width": 300,
    }  # fmt: skip
    assert {key: row[key] for key in expected} == expected


def test_the_front_is_optunas(data: StudyData, typical: optuna.Study):
    assert set(data.front["number"]) == {trial.number for trial in typical.best_trials} == {0, 3, 4}
    assert [*data.front["number"]] == [4, 3, 0]


def test_equal_points_are_all_on_the_front(make_trial, gather):
    trials = [make_trial([0.9], 10.0), make_trial([0.9], 10.0), make_trial([0.9], 9.0)]
    assert [*gather(trials).trials["on_front"]] == [True, True, False]


def test_configurations_keep_their_types_and_gaps(data: StudyData):
    rows = records(data.trials)
    assert configuration(rows[4]) == {"blocks": [2, 2, 0, 0], "epochs": 10}
    assert configuration(rows[0]) == {"width": 50, "epochs": 3}
    assert type(rows[0]["config.width"]) is int


def test_parameters_stand_in_for_a_missing_configuration(gather):
    uniform = optuna.distributions.FloatDistribution(0, 10)
    trial = create_trial(values=[0.9, 5.0], params={"x": 2.5}, distributions={"x": uniform})
    row = records(gather([trial], bare=True).trials)[0]
    assert configuration(row) == {"x": 2.5}
    assert (row["accuracy"], row["ratio"]) == (0.9, 5.0)
    assert math.isnan(row["test_accuracy"])


def test_pruned_and_failed_trials_say_why(data: StudyData):
    pruned, failed = records(data.trials)[5:]
    assert pruned["accuracy"] == 0.91
    assert pruned["reason"] == ("at epoch 1: it could hope for 95.00 % by epoch 3, which would not beat trials 1, 3")
    assert pruned["why"]["trials"] == [1, 3]
    assert pruned["saved"] == 2
    assert failed["why"] is None
    assert failed["reason"] == "the loss must be finite <b>(got nan)</b>"
    assert math.isnan(failed["accuracy"])
    assert failed["epochs_run"] == 0


@pytest.mark.parametrize(("stored", "reason"), [("slow", "slow"), ({"step": 2}, "at epoch 2: stopped by the pruner")])
def test_a_pruning_reason_may_be_text_or_partial(make_trial, gather, stored, reason):
    trial = make_trial([0.5], 2.0, state=TrialState.PRUNED, pruned_by=stored)
    assert gather([trial]).trials["reason"][0] == reason


def test_a_trial_stopped_on_the_front_stays_complete_and_says_why(make_trial, gather):
    forecast = {"step": 2, "at": 3, "forecast": 0.71, "trials": [], "reason": "too little"}
    budget = {"step": 1, "reason": "the epochs budget was spent"}
    trials = [
        make_trial([0.6, 0.7], 2.0, stopped_by=forecast, stopped_at=2),
        make_trial([0.6], 3.0, stopped_by=budget, stopped_at=1),
        make_trial([0.6, 0.7, 0.7], 1.0),
    ]
    rows = records(gather(trials).trials)
    assert [row["state"] for row in rows] == ["COMPLETE"] * 3
    assert [row["reason"] for row in rows] == [
        "stopped at epoch 2: it could hope for 71.00 % by epoch 3, which would add too little for the epochs it takes",
        "stopped at epoch 1: the epochs budget was spent",
        "",
    ]
    assert [row["why"] for row in rows] == [forecast, budget, None]
    assert [row["saved"] for row in rows] == [1, 0, 0]  # a spent budget is no saving


def test_a_trial_refused_before_training_is_counted_apart_and_finished_nothing(make_trial, gather):
    refused = make_trial([0.5], 30.0, state=TrialState.PRUNED, pruned_by={"step": 0, "reason": "no use"})
    for name in (Attr.ACCURACY, Attr.TEST_ACCURACY, Attr.BEST_EPOCH, Attr.TRAIN_SECONDS):
        refused.user_attrs.pop(name)
    refused.user_attrs[Attr.CURVE] = {"0": [None, 30.0]}
    found = gather([make_trial([0.9], 10.0), refused])
    assert (found.counts["pruned"], found.counts["untrained"]) == (0, 1)
    assert [*found.history["trial"]] == [0]
    row = records(found.trials)[1]
    assert row["reason"] == "before its first epoch: no use"
    assert (row["saved"], row["epochs_run"]) == (0, 0)
    assert result(found, report=None)["trials"] == {"complete": 1, "pruned": 0, "failed": 0}
    assert all(layer["trial"].ne(1).all() for layer in layers(found).values())


def test_a_pruned_trial_without_an_accuracy_takes_its_curves_best(make_trial, gather):
    trial = make_trial([0.6, 0.7, 0.65], 2.0, state=TrialState.PRUNED)
    trial.user_attrs.pop(Attr.ACCURACY)
    trial.user_attrs.pop(Attr.BEST_EPOCH)
    row = records(gather([trial]).trials)[0]
    assert (row["accuracy"], row["best_epoch"]) == (0.7, 2)


def test_curves_are_ordered_by_number_not_by_text(make_trial, gather):
    trial = make_trial([i / 100 for i in range(1, 13)], 2.0)
    curves = gather([trial]).curves
    assert [*curves["epoch"]] == [*range(1, 13)]
    assert [*curves["accuracy"]] == [i / 100 for i in range(1, 13)]


def test_what_is_no_epoch_is_no_point_of_a_curve(make_trial, gather):
    trial = make_trial([0.6, 0.7], 2.0)
    trial.user_attrs[Attr.CURVE] = {**trial.user_attrs[Attr.CURVE], "²": [0.9, 0.1], "-3": [0.9, 0.1]}
    assert [*gather([trial]).curves["epoch"]] == [1, 2]


def test_anchors_compare_published_measured_and_best(data: StudyData):
    rows = {row["anchor"]: row for row in records(data.anchors)}
    assert [*rows] == [f"m{i}" for i in range(1, 10)]
    m2 = rows["m2"]
    assert m2["published_accuracy"] == pytest.approx(0.9724)
    assert (m2["published_ratio"], m2["published_seconds"]) == (138.753, 95.715)
    assert (m2["trial"], m2["accuracy"], m2["test_accuracy"], m2["ratio"]) == (1, 0.96, 0.961, 100.0)
    assert (m2["best_trial"], m2["best_ratio"]) == (3, 100.0)
    assert m2["gain"] == pytest.approx(0.969 - 0.961)
    assert rows["m1"]["best_trial"] == rows["m1"]["trial"] == 0
    assert math.isnan(rows["m3"]["trial"])
    assert math.isnan(rows["m3"]["gain"])


def test_the_best_is_chosen_by_validation_even_if_the_test_set_disagrees(make_trial, gather):
    trials = [make_trial([0.90], 9.0, test=0.93, anchor="m1"), make_trial([0.92], 9.0, test=0.91)]
    row = records(gather(trials).anchors)[0]
    assert row["best_trial"] == 1
    assert row["gain"] == pytest.approx(-0.02)


def test_an_anchor_outside_the_study_file_is_kept(make_trial, gather):
    rows = records(gather([make_trial([0.9], 9.0, anchor="x1")], bare=True).anchors)
    assert [(row["anchor"], row["trial"]) for row in rows] == [("x1", 0)]
    assert math.isnan(rows[0]["published_accuracy"])


def test_hypervolume_is_that_of_all_complete_trials_and_grows_with_them(data: StudyData):
    points = [(t["accuracy"], t["ratio"]) for t in records(data.trials) if t["state"] == "COMPLETE"]
    assert data.hypervolume == pytest.approx(pareto.study_hypervolume(points, 0.76))
    steps = [*data.history["hypervolume"]]
    expected = [pareto.study_hypervolume(points[:n], 0.76) for n in (1, 2, 3, 4, 5, 5)]
    assert steps == pytest.approx(expected)
    assert [*data.history["trial"]] == [0, 1, 2, 3, 4, 5]


def test_history_goes_by_the_time_of_finishing(make_trial, make_study, gather):
    study = make_study([make_trial([0.9], 10.0), make_trial([0.8], 20.0)])
    late = study.get_trials(deepcopy=False)[0]
    late.datetime_complete = late.datetime_complete.replace(year=2027)
    assert [*gather(study).history["trial"]] == [1, 0]


def test_without_classes_there_is_no_hypervolume(make_trial, gather):
    found = gather([make_trial([0.9], 10.0)], bare=True)
    assert found.hypervolume is None
    assert found.teacher is None
    assert found.dataset is None


def test_counts_and_names(data: StudyData):
    assert data.counts == {"complete": 5, "pruned": 1, "failed": 1, "running": 0, "waiting": 0, "untrained": 0}
    assert (data.name, data.dataset, data.cost) == ("mnist", "mnist", "latency")
    assert data.storage == "postgresql://ann:***@db/kd"


def test_a_study_of_other_objectives_is_refused(gather):
    study = optuna.create_study(directions=["maximize", "minimize"], study_name="other")
    with pytest.raises(StorageError, match=r"two maximised objectives.*other with maximize, minimize"):
        gather(study)


def test_a_study_file_of_another_version_costs_the_anchors_only(make_trial, gather):
    found = gather([make_trial([0.9], 10.0)], {"study_file": {"data": {"name": "mnist"}, "unheard_of": 1}})
    assert found.anchors.empty
    assert len(found.front) == 1


def test_result_is_the_contract(data: StudyData):
    contract = result(data, report="reports/mnist.html")
    assert [*contract] == [
        "study", "storage", "dataset", "trials", "front", "hypervolume", "teacher", "report"
    ]  # fmt: skip
    assert contract["trials"] == {"complete": 5, "pruned": 1, "failed": 1}
    assert contract["teacher"] == {"accuracy": 0.97, "parameters": 27_433_034}
    assert contract["front"][0] == {
        "trial": 4, "accuracy": 0.98, "test_accuracy": 0.978, "ratio": 20.0, "ratio_low": 19.6,
        "ratio_high": 20.4, "sittings": None, "microseconds": None, "microseconds_1": None,
        "best_epoch": 2, "params": {"blocks": [2, 2, 0, 0], "epochs": 10}, "anchor": None,
    }  # fmt: skip
    assert [member["ratio"] for member in contract["front"]] == [20.0, 100.0, 300.0]
    assert contract["front"][2]["anchor"] == "m1"
    assert json.loads(json.dumps(contract, allow_nan=False)) == contract


def test_result_without_trials_is_strict_json(gather):
    contract = result(gather([], bare=True), report=None)
    assert json.loads(json.dumps(contract, allow_nan=False)) == contract
    assert contract["front"] == []
    assert contract["teacher"] is contract["hypervolume"] is contract["report"] is None


def test_plain_unwraps_and_drops_what_json_lacks():
    import numpy as np

    value = {"a": np.int64(3), "b": float("nan"), "c": (np.float32(0.5), math.inf), 4: None, "d": True}
    assert plain(value) == {"a": 3, "b": None, "c": [0.5, None], "4": None, "d": True}
