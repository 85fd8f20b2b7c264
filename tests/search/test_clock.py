from __future__ import annotations

import optuna
import pytest

from kdsearch.records import Progress
from kdsearch.search import clock as clocks
from kdsearch.search.clock import WORK, Clock, TimedSampler, shares
from kdsearch.search.space import trial_parameters
from kdsearch.search.trial import Objective
from kdsearch.search.workshop import Workshop


@pytest.fixture
def tick(monkeypatch: pytest.MonkeyPatch):
    """A clock that is moved by hand."""
    now = [100.0]
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: now[0])

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
