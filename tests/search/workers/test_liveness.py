from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import optuna
import pytest

from kdsearch.records import Attr
from kdsearch.search.workers import liveness, slots
from kdsearch.search.workers.liveness import Watch, beating


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(directions=["maximize"] * 2)


def running(study: optuna.Study, worker: dict | None) -> int:
    trial_id = slots.claim(study, None)
    study._storage.set_trial_user_attr(trial_id, Attr.WORKER, worker)
    return trial_id


ELSEWHERE = {"host": "node7", "machine": "node7 another boot", "pid": os.getpid(), "started": 1}


def test_this_process_lives_and_a_dead_one_or_its_number_used_again_does_not():
    me = liveness.myself()
    assert not liveness.is_gone(me)
    assert liveness.is_gone(me | {"started": me["started"] - 1})
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    theirs = me | {"pid": child.pid, "started": liveness._started(child.pid)}
    assert not liveness.is_gone(theirs)
    child.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not liveness.is_gone(theirs) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert liveness.is_gone(theirs)  # though nobody has waited for it yet: a zombie runs nothing
    child.stdin.close()
    child.wait()
    assert liveness.is_gone(theirs)


def test_of_another_machine_the_system_tells_nothing():
    assert not liveness.is_gone(ELSEWHERE)
    assert not liveness.is_gone(None)


def test_a_dead_process_of_this_machine_is_noticed_at_once(study):
    running(study, liveness.myself())
    running(study, liveness.myself() | {"started": 1})
    found = Watch().abandoned(study.trials, 0.0)
    assert [(trial.number, reason) for trial, reason in found] == [
        (1, f"process {os.getpid()} on {liveness.platform.node()} died")
    ]


def test_a_worker_elsewhere_is_given_up_when_its_beat_stands_still(study):
    still, beats = running(study, ELSEWHERE), running(study, ELSEWHERE)
    watch, found = Watch(every=10, missed=3), []
    for look in range(12):
        study._storage.set_trial_user_attr(beats, Attr.BEAT, look)
        found.append([(t._trial_id, reason) for t, reason in watch.abandoned(study.trials, 5.0 * look)])
    assert found[:6] == [[]] * 6  # every second look is too early to count
    assert found[6] == [(still, "process " + str(os.getpid()) + " on node7 gave no sign for 30 s")]


def test_a_claim_without_a_worker_is_given_up_too(study):
    running(study, None)
    watch = Watch(every=1, missed=2)
    assert [len(watch.abandoned(study.trials, float(now))) for now in range(3)] == [0, 0, 1]


def test_a_storage_that_was_away_for_an_hour_is_no_missed_beat(study):
    running(study, ELSEWHERE)
    watch = Watch(every=10, missed=3)
    assert [watch.abandoned(study.trials, now) for now in (0.0, 3600.0, 7200.0)] == [[], [], []]


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_clock_that_jumps_fails_no_live_trial(study, monkeypatch, jump):
    """The system's clock, that of all which could be asked for it in here; the beat and the looks use neither."""
    beats, watch = running(study, ELSEWHERE), Watch(every=0.02, missed=3)
    shifted = time.time
    with beating(study, beats, every=0.005):
        for look in range(40):
            if look == 20:
                monkeypatch.setattr(time, "time", lambda: shifted() + jump)
            assert watch.abandoned(study.trials, time.monotonic()) == []
            time.sleep(0.02)
    assert study.trials[0].user_attrs[Attr.BEAT] > 10


def test_the_beat_ends_with_its_trial(study):
    trial_id = running(study, liveness.myself())
    with beating(study, trial_id, every=0.001):
        study._storage.set_trial_state_values(trial_id, optuna.trial.TrialState.FAIL)
        time.sleep(0.05)
    beat = study.trials[0].user_attrs.get(Attr.BEAT, 0)
    time.sleep(0.05)
    assert study.trials[0].user_attrs.get(Attr.BEAT, 0) == beat
