from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from helpers.recording import Recorder

from kdsearch import storage
from kdsearch.search import study
from kdsearch.search.plan import Plan
from kdsearch.search.run_options import Options
from kdsearch.search.workers import live_view, slots
from kdsearch.search.workers.live_view import LEASE, Lease, Live, kept

ELSEWHERE = {"host": "node7", "machine": "node7 another boot", "pid": 1, "started": 1}


@pytest.fixture
def shared(url: str) -> list[optuna.Study]:
    """One study as two processes have it open."""
    optuna.create_study(study_name="s", storage=storage.open_storage(url), directions=["maximize"] * 2)
    return [storage.load_study(storage.open_storage(url), "s") for _ in range(2)]


def test_one_of_two_keeps_the_view_until_it_gives_it_away(shared):
    first, second = map(Lease, shared)
    assert first.mine()
    assert not second.mine()
    assert first.mine()
    first.release()
    assert second.mine()
    assert not first.mine()


def test_who_counts_up_keeps_it_and_who_stands_still_loses_it(shared):
    first, second = (Lease(each, missed=2) for each in shared)
    assert first.mine()
    for _ in range(5):
        assert not second.mine()
        assert first.mine()
    assert [second.mine() for _ in range(3)] == [False, False, True]
    assert not first.mine()  # which sees so at its next look


def test_of_a_dead_process_of_this_machine_it_is_taken_at_once(shared):
    dead = slots.myself() | {"started": 1}
    shared[0]._storage.set_study_system_attr(0, LEASE, {"name": "x", "count": 1, "worker": dead})
    assert Lease(shared[1]).mine()
    shared[0]._storage.set_study_system_attr(0, LEASE, {"name": "y", "count": 1, "worker": ELSEWHERE})
    assert not Lease(shared[1]).mine()


def test_refreshes_only_when_due_and_when_trials_ended(shared, monkeypatch):
    now, written = [100.0], []
    monkeypatch.setattr(live_view.time, "monotonic", lambda: now[0])
    view = Live(shared[0], lambda study, over: written.append(over), Recorder(), every=10)

    def after(seconds: float, trials: int) -> int:
        now[0] += seconds
        for _ in range(trials):
            shared[1].add_trial(optuna.trial.create_trial(values=[0.5, 2.0]))
        view.look()
        return len(written)

    assert after(0, 0) == 1  # at the start
    assert after(9, 3) == 1  # not due
    assert after(1, 0) == 2
    assert after(11, 0) == 2  # nothing ended since
    assert after(11, 1) == 3
    view.end()
    assert written == [False, False, False, True]


def test_a_slow_storage_is_refreshed_more_rarely(shared, monkeypatch):
    now, written = [100.0], []
    monkeypatch.setattr(live_view.time, "monotonic", lambda: now[0])

    def publish(study: optuna.Study, over: bool) -> None:
        written.append(over)
        now[0] += 2.0

    view = Live(shared[0], publish, Recorder(), every=10)
    view.look()
    shared[1].add_trial(optuna.trial.create_trial(values=[0.5, 2.0]))
    now[0] += 199
    view.look()
    assert len(written) == 1
    now[0] += 2
    view.look()
    assert len(written) == 2


def test_a_storage_that_refuses_is_warned_of_once_and_ends_nothing(shared, monkeypatch):
    told = Recorder()
    now = [100.0]
    monkeypatch.setattr(live_view.time, "monotonic", lambda: now[0])

    def refuse(study: optuna.Study, over: bool) -> None:
        raise optuna.exceptions.StorageInternalError("the disk is full")

    with kept(shared[0], refuse, told) as between:
        for _ in range(5):
            now[0] += 1000
            between()
    assert len(told.warnings) == 1
    assert "the disk is full" in told.warnings[0]


def test_an_interruption_goes_through(shared):
    def stop(study: optuna.Study, over: bool) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Live(shared[0], stop, Recorder()).look()


@pytest.mark.slow
def test_a_study_ends_as_it_would_without_a_view_that_fails(plan: Plan, tmp_path: Path):
    import dataclasses

    def refuse(study: optuna.Study, over: bool) -> None:
        raise OSError("no")

    told = Recorder()
    own = dataclasses.replace(plan, url=f"sqlite:///{tmp_path}/s.db")
    found = study.run_plan(own, Options(trials=3, seed=1), command=None, progress=told, publish=refuse)
    assert len(found.trials) == 3
    assert sum("live view" in text for text in told.warnings) == 1
