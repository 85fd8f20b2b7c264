from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace
from typing import Literal

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from kdsearch import networks
from kdsearch.errors import StudyFileError
from kdsearch.measure import COSTS
from kdsearch.pruning.pruner import ParetoPruner, Verdict
from kdsearch.records import Attr, EpochRecord, Progress, Timing
from kdsearch.search import trial as objective
from kdsearch.search.plan import Plan
from kdsearch.search.space import trial_parameters
from kdsearch.search.trial import Best, Objective, known_timing
from kdsearch.search.workshop import Workshop, timing_key
from kdsearch.spec import Range
from kdsearch.system import machine

CONFIG = {"width": 50, "loss_weight": 0.5, "temperature": 4.0, "epochs": 2, "batch_size": 32}


REASON = {"step": 1, "at": 2, "forecast": 0.9, "trials": [0], "reason": "too little"}


class Scripted(ParetoPruner):
    """Says of trial and step what it was told to say."""

    def __init__(self, script: dict[tuple[int, int], Literal["prune", "stop"]]) -> None:
        super().__init__()
        self._script = script

    def verdict(self, study: optuna.Study, trial: FrozenTrial) -> Verdict:
        step = max(map(int, trial.user_attrs[Attr.CURVE]))
        action = self._script.get((trial.number, step))
        return Verdict("go") if action is None else Verdict(action, REASON)


def run(workshop: Workshop, *configs, pruner=None, seed=0) -> optuna.Study:
    """A study of these configurations."""
    study = optuna.create_study(directions=["maximize"] * 2, pruner=pruner or optuna.pruners.NopPruner())
    for config in configs:
        study.enqueue_trial(trial_parameters(config, workshop.spec.space))
    study.optimize(Objective(workshop, seed=seed, progress=Progress()), n_trials=len(configs))
    return study


def with_rate(workshop: Workshop, lr: float) -> Workshop:
    """The same workshop with another learning rate of the students."""
    recipe = workshop.spec.student.recipe.model_copy(update={"lr": lr})
    spec = workshop.spec.model_copy(update={"student": workshop.spec.student.model_copy(update={"recipe": recipe})})
    return Workshop(spec, workshop.split, workshop.teacher, "flops")


def test_a_trial_stores_what_the_report_needs(workshop: Workshop):
    trial = run(workshop, CONFIG).trials[0]
    found = trial.user_attrs
    student = networks.student_family("mlp").build({"width": 50}, (1, 8, 8), 10)
    assert found[Attr.CONFIG] == CONFIG
    assert found[Attr.PARAMETERS] == networks.parameters(student)
    assert found[Attr.BYTES] == networks.size_bytes(student)
    assert found[Attr.RATIO_LOW] == found[Attr.RATIO] == found[Attr.RATIO_HIGH]
    assert trial.values == [found[Attr.ACCURACY], found[Attr.RATIO]]
    assert len(found[Attr.LOSSES]) == 2
    assert found[Attr.TRAIN_SECONDS] > 0
    assert 0 <= found[Attr.TEST_ACCURACY] <= 1
    assert Attr.FAIL_REASON not in found


def test_the_ratio_is_known_before_the_first_epoch_and_the_best_epoch_is_the_trials_value(workshop: Workshop):
    found = run(workshop, CONFIG).trials[0].user_attrs
    curve = found[Attr.CURVE]
    assert curve["0"] == [None, found[Attr.RATIO]]
    assert list(curve) == ["0", "1", "2"]
    accuracies = [curve[str(epoch)][0] for epoch in (1, 2)]
    assert found[Attr.ACCURACY] == max(accuracies)
    assert found[Attr.BEST_EPOCH] == accuracies.index(max(accuracies)) + 1


def test_the_best_checkpoint_is_the_first_of_the_highest_accuracy():
    student, best = torch.nn.Linear(1, 1, bias=False), Best()
    for epoch, accuracy in enumerate([0.2, 0.7, 0.7, 0.3], 1):
        torch.nn.init.constant_(student.weight, float(epoch))
        best.see(EpochRecord(epoch, 0.0, accuracy, 0.0), student)
    assert (best.epoch, best.accuracy) == (2, 0.7)
    assert best.weights["weight"].item() == 2


def test_the_test_accuracy_is_of_the_epoch_that_validation_chose(workshop: Workshop):
    # rates this large make accuracy go up and down
    wild = with_rate(workshop, 0.3)
    config = {**CONFIG, "epochs": 2, "batch_size": 16}
    found = run(wild, config).trials[0].user_attrs
    student = wild.build(config, found[Attr.SEED])
    tests = [wild.test(student) for _ in wild.teach(student, config, found[Attr.SEED])]
    assert len(set(tests)) == 2
    assert found[Attr.TEST_ACCURACY] == tests[found[Attr.BEST_EPOCH] - 1]


@pytest.mark.slow
@pytest.mark.usefixtures("few_pairs")
def test_equal_architectures_share_one_timing(workshop: Workshop):
    timed = Workshop(workshop.spec, workshop.split, workshop.teacher, "latency")
    study = run(timed, CONFIG, {**CONFIG, "epochs": 1, "loss_weight": 0.0}, {**CONFIG, "width": 8})
    first, same, other = (trial.user_attrs for trial in study.trials)
    assert first[Attr.TIMING] == same[Attr.TIMING]
    assert first[Attr.RATIO] == same[Attr.RATIO] != other[Attr.RATIO]
    assert first[Attr.RATIO_LOW] <= first[Attr.RATIO] <= first[Attr.RATIO_HIGH]
    assert first[Attr.TIMING]["kind"] == "latency"


@pytest.mark.parametrize(
    "figures", [None, (2.0, 3.0, 4.0), (2.0, 0.0, 4.0), (math.nan, 1.0, 4.0), (2.0, 1.0, math.inf)]
)
def test_a_cost_that_returns_no_ratio_is_refused(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, figures: tuple[float, float, float] | None
):
    returned = figures and Timing(*figures, 1.0, 1.0, batch=1, pairs=1, kind="theirs")
    monkeypatch.setitem(COSTS, "theirs", "theirs:measure")
    monkeypatch.setitem(sys.modules, "theirs", SimpleNamespace(measure=lambda *_: returned))
    theirs = Workshop(workshop.spec, workshop.split, workshop.teacher, "theirs")
    with pytest.raises(StudyFileError, match="the cost theirs must return a Timing with 0 < low <= ratio <= high"):
        theirs.measure(nn.Flatten())


def test_a_timing_key_says_on_cuda_what_float32_is_and_on_a_cpu_what_it_always_said(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(machine, "device_model", lambda device: str(device))
    spec = workshop.spec

    def key(device: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(timing_key(CONFIG, spec, "latency", torch.device(device)))
        return found

    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    usual = key("cuda")
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        exact = key("cuda")
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    assert usual["cudnn"] == 91002
    assert (usual["precision"], exact["precision"]) == (
        "float32 (convolutions tf32, products ieee)", "float32 (convolutions ieee, products ieee)",
    )  # fmt: skip
    assert set(key("cpu")) == {"architecture", "cost", "device", "threads", "batch", "precision", "torch"}
    assert key("cpu")["precision"] == "float32"


def test_the_timing_that_was_written_first_stands(workshop: Workshop):
    study = run(workshop, CONFIG)
    key = study.trials[0].user_attrs[Attr.TIMING_KEY]
    assert key == workshop.timing_key({**CONFIG, "epochs": 1, "batch_size": 16})
    assert known_timing(study, key).ratio == study.trials[0].user_attrs[Attr.RATIO]
    assert known_timing(study, workshop.timing_key({**CONFIG, "width": 51})) is None
    timed = Workshop(workshop.spec, workshop.split, workshop.teacher, "latency")
    assert known_timing(study, timed.timing_key(CONFIG)) is None


def test_a_student_of_weight_zero_never_hears_of_the_teacher(workshop: Workshop):
    config = {key: value for key, value in CONFIG.items() if key != "temperature"} | {"loss_weight": 0.0}

    class Deaf(Workshop):
        @property
        def answers(self):
            raise AssertionError("the teacher was asked")

    deaf = Deaf(workshop.spec, workshop.split, workshop.teacher, "flops")
    with pytest.raises(AssertionError, match="was asked"):
        run(deaf, CONFIG)
    assert run(deaf, config).trials[0].values == run(workshop, config).trials[0].values


def test_without_a_seed_trials_differ(workshop: Workshop):
    seeds = {run(workshop, {**CONFIG, "epochs": 1}, seed=None).trials[0].user_attrs[Attr.SEED] for _ in range(2)}
    assert len(seeds) == 2


def test_a_hopeless_trial_is_pruned_with_its_scores(workshop: Workshop):
    study = run(workshop, CONFIG, CONFIG, pruner=Scripted({(1, 1): "prune"}))
    found = study.trials[1].user_attrs
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert study.trials[1].values is None
    assert found[Attr.PRUNED_BY] == REASON
    assert Attr.STOPPED_AT not in found
    assert list(found[Attr.CURVE]) == ["0", "1"]
    assert found[Attr.ACCURACY] == found[Attr.CURVE]["1"][0]
    assert found[Attr.BEST_EPOCH] == 1
    assert 0 <= found[Attr.TEST_ACCURACY] <= 1


def test_a_trial_that_would_add_nothing_more_is_complete_with_its_best_checkpoint(workshop: Workshop):
    (trial,) = run(workshop, CONFIG, pruner=Scripted({(0, 1): "stop"})).trials
    found = trial.user_attrs
    assert trial.state == TrialState.COMPLETE
    assert trial.values == found[Attr.CURVE]["1"] == [found[Attr.ACCURACY], found[Attr.RATIO]]
    assert list(found[Attr.CURVE]) == ["0", "1"]
    assert found[Attr.STOPPED_BY] == REASON
    assert found[Attr.STOPPED_AT] == REASON["step"]
    assert Attr.PRUNED_BY not in found


def test_a_trial_refused_before_its_first_epoch_has_a_ratio_and_no_accuracy(workshop: Workshop):
    (trial,) = run(workshop, CONFIG, pruner=Scripted({(0, 0): "prune"})).trials
    found = trial.user_attrs
    assert trial.state == TrialState.PRUNED
    assert found[Attr.CURVE] == {"0": [None, found[Attr.RATIO]]}
    assert found[Attr.PRUNED_BY] == REASON
    assert not {Attr.ACCURACY, Attr.TEST_ACCURACY, Attr.LOSSES} & set(found)


def test_a_study_whose_pruner_refuses_everything_trains_one_now_and_then(workshop: Workshop, monkeypatch):
    monkeypatch.setattr(objective, "MAX_REFUSED_IN_A_ROW", 2)
    always = Scripted({(number, 0): "prune" for number in range(5)})
    study = run(workshop, *[{**CONFIG, "epochs": 1}] * 5, pruner=always)
    assert [len(trial.user_attrs[Attr.CURVE]) for trial in study.trials] == [1, 1, 2, 1, 1]
    assert study.trials[2].state == TrialState.COMPLETE
    assert Attr.PRUNED_BY not in study.trials[2].user_attrs


def test_a_trial_is_cut_after_the_epoch_in_which_the_budget_was_spent(workshop: Workshop):
    study = optuna.create_study(directions=["maximize"] * 2, pruner=optuna.pruners.NopPruner())
    for epochs in (2, 1):
        study.enqueue_trial(trial_parameters({**CONFIG, "epochs": epochs}, workshop.spec.space))
    study.optimize(Objective(workshop, seed=0, progress=Progress(), cut=lambda trial: "no more"), n_trials=2)
    cut, whole = study.trials
    assert cut.state == whole.state == TrialState.COMPLETE
    assert cut.values == cut.user_attrs[Attr.CURVE]["1"]
    assert (cut.user_attrs[Attr.STOPPED_AT], cut.user_attrs[Attr.STOPPED_BY]) == (1, {"step": 1, "reason": "no more"})
    assert Attr.STOPPED_AT not in whole.user_attrs  # it was at its end


def test_a_trial_that_reached_its_last_epoch_is_complete(workshop: Workshop):
    last = Scripted({(0, 2): "prune", (1, 1): "stop"})
    study = run(workshop, CONFIG, {**CONFIG, "epochs": 1}, pruner=last)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert Attr.STOPPED_AT not in study.trials[1].user_attrs


def test_a_trial_may_learn_features(plan: Plan, workshop: Workshop):
    space = workshop.spec.space | {"feature_weight": Range(low=0.0, high=4.0)}
    featured = Workshop(workshop.spec.model_copy(update={"space": space}), plan.split, workshop.teacher, "flops")
    without, with_features = (
        run(featured, {**CONFIG, "feature_weight": weight}).trials[0].user_attrs for weight in (0.0, 2.0)
    )
    assert with_features[Attr.CONFIG]["feature_weight"] == 2.0
    assert without[Attr.LOSSES] == run(workshop, CONFIG).trials[0].user_attrs[Attr.LOSSES]
    assert with_features[Attr.LOSSES] != without[Attr.LOSSES]
    assert with_features[Attr.PARAMETERS] == without[Attr.PARAMETERS]


@pytest.mark.parametrize(("accuracy", "nothing"), [(0.89, True), (0.9, True), (0.91, False)])
def test_a_resumed_trial_that_is_no_better_than_its_complete_self_adds_nothing(accuracy: float, nothing: bool):
    study = optuna.create_study(directions=["maximize"] * 2)
    study.add_trial(optuna.trial.create_trial(values=[0.9, 2.0]))
    trial = study.ask()
    assert objective._adds_nothing(trial, study.trials[0], Best(accuracy)) == nothing
    assert (Attr.PRUNED_BY in trial.user_attrs) == nothing
