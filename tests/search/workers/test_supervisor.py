"""The supervisor with real processes that are no workers: a shell stands where the interpreter would."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import torch
from helpers.processes import lives, until
from helpers.recording import Recorder
from optuna.trial import create_trial

from kdsearch.errors import RunError
from kdsearch.records import Attr, Progress
from kdsearch.search import plan as plans
from kdsearch.search.plan import Plan
from kdsearch.search.run_options import Options
from kdsearch.search.workers import slots, supervisor
from kdsearch.search.workers.supervisor import DEATHS_IN_A_ROW, Crew, environment, supervise
from kdsearch.system import machine

URL = "postgresql://ann:secret@db/kd"
SCORES = {Attr.ACCURACY: 0.5, Attr.TEST_ACCURACY: 0.5, Attr.RATIO: 2.0, Attr.BEST_EPOCH: 1, Attr.CONFIG: {"epochs": 1}}
DONE = create_trial(values=[0.5, 2.0], user_attrs={Attr.CURVE: {"1": [0.5, 2.0]}, **SCORES})


@pytest.fixture
def own(plan: Plan) -> Plan:
    return dataclasses.replace(plan, url=URL, name="s", data_dir="/data")


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(directions=["maximize"] * 2)


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[[], list[list[str]]]]:
    """Lets workers be a shell that runs a line; gives what each was started with: its process, URL, threads, words."""
    monkeypatch.setattr(supervisor, "LOOK", 0.01)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    def become(line: str) -> Callable[[], list[list[str]]]:
        shell, log = tmp_path / "python", tmp_path / "started"
        shell.write_text(f'#!/bin/sh\necho "$$ $OPTUNA_STORAGE $OMP_NUM_THREADS $*" >> {log}\n{line}\n')
        shell.chmod(0o755)
        log.touch()
        monkeypatch.setattr(sys, "executable", str(shell))
        return lambda: [words.split() for words in log.read_text().splitlines()]

    return become


def test_a_worker_gets_its_storage_by_the_environment_and_its_share_of_the_cores(
    own: Plan, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(supervisor, "cores", lambda: 8)
    assert [environment(own, workers, 0)["OMP_NUM_THREADS"] for workers in (1, 3, 8, 20)] == ["8", "2", "1", "1"]
    found = environment(own, 2, 1)
    assert found["OPTUNA_STORAGE"] == URL
    assert found["PATH"] == os.environ["PATH"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environment(own, 3, 0)["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cuda", None, ["0", "1", "2", "0"]),
        ("auto", "5,GPU-a,7", ["5", "GPU-a", "7", "5"]),
        ("cuda:0", "5,GPU-a,7", ["5,GPU-a,7"] * 4),
        ("cuda:2", "5,GPU-a,7", ["5,GPU-a,7"] * 4),  # the user chose one
        ("cpu", "5,GPU-a,7", ["5,GPU-a,7"] * 4),
    ],
)
def test_each_worker_has_one_gpu_where_there_are_several(
    own: Plan, monkeypatch: pytest.MonkeyPatch, device: str, visible: str | None, expected: list[str]
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = machine.resolve_device(device)
    there = dataclasses.replace(own, device=chosen, any_gpu=plans._names_none(device, chosen))
    assert [environment(there, 4, index)["CUDA_VISIBLE_DEVICES"] for index in range(4)] == expected


@pytest.mark.parametrize(("any_gpu", "expected"), [(True, "--device=cuda"), (False, "--device=cuda:0")])
def test_a_worker_is_told_the_gpu_that_the_user_named(
    own: Plan, workers, monkeypatch: pytest.MonkeyPatch, any_gpu: bool, expected: str
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    started = workers("exit 0")
    crew = Crew(dataclasses.replace(own, device=torch.device("cuda:0"), any_gpu=any_gpu), 1, lambda: None)
    crew.start_all()
    until(lambda: bool(started()), 10)
    crew.stop()
    assert expected in started()[0]


def test_workers_on_a_gpu_share_the_cores_too(own: Plan, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(supervisor, "cores", lambda: 16)
    there = dataclasses.replace(own, device=torch.device("cuda:0"))
    assert environment(there, 8, 0)["OMP_NUM_THREADS"] == "2"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system ties no process to cores")
def test_cores_are_those_that_the_process_may_use():
    before = os.sched_getaffinity(0)
    assert supervisor.cores() == len(before)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert supervisor.cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_workers_start_with_all_that_they_need_each_in_a_session_of_its_own(own: Plan, workers):
    started = workers("exec sleep 60")
    crew = Crew(own, 2, lambda: 3.5)
    crew.start_all()
    try:
        until(lambda: len(started()) == 2, 10)
        for process, url, threads, *words in started():
            assert (url, threads) == (URL, "3")
            assert words[:4] == ["-m", "kdsearch", "worker", "--name=s"]
            assert set(words[4:]) == {
                "--device=cpu", f"--supervisor={os.getpid()}", "--data-dir=/data", "--timeout=3.5"
            }  # fmt: skip
            assert os.getsid(int(process)) == int(process)
        assert crew.running
        assert crew.ended() == []
    finally:
        crew.stop()
    assert not crew.running


def test_who_does_not_end_in_time_is_killed(own: Plan, workers, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor, "PARTING", 0.2)
    started = workers('trap "" TERM; echo deaf > "$0.deaf"; while :; do sleep 0.05; done')
    crew = Crew(own, 1, lambda: None)
    crew.start_all()
    until(Path(sys.executable + ".deaf").exists, 10)
    crew.stop()
    ((process, *_),) = started()
    until(lambda: not lives(int(process)), 5)
    assert crew.ended() == [(0, supervisor.Ended(int(process), -9, "it said nothing"))]


def test_a_worker_that_is_killed_is_named_and_another_one_takes_its_place(own: Plan, workers, study: optuna.Study):
    started = workers('mkdir "$0.first" 2>/dev/null && kill -9 $$; exit 0')
    told = Recorder()
    supervise(study, own, Options(trials=1), workers=1, progress=told)
    first, second = (words[0] for words in started())
    assert told.warnings == [f"worker {first} died (SIGKILL); another one takes its place"]
    assert not lives(int(second))


def test_a_worker_that_dies_when_all_is_done_has_no_successor(own: Plan, workers, study: optuna.Study):
    study.add_trial(DONE)
    started = workers("echo a crash at the exit >&2; exit 1")
    told = Recorder()
    supervise(study, own, Options(trials=1), workers=2, progress=told)
    assert len(started()) == 2
    assert told.warnings == []


def test_a_workers_own_word_that_it_cannot_go_on_ends_the_run(own: Plan, workers, study: optuna.Study):
    started = workers('echo "kdsearch: error: the data must be the same" >&2; exit 1')
    with pytest.raises(RunError, match=r"^a worker cannot go on: the data must be the same$"):
        supervise(study, own, Options(trials=1), workers=1, progress=Progress())
    assert len(started()) == 1


BROKEN = "kdsearch: error: the GPU must go on working (got CUDA error: uncorrectable ECC error encountered); look at it"


def test_a_gpu_that_fails_twice_retires_its_worker_and_the_other_one_goes_on(own: Plan, workers, study: optuna.Study):
    """The first of the two workers to start is the one whose GPU fails; the other one's waits for that."""
    started = workers(f"""if mkdir "$0.good" 2>/dev/null; then exec sleep 60; fi; echo '{BROKEN}' >&2; exit 1""")
    told = Recorder()

    def between() -> None:
        if len(told.warnings) == 2:
            study.add_trial(DONE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervise(study, own, Options(trials=1), workers=2, progress=told, between=between)
    assert len(started()) == 3
    assert told.warnings[0].endswith("look at it); another one takes its place")
    assert told.warnings[1].endswith("look at it); its GPU failed again, so none takes its place")


def test_a_study_whose_workers_have_all_lost_their_gpus_ends_and_says_why(own: Plan, workers, study: optuna.Study):
    started = workers(f"echo '{BROKEN}' >&2; exit 1")
    with pytest.raises(
        RunError, match=r"^no worker is left: the GPU must go on working \(got CUDA error: uncorrectable"
    ):
        supervise(study, own, Options(trials=1), workers=2, progress=Recorder())
    assert len(started()) == 4


def test_workers_that_die_without_finishing_anything_end_the_run(own: Plan, workers, study: optuna.Study):
    started = workers("echo first; echo 'Segmentation fault' >&2; echo >&2; exit 3")
    told = Recorder()
    with pytest.raises(RunError, match=r"^1\d workers died and no trial was finished meanwhile; look at the system"):
        supervise(study, own, Options(trials=1), workers=2, progress=told)
    assert len(started()) >= DEATHS_IN_A_ROW * 2
    assert all("died (Segmentation fault)" in text for text in told.warnings)


def test_a_trial_that_is_finished_between_two_deaths_lets_the_run_go_on(own: Plan, workers, study: optuna.Study):
    started = workers("exit 3")
    told = Recorder()

    def between() -> None:
        if len(started()) < 2 * DEATHS_IN_A_ROW:
            study.add_trial(DONE)

    with pytest.raises(RunError, match=rf"^{DEATHS_IN_A_ROW} workers died"):
        supervise(study, own, Options(trials=10_000), workers=1, progress=told, between=between)
    assert len(started()) >= 3 * DEATHS_IN_A_ROW - 1
    assert all("died (it said nothing)" in text for text in told.warnings)


def test_an_interruption_leaves_no_worker(own: Plan, workers, study: optuna.Study):
    started = workers("exec sleep 60")

    def between() -> None:
        if len(started()) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervise(study, own, Options(trials=1), workers=2, progress=Progress(), between=between)
    assert not any(lives(int(words[0])) for words in started())


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RunError])
def test_what_an_interrupted_worker_could_not_hand_back_is_handed_back_for_it(study: optuna.Study, kind):
    trial = study.ask()
    trial.suggest_int("width", 1, 9)
    trial.set_user_attr(Attr.WORKER, slots.myself() | {"started": "another time"})
    mine = study.ask()
    mine.set_user_attr(Attr.WORKER, slots.myself())
    with pytest.raises(kind), supervisor._tidied(study, slots.Watch(), Recorder()):
        raise kind("x")
    states = [each.state.name for each in study.trials]
    assert states == (["FAIL", "RUNNING", "WAITING"] if kind is KeyboardInterrupt else ["RUNNING", "RUNNING"])
