from __future__ import annotations

import math
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from kdsearch.errors import KdsearchError
from kdsearch.records import Attr, Progress
from kdsearch.search import budget
from kdsearch.search.budget import (
    WORK,
    Budget,
    Clock,
    TimedSampler,
    epochs_spent,
    finished_count,
    is_finished,
    shares,
)
from kdsearch.search.space import trial_parameters
from kdsearch.search.trial import Objective
from kdsearch.search.workshop import Workshop

COMPLETE, FAIL, PRUNED, RUNNING = TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING


def study_of(*trials: tuple[TrialState, int | None]) -> optuna.Study:
    """A study of trials with this state and so many epochs; None: no curve at all."""
    study = optuna.create_study(directions=["maximize"] * 2)
    for state, epochs in trials:
        curve = {} if epochs is None else {"0": [None, 9.0], **{str(i): [0.1, 9.0] for i in range(1, epochs + 1)}}
        values = [0.1, 9.0] if state == COMPLETE else None
        study.add_trial(create_trial(state=state, values=values, user_attrs={Attr.CURVE: curve}))
    return study


def test_trials_that_trained_for_no_epoch_do_not_count():
    study = study_of((PRUNED, 0), (PRUNED, 1), (PRUNED, None), (FAIL, 1), (RUNNING, 1), (COMPLETE, 2))
    assert [is_finished(t) for t in study.trials] == [False, True, False, False, False, True]
    assert finished_count(study.trials) == 2


def test_epochs_are_counted_whatever_became_of_the_trial():
    assert epochs_spent(study_of((PRUNED, 3), (FAIL, 2), (RUNNING, 11), (COMPLETE, 10), (PRUNED, 0)).trials) == 26


@pytest.mark.parametrize(
    ("given", "trials"),
    [({}, 50), ({"trials": 7}, 7), ({"epochs": 9}, None), ({"seconds": 0.5}, None), ({"trials": 7, "epochs": 9}, 7)],
)
def test_another_limit_lifts_the_usual_number_of_trials(given, trials):
    assert Budget(**given).trials == trials


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"trials": 0}, r"--trials must be at least 1 \(got 0\)"),
        ({"epochs": 0}, r"--epochs-budget must be at least 1 \(got 0\)"),
        ({"seconds": -0.1}, r"--timeout must be at least 0 \(got -0.1\)"),
        ({"seconds": math.nan}, r"--timeout must be at least 0 \(got nan\)"),
        ({"seconds": math.inf}, r"--timeout must be finite \(got inf\)"),
    ],
)
def test_a_limit_that_is_none_is_refused(given, line):
    with pytest.raises(KdsearchError, match=line):
        Budget(**given)


def test_whichever_limit_comes_first_ends_a_study():
    study = study_of((COMPLETE, 3), (PRUNED, 1), (FAIL, 2))
    assert not Budget(trials=3, epochs=7).over(study.trials)
    assert Budget(trials=2, epochs=7).over(study.trials)
    assert Budget(trials=3, epochs=6).over(study.trials)
    assert Budget(epochs=6).spent(study) == "the epochs budget was spent"
    assert Budget(trials=1).spent(study) is None  # enough trials cut none that runs


def test_seconds_count_from_the_start_of_the_run(monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(budget, "time", clock)
    study, limits = study_of(), Budget(seconds=5)
    clock.now = 1000.0
    assert not limits.over(study.trials)
    limits.start()
    clock.now = 1004.9
    assert limits.spent(study) is None
    clock.now = 1005.0
    assert limits.spent(study) == "the timeout had passed"
    assert limits.over(study.trials)


def test_a_running_trial_is_cut_and_an_anchor_is_not():
    study = study_of((COMPLETE, 3))
    trial = study.ask()
    assert Budget(epochs=4).cut(trial) is None
    assert Budget(epochs=3).cut(trial) == "the epochs budget was spent"
    trial.set_user_attr(Attr.ANCHOR, "m1")
    assert Budget(epochs=3).cut(trial) is None


def test_progress_is_in_trials_or_epochs_or_without_an_end():
    study = study_of((COMPLETE, 3), (FAIL, 1))
    assert Budget(trials=5, epochs=9).progress(study) == (1, 5, "trials")
    assert Budget(epochs=9, seconds=1).progress(study) == (4, 9, "epochs")
    assert Budget(seconds=1).progress(study) == (1, None, "trials")


@pytest.fixture
def tick(monkeypatch: pytest.MonkeyPatch):
    """A clock that is moved by hand."""
    now = [100.0]
    monkeypatch.setattr(budget.time, "perf_counter", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def test_each_second_counts_once_on_the_innermost_work(tick):
    clock = Clock()
    tick(5)  # before anything was started
    with clock.spent_on("storage and the rest"):
        tick(1)
        with clock.spent_on("training"):
            tick(10)
            with clock.spent_on("search"):
                tick(2)
            tick(20)
        tick(3)
    tick(50)
    with clock.spent_on("timing"):
        tick(4)
    assert clock.seconds == {
        "training": 30, "asking the teacher": 0, "scoring": 0, "timing": 4, "search": 2, "storage and the rest": 4
    }  # fmt: skip


def test_an_error_ends_what_it_was_spent_on(tick):
    clock = Clock()

    def failing() -> None:
        with clock.spent_on("training"):
            tick(1)
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    tick(9)
    with clock.spent_on("search"):
        tick(2)
    assert (clock.seconds["training"], clock.seconds["search"]) == (1, 2)


def test_seconds_can_be_moved(tick):
    clock = Clock()
    with clock.spent_on("training"):
        tick(10)
    clock.move(4, "training", "scoring")
    assert (clock.seconds["training"], clock.seconds["scoring"]) == (6, 4)


def test_shares_in_words_the_largest_first():
    assert shares({"training": 94.0, "search": 1.2, "timing": 4.8}) == "training 94 %, timing 5 %, search 1 %"
    assert shares({"training": 3.0, "search": 0.0}) == "training 100 %"
    assert shares(dict.fromkeys(WORK, 0.0)) == ""


def test_a_timed_sampler_draws_what_its_inner_one_draws_and_counts_it():
    drawn = []
    for timed in (False, True):
        clock, inner = Clock(), optuna.samplers.TPESampler(seed=3)
        study = optuna.create_study(sampler=TimedSampler(inner, clock) if timed else inner)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=15)
        drawn.append([trial.params for trial in study.trials])
        assert (clock.seconds["search"] > 0) == timed
    assert drawn[0] == drawn[1]


def test_a_trials_time_is_counted_by_kind(workshop: Workshop):
    clock = Clock()
    config = {"width": 50, "loss_weight": 0.5, "temperature": 4.0, "epochs": 2, "batch_size": 32}
    study = optuna.create_study(directions=["maximize"] * 2, pruner=optuna.pruners.NopPruner())
    study.enqueue_trial(trial_parameters(config, workshop.spec.space))
    with clock.spent_on("storage and the rest"):
        study.optimize(Objective(workshop, seed=0, progress=Progress(), clock=clock), n_trials=1)
    assert all(seconds > 0 for seconds in clock.seconds.values())
    assert clock.seconds["training"] == pytest.approx(study.trials[0].user_attrs["train_seconds"], rel=0.2)
