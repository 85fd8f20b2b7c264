from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from kdsearch.storage import retrying
from kdsearch.system import signals

AWAY = OperationalError("SELECT 1", {}, Exception("server closed the connection unexpectedly"))


@pytest.fixture
def impatient(tmp_path: Path) -> RDBStorage:
    """A file that says at once when it is locked."""
    return RDBStorage(f"sqlite:///{tmp_path}/s.db", engine_kwargs={"connect_args": {"timeout": 0}})


@pytest.fixture
def lock(tmp_path: Path, impatient: RDBStorage) -> Iterator[sqlite3.Connection]:
    """Another connection, which holds that file for itself until it is closed."""
    other = sqlite3.connect(tmp_path / "s.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    yield other
    other.close()


@pytest.fixture(autouse=True)
def _own_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """No signal of an earlier test is seen, and none of this one later: after one, patience is short."""
    monkeypatch.setattr(signals, "_state", signals._Signals())


def refusal(url: str, *statements: str) -> DBAPIError:
    """What a database says to these statements, of which it refuses one."""
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(sqlalchemy.text(statement))
    except DBAPIError as error:
        return error
    finally:
        engine.dispose()
    pytest.fail("nothing was refused")


def test_a_server_that_is_not_there_passes():
    pytest.importorskip("psycopg")
    error = refusal("postgresql+psycopg://ann@127.0.0.1:1/kd")
    assert retrying.passes(error)
    wrapped = StorageInternalError("the commit failed")
    wrapped.__cause__ = error
    assert retrying.passes(wrapped)


def test_a_proxy_that_is_not_there_passes():
    grpc = pytest.importorskip("grpc")
    with grpc.insecure_channel("127.0.0.1:1") as channel, pytest.raises(grpc.RpcError) as gone:
        channel.unary_unary("/s/m")(b"", timeout=5)
    assert retrying.passes(gone.value)


@pytest.mark.usefixtures("lock")
def test_a_file_that_another_one_writes_passes(impatient: RDBStorage):
    with pytest.raises((StorageInternalError, OperationalError)) as locked:
        optuna.create_study(storage=impatient)
    assert retrying.passes(locked.value)


def test_a_full_disk_a_wrong_statement_and_other_errors_do_not_pass(tmp_path: Path):
    full = refusal(
        f"sqlite:///{tmp_path}/full.db", "PRAGMA max_page_count = 2", "CREATE TABLE a (x)", "CREATE TABLE b (x)"
    )
    assert "full" in str(full)
    assert not retrying.passes(full)
    assert not retrying.passes(refusal("sqlite://", "SELEKT 1"))
    assert not retrying.passes(ProgrammingError("SELEKT 1", {}, Exception("syntax error")))
    assert not retrying.passes(KeyError("no such study"))
    assert not retrying.passes(StorageInternalError("without a cause"))


def test_a_call_waits_until_the_file_is_free_and_says_so_once(impatient: RDBStorage, lock: sqlite3.Connection):
    told: list[str] = []
    release = threading.Timer(0.3, lock.close)
    release.start()
    begin = time.monotonic()
    study = optuna.create_study(storage=retrying.patient(impatient, told.append), study_name="s")
    assert time.monotonic() - begin >= 0.3
    release.join()
    assert told == ["the storage does not answer; waiting for it"]
    assert [found.study_name for found in impatient.get_all_studies()] == [study.study_name]


def test_a_study_runs_on_a_patient_storage_as_on_its_own(impatient: RDBStorage):
    backend = retrying.patient(impatient)
    assert isinstance(backend, BaseStorage)
    study = optuna.create_study(storage=backend, study_name="s", directions=["maximize"] * 2)
    study.set_user_attr("kept", {"a": 1})
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), trial.number), n_trials=3)
    found = optuna.load_study(study_name="s", storage=impatient)
    assert [trial.values for trial in found.trials] == [[trial.params["x"], trial.number] for trial in study.trials]
    assert found.user_attrs == {"kept": {"a": 1}}


@pytest.mark.usefixtures("lock")
def test_it_gives_up_after_its_time_and_waits_longer_each_time(impatient: RDBStorage, monkeypatch: pytest.MonkeyPatch):
    now, waits = [0.0], []

    def pause(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(retrying.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(retrying.signals, "pause", pause)
    with pytest.raises((StorageInternalError, OperationalError), match=r"."):
        retrying.patient(impatient).get_all_studies()
    assert waits[:6] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert set(waits[6:]) == {5.0}
    assert retrying.LONGEST < sum(waits) <= retrying.LONGEST + retrying.LONGEST_WAIT


@pytest.mark.usefixtures("lock")
def test_a_process_that_was_told_to_end_waits_for_seconds_only(impatient: RDBStorage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retrying, "LAST", 0.1)
    backend = retrying.patient(impatient)
    with signals.handled():
        with pytest.raises(signals.Stopped):
            signal.raise_signal(signal.SIGTERM)
        begin = time.monotonic()
        with pytest.raises((StorageInternalError, OperationalError), match=r"."):
            backend.get_all_studies()
    assert time.monotonic() - begin < 5


@pytest.mark.usefixtures("lock")
def test_a_wait_ends_where_the_process_is_told_to_end(impatient: RDBStorage):
    with signals.handled():
        teller = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
        teller.start()
        with pytest.raises(signals.Stopped):
            retrying.patient(impatient).get_all_studies()
        teller.join()


def test_another_error_comes_at_once(monkeypatch: pytest.MonkeyPatch):
    told: list[str] = []
    monkeypatch.setattr(retrying.signals, "pause", lambda seconds: pytest.fail("it waited"))
    with pytest.raises(KeyError):
        retrying.patient(InMemoryStorage(), told.append).get_study_id_from_name("nobody")
    assert told == []


class Forgetful(InMemoryStorage):
    """Does what it is asked, and loses the first answers."""

    def __init__(self, losses: int) -> None:
        super().__init__()
        self.losses = losses

    def set_trial_state_values(self, *args, **options) -> bool:
        done = super().set_trial_state_values(*args, **options)
        if self.losses:
            self.losses -= 1
            raise AWAY
        return done


@pytest.mark.parametrize("losses", [0, 1])
def test_what_was_done_before_its_answer_was_lost_is_done_and_no_more(losses: int):
    backend = retrying.patient(Forgetful(losses))
    study = optuna.create_study(storage=backend)
    number = backend.create_new_trial(study._study_id)
    assert backend.set_trial_state_values(number, TrialState.COMPLETE, [0.5])
    assert [(trial.state, trial.values) for trial in study.trials] == [(TrialState.COMPLETE, [0.5])]
    with pytest.raises(UpdateFinishedTrialError):  # asked once, it is an error
        backend.set_trial_state_values(number, TrialState.FAIL)


class Unclosed(InMemoryStorage):
    """A signal cuts its query short, and closing that goes wrong as well."""

    cut = True

    def get_all_studies(self):
        try:
            if self.cut:
                raise signals.Stopped
        finally:
            # an error that passes: who did not look would ask again and go on as if nothing had come
            raise OperationalError("SELECT 1", {}, Exception("server closed the connection unexpectedly"))


def test_a_signal_that_a_library_turned_into_its_own_error_is_not_lost():
    storage = retrying.patient(Unclosed())
    with pytest.raises(signals.Stopped) as caught:
        storage.get_all_studies()
    assert isinstance(caught.value.__cause__, OperationalError)


def test_an_error_while_a_signal_is_dealt_with_is_that_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retrying, "LONGEST", 0.0)
    backend = Unclosed()
    backend.cut = False
    try:
        raise signals.Stopped
    except signals.Stopped:
        with pytest.raises(OperationalError):
            retrying.patient(backend).get_all_studies()
