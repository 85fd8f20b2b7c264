from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import optuna
import pytest
from optuna.trial import TrialState

import kdsearch
from kdsearch import sittings
from kdsearch.records import Attr, Progress, Timing
from kdsearch.search import retime
from kdsearch.search import workshop as workshops
from kdsearch.search.budget import Clock
from kdsearch.search.retime import Retimer
from kdsearch.search.space import trial_parameters
from kdsearch.search.trial import Objective
from kdsearch.search.workshop import Workshop
from kdsearch.storage import load_study, open_storage

WIDTHS = (8, 300)


class Timer:
    """In the place of the measured cost: a ratio by width, another one at each sitting; it counts who sat when."""

    def __init__(self) -> None:
        self.sat: list[int] = []
        self._effects: Iterator[float] = itertools.cycle([1.0, 1.1, 0.95])

    def __call__(self, teacher: object, student: object, batch: object) -> Timing:
        width = next(parameter for parameter in student.parameters()).shape[0]  # type: ignore[attr-defined]
        self.sat.append(width)
        ratio = 1000 / width * next(self._effects)
        return Timing(ratio, 0.99 * ratio, 1.01 * ratio, 1.0, 1 / ratio, 1000, 15, "latency", None, 1e-3, 1e-5)


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> Timer:
    found = Timer()
    monkeypatch.setattr(workshops, "cost", lambda name: found)
    monkeypatch.setattr(retime, "APART", 0.0)
    return found


@pytest.fixture
def timed(workshop: Workshop) -> Workshop:
    return Workshop(workshop.spec, workshop.split, workshop.teacher, "latency")


def run(timed: Workshop, *widths: int) -> optuna.Study:
    study = optuna.create_study(directions=["maximize"] * 2, pruner=optuna.pruners.NopPruner())
    for width in widths:
        config = {"width": width, "loss_weight": 0.0, "epochs": 1, "batch_size": 64}
        study.enqueue_trial(trial_parameters(config, timed.spec.space))
    study.optimize(Objective(timed, seed=0, progress=Progress()), n_trials=len(widths))
    assert len(study.best_trials) == len(widths), "all of them on the front"
    return study


def counts(study: optuna.Study) -> dict[int, int]:
    """Sittings by width."""
    found = sittings.by_architecture(study.trials, study.user_attrs)
    return {
        trial.user_attrs[Attr.CONFIG]["width"]: len(found[trial.user_attrs[Attr.TIMING_KEY]]) for trial in study.trials
    }


def test_at_the_end_each_member_of_the_front_sat_three_times_in_turn(timed: Workshop, timer: Timer):
    study = run(timed, *WIDTHS)
    before = [trial.values for trial in study.trials]
    clock = Clock()
    Retimer(study, timed, clock, Progress()).finish()
    assert counts(study) == dict.fromkeys(WIDTHS, sittings.LEAST)
    assert timer.sat == [*WIDTHS, *WIDTHS, *WIDTHS]  # never the same one twice in a row
    assert [trial.values for trial in study.trials] == before
    assert clock.seconds["timing"] > 0
    Retimer(study, timed, Clock(), Progress()).finish()
    assert len(timer.sat) == 3 * len(WIDTHS)


def test_between_trials_it_takes_no_more_than_its_share(timed: Workshop, timer: Timer, monkeypatch: pytest.MonkeyPatch):
    study, now = run(timed, *WIDTHS), 0.0
    monkeypatch.setattr(retime, "APART", 0.0)
    monkeypatch.setattr(retime, "APART_SHARE", 0.0)
    monkeypatch.setattr(retime.time, "monotonic", lambda: now)
    retimer = Retimer(study, timed, Clock(), Progress())

    def slow(*args: object) -> Timing:
        nonlocal now
        now += 1.0
        return timer(*args)

    monkeypatch.setattr(workshops, "cost", lambda name: slow)
    for _ in range(3):
        retimer.between()
    assert len(timer.sat) == len(WIDTHS) + 1
    now = 1.0 / retime.SHARE + 0.1
    retimer.between()
    retimer.between()
    assert len(timer.sat) == len(WIDTHS) + 2


def test_a_student_does_not_sit_again_at_once(timed: Workshop, timer: Timer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retime, "APART", 0.3)
    study = run(timed, 8)
    begin = time.monotonic()
    Retimer(study, timed, Clock(), Progress()).finish()
    assert counts(study) == {8: 3}
    assert time.monotonic() - begin > 0.3


def test_another_workers_sitting_counts(timed: Workshop, timer: Timer, monkeypatch: pytest.MonkeyPatch):
    study = run(timed, 8)
    trial = study.trials[0]
    key = trial.user_attrs[Attr.TIMING_KEY]
    retimer = Retimer(study, timed, Clock(), Progress())
    before = retimer._lacking()[key][1]
    sittings.add(study, key, Timing(125.0, 124.0, 126.0, 1.0, 1 / 125, 1000, 15, "latency"))  # while this one waits
    retimer._sit(key, trial, before)
    assert timer.sat == [8]
    assert counts(study) == {8: 2}


def test_a_timing_that_fails_costs_a_line_and_no_trial(timed: Workshop, timer: Timer, monkeypatch: pytest.MonkeyPatch):
    study, lines = run(timed, 8), []
    progress = Progress()
    monkeypatch.setattr(progress, "warning", lines.append)

    def broken(*args: object) -> Timing:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(workshops, "cost", lambda name: broken)
    Retimer(study, timed, Clock(), progress).finish()
    assert lines == ["trial 0 could not be timed again: out of memory"]
    assert counts(study) == {8: 1}


def test_counted_operations_are_not_timed_again(workshop: Workshop):
    study = run(Workshop(workshop.spec, workshop.split, workshop.teacher, "flops"), *WIDTHS)
    Retimer(study, workshop, Clock(), Progress()).finish()
    assert not [name for name in study.user_attrs if name.startswith("sittings:")]


def test_a_study_ends_with_its_sittings_and_the_same_command_makes_up_what_is_missing(study_file, url, timer: Timer):
    usual = {"train_size": 200, "max_epochs": 1, "device": "cpu", "cost": "latency", "seed": 0, "sampler": "random"}
    study = kdsearch.optimize(study=study_file, storage=url, trials=3, **usual)
    front = sittings.front(study.trials, sittings.ratios(sittings.by_architecture(study.trials, study.user_attrs)))
    by_key = sittings.by_architecture(study.trials, study.user_attrs)
    assert all(len(by_key[trial.user_attrs[Attr.TIMING_KEY]]) == 3 for trial in front)
    key = front[0].user_attrs[Attr.TIMING_KEY]
    study.set_user_attr(sittings.attribute(key), {})  # as if it had been interrupted, or is from an older version
    taken = len(timer.sat)
    kdsearch.optimize(study=study_file, storage=url, trials=3, **usual)
    again = load_study(open_storage(url), "digits")
    assert len(sittings.by_architecture(again.trials, again.user_attrs)[key]) == 3
    assert len(timer.sat) == taken + 2
    assert [trial.state for trial in again.trials if trial.state != TrialState.FAIL] == [t.state for t in study.trials]
