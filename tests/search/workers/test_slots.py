from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from kdsearch.records import HANDED_BACK, Attr
from kdsearch.search.workers import slots
from kdsearch.search.workers.slots import Watch, beating
from kdsearch.storage import load_study, open_storage

ELSEWHERE = {"host": "node7", "machine": "node7 another boot", "pid": os.getpid(), "started": 1}
WAITING, RUNNING, COMPLETE, FAIL = TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE, TrialState.FAIL


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(directions=["maximize"] * 2)


def finish(study: optuna.Study, trial_id: int) -> None:
    study._storage.set_trial_user_attr(trial_id, Attr.CURVE, {"1": [0.5, 1.0]})
    study._storage.set_trial_state_values(trial_id, COMPLETE, [0.5, 1.0])


def finished(study: optuna.Study) -> int:
    return sum(map(slots.is_finished, study.trials))


class Turns:
    """A study of one worker, each of whose calls of the storage waits for its turn."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self.over = False

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self._stands.release()
            self._go.acquire()
            return getattr(self._study, name)(*args, **options)

        return call if name in ("get_trials", "add_trial") else getattr(self._study, name)

    @property
    def _storage(self) -> Any:
        outer = self

        class Storage:
            def __getattr__(self, name: str) -> Any:
                def call(*args: Any, **options: Any) -> Any:
                    outer._stands.release()
                    outer._go.acquire()
                    return getattr(outer._study._storage, name)(*args, **options)

                return call

        return Storage()

    def run(self, wanted: int, fails: Iterator[bool]) -> None:
        """What a worker does, until it has nothing to claim."""
        while finished(self._study) < wanted:
            claimed = slots.claim(self, wanted)  # type: ignore[arg-type]
            if claimed is not None and next(fails):
                self._storage.set_trial_state_values(claimed, FAIL)
            elif claimed is not None:
                self._stands.release()
                self._go.acquire()
                finish(self._study, claimed)
        self.over = True
        self._stands.release()

    def step(self) -> None:
        """Lets one call happen, and waits until the worker stands before the next."""
        if not self.over:
            self._go.release()
            self._stands.acquire()


@pytest.mark.slow
@settings(max_examples=60)
@given(
    wanted=st.integers(1, 4),
    workers=st.integers(2, 4),
    order=st.lists(st.integers(0, 3), max_size=80),
    fails=st.lists(st.booleans(), max_size=6),
)
def test_however_claimers_are_interleaved_exactly_n_finish(wanted, workers, order, fails):
    study = optuna.create_study(directions=["maximize"] * 2)
    failures = iter(fails)
    crew = [Turns(study) for _ in range(workers)]
    each = iter(lambda: next(failures, False), None)
    threads = [threading.Thread(target=turns.run, args=(wanted, each), daemon=True) for turns in crew]
    for thread, turns in zip(threads, crew, strict=True):
        thread.start()
        turns._stands.acquire()
    for number in order:
        crew[number % workers].step()
        assert finished(study) <= wanted
    for _ in range(10_000):
        if all(turns.over for turns in crew):
            break
        for turns in crew:
            turns.step()
    assert finished(study) == wanted
    assert not study.get_trials(states=[RUNNING])


def test_only_the_first_n_live_slots_are_claimed(study):
    for _ in range(3):
        study.enqueue_trial({})
    first, second = slots.claim(study, 2), slots.claim(study, 2)
    assert slots.claim(study, 2) is None
    study._storage.set_trial_state_values(first, FAIL)
    third = slots.claim(study, 2)  # the first slot is no longer live, so the third is among the first two
    assert [study.trials[i].state for i in range(3)] == [FAIL, RUNNING, RUNNING]
    for trial_id in (second, third):
        finish(study, trial_id)
    assert slots.claim(study, 2) is None
    assert len(study.trials) == 3


def test_without_a_number_there_is_always_a_slot(study):
    assert [slots.claim(study, None) for _ in range(3)] == [t._trial_id for t in study.trials]


def test_a_handed_back_trial_is_enqueued_once_with_its_parameters_and_stays_an_anchor(study):
    study.enqueue_trial({"x": 0.25}, user_attrs={Attr.ANCHOR: "m1"})
    trial_id = slots.claim(study, 1)
    optuna.trial.Trial(study, trial_id).suggest_float("x", 0, 1)
    trial = study.trials[0]
    assert slots.hand_back(study, trial, "its worker died")
    assert not slots.hand_back(study, trial, "its worker died")
    assert study.trials[0].user_attrs[Attr.FAIL_REASON] == HANDED_BACK + "its worker died"
    assert len(study.trials) == 2
    retry = study.trials[1]
    assert (retry.state, retry.system_attrs["fixed_params"]) == (WAITING, {"x": 0.25})
    assert retry.user_attrs == {Attr.RETRY_OF: 0, Attr.ANCHOR: "m1"}
    assert slots.claim(study, 1) == retry._trial_id


def test_what_a_worker_stored_after_it_was_last_looked_at_is_enqueued_too(study):
    trial = optuna.trial.Trial(study, slots.claim(study, 1))
    trial.suggest_float("x", 0, 1)
    seen = study.get_trials(deepcopy=True)[0]
    trial.suggest_int("late", 1, 9)  # a statement that a killed worker had sent to its server
    assert slots.hand_back(study, seen, "its worker died")
    assert study.trials[1].system_attrs["fixed_params"] == trial.params
    assert set(trial.params) == {"x", "late"}


def test_work_that_waits_behind_the_first_n_moves_into_a_slot_without(study):
    study.enqueue_trial({})
    study.enqueue_trial({"x": 0.5}, user_attrs={Attr.RETRY_OF: 7})
    slots.claim(study, 1)
    first, second = study.trials
    assert (first.state, first.system_attrs["fixed_params"]) == (RUNNING, {"x": 0.5})
    assert first.user_attrs[Attr.RETRY_OF] == 7
    assert (second.state, second.user_attrs[Attr.FAIL_REASON]) == (FAIL, HANDED_BACK + "its work was moved to trial 0")


def test_the_copy_of_an_anchor_is_a_free_slot(study):
    for _ in range(2):
        study.enqueue_trial({"x": 0.5}, user_attrs={Attr.ANCHOR: "m1"})
    slots.claim(study, 2)
    slots.claim(study, 2)
    first, second = study.trials
    assert (first.user_attrs[Attr.ANCHOR], second.user_attrs[Attr.ANCHOR]) == ("m1", None)
    assert second.system_attrs["fixed_params"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_trial_is_claimed_once_by_threads_that_hurry(tmp_path: Path, kind: str):
    """On sqlite as Optuna opens it, two of them read that a trial waits, and both make it run."""
    url = f"sqlite:///{tmp_path}/s.db" if kind == "sqlite" else f"journal:{tmp_path}/s.log"
    study = optuna.create_study(storage=open_storage(url), study_name="s", directions=["maximize"] * 2)
    for _ in range(40):
        study.add_trial(optuna.trial.create_trial(state=WAITING))
    claimed: list[int] = []
    gate = threading.Barrier(4)

    def work(seed: int) -> None:
        own = load_study(open_storage(url), "s")
        order = random.Random(seed)
        gate.wait()
        while (trial_id := slots.claim(own, 40)) is not None:
            claimed.append(trial_id)
            if order.random() < 0.5:
                finish(own, trial_id)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == len(set(claimed)) == 40
    assert not any(trial.state == WAITING for trial in study.trials[:40])


def running(study: optuna.Study, worker: dict | None) -> int:
    trial_id = slots.claim(study, None)
    study._storage.set_trial_user_attr(trial_id, Attr.WORKER, worker)
    return trial_id


def test_this_process_lives_and_a_dead_one_or_its_number_used_again_does_not():
    me = slots.myself()
    assert not slots.is_gone(me)
    assert slots.is_gone(me | {"started": me["started"] - 1})
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    theirs = me | {"pid": child.pid, "started": slots._started(child.pid)}
    assert not slots.is_gone(theirs)
    child.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not slots.is_gone(theirs) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert slots.is_gone(theirs)  # though nobody has waited for it yet: a zombie runs nothing
    child.stdin.close()
    child.wait()
    assert slots.is_gone(theirs)


def test_of_another_machine_the_system_tells_nothing():
    assert not slots.is_gone(ELSEWHERE)
    assert not slots.is_gone(None)


def test_a_dead_process_of_this_machine_is_noticed_at_once(study):
    running(study, slots.myself())
    running(study, slots.myself() | {"started": 1})
    found = Watch().abandoned(study.trials, 0.0)
    assert [(trial.number, reason) for trial, reason in found] == [
        (1, f"process {os.getpid()} on {slots.platform.node()} died")
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
    trial_id = running(study, slots.myself())
    with beating(study, trial_id, every=0.001):
        study._storage.set_trial_state_values(trial_id, FAIL)
        time.sleep(0.05)
    beat = study.trials[0].user_attrs.get(Attr.BEAT, 0)
    time.sleep(0.05)
    assert study.trials[0].user_attrs.get(Attr.BEAT, 0) == beat
