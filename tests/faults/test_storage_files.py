"""The file of a storage: folded into one, only to be read, made by several at once, behind a proxy."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from helpers import disks
from helpers.commands import Run, refused

from kdsearch import storage
from kdsearch.errors import StorageError
from kdsearch.search.study import optimize

TINY = {"dataset": "digits", "train_size": 200, "max_epochs": 2, "device": "cpu", "cost": "flops", "seed": 1}
WRITE = """
import sys
from kdsearch import storage
import optuna
sys.stdin.readline()
backend = storage.open_storage(sys.argv[1])
study = optuna.create_study(storage=backend, study_name="s", load_if_exists=True)
for number in range(int(sys.argv[2])):
    study.tell(study.ask(), 1.0)
print("written", flush=True)
sys.stdin.readline()
storage.fold(backend)
"""
SERVE = """
import sys
from optuna.storages import get_storage, run_grpc_proxy_server
run_grpc_proxy_server(get_storage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


def writer(url: str, trials: int) -> subprocess.Popen[str]:
    """A process that, told so by a line, writes trials to a study, says so, and at the next line folds the file."""
    words = [sys.executable, "-W", "ignore", "-c", WRITE, url, str(trials)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def tell(process: subprocess.Popen[str]) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def count(path: Path) -> int:
    """Of finished trials in a file, by sqlite alone."""
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return connection.execute("SELECT count(DISTINCT number) FROM trials WHERE state != 'RUNNING'").fetchone()[0]
    finally:
        connection.close()


@pytest.mark.slow
def test_a_copy_of_the_one_file_holds_all_trials_after_a_study(tmp_path: Path):
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    optimize(**TINY, storage=f"sqlite:///{folder}/my study.db", trials=4)
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["my study.db"]
    copy = shutil.copy(folder / "my study.db", tmp_path / "copy.db")
    assert count(copy) == 4
    assert len(storage.load_study(storage.open_storage(f"sqlite:///{copy}"), "digits").trials) == 4


@pytest.mark.slow
def test_after_its_commands_a_study_can_be_read_where_nothing_can_be_written(kdsearch: Run, tmp_path: Path):
    words = ["--train-size", "200", "--max-epochs", "1", "--device", "cpu", "--cost", "flops", "--trials", "2"]
    archive = tmp_path / "archive"
    archive.mkdir()
    for number, command in enumerate([["optimize", *words], ["status"], ["report"]]):
        assert kdsearch(*command).code == 0
        assert [path.name for path in tmp_path.glob("kdsearch.db*") if path.is_file()] == ["kdsearch.db"]
        shutil.copy(tmp_path / "kdsearch.db", archive / f"{number}.db")
    with disks.read_only(archive):
        for number in range(3):
            assert kdsearch("status", "--storage", f"sqlite:///{archive}/{number}.db").code == 0
    connection = sqlite3.connect(":memory:")
    connection.deserialize((tmp_path / "kdsearch.db").read_bytes())  # as the dashboard in a browser opens it
    assert connection.execute("SELECT count(*) FROM trials").fetchone() == (2,)
    connection.close()


@pytest.mark.slow
def test_a_study_writes_to_a_log_beside_the_file(tmp_path: Path):
    backend = storage.open_storage(f"sqlite:///{tmp_path}/kd.db")
    study = optuna.create_study(storage=backend, study_name="s")
    study.tell(study.ask(), 1.0)
    assert (tmp_path / "kd.db-wal").stat().st_size > 0
    storage.fold(backend)
    assert [path.name for path in tmp_path.iterdir()] == ["kd.db"]
    study.tell(study.ask(), 1.0)  # folding ends nothing
    assert [path.name for path in tmp_path.iterdir()] == ["kd.db"]
    assert count(tmp_path / "kd.db") == 2


@pytest.mark.slow
def test_folding_is_harmless_while_another_process_writes_and_the_last_one_leaves_one_file(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/kd.db"
    first, second = writer(url, 3), writer(url, 40)
    with first, second:
        for process in (first, second):
            tell(process)
        assert first.stdout.readline() == "written\n"
        tell(first)  # folds, whatever the other one does
        assert first.wait(timeout=60) == 0
        assert second.stdout.readline() == "written\n"
        tell(second)
        assert second.wait(timeout=60) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["kd.db"]
    assert count(tmp_path / "kd.db") == 43


@pytest.mark.slow
def test_what_a_killed_process_had_written_is_there(tmp_path: Path):
    process = writer(f"sqlite:///{tmp_path}/kd.db", 5)
    with process:
        tell(process)
        assert process.stdout.readline() == "written\n"
        process.kill()
    backend = storage.open_storage(f"sqlite:///{tmp_path}/kd.db")
    assert len(storage.load_study(backend, "s").trials) == 5
    storage.fold(backend)
    assert [path.name for path in tmp_path.iterdir()] == ["kd.db"]
    assert count(tmp_path / "kd.db") == 5


def test_folding_another_storage_does_nothing(tmp_path: Path):
    backend = storage.open_storage(f"journal:{tmp_path}/kd.log")
    optuna.create_study(storage=backend, study_name="s")
    storage.fold(backend)
    storage.fold(optuna.storages.InMemoryStorage())
    assert storage.study_names(backend) == ["s"]


@pytest.mark.slow
def test_several_processes_may_make_the_same_file_at_once(tmp_path: Path):
    processes = [writer(f"sqlite:///{tmp_path}/kd.db", 2) for _ in range(5)]
    for process in processes:
        tell(process)
    for process in processes:
        process.communicate("\n", timeout=120)
    assert [process.returncode for process in processes] == [0] * 5
    assert count(tmp_path / "kd.db") == 10


def test_a_damaged_file_is_not_said_to_keep_its_trials(kdsearch: Run, tmp_path: Path):
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/kd.db", directions=["maximize"] * 2, study_name="mine")
    for number in range(20):
        study.add_trial(optuna.trial.create_trial(values=[number, 1.0], user_attrs={"curve": "x" * 1500}))
    study._storage.remove_session()
    whole = (tmp_path / "kd.db").read_bytes()
    kept = len(whole) * 17 // 20
    (tmp_path / "kd.db").write_bytes(whole[:kept] + b"A" * (len(whole) - kept))
    said = kdsearch("status", "--storage", f"sqlite:///{tmp_path}/kd.db")
    refused(said, "the storage must be whole", "malformed", "restore a copy")


@pytest.mark.slow
def test_a_folder_that_may_only_be_read(kdsearch: Run, tmp_path: Path):
    folder = tmp_path / "archive"
    folder.mkdir()
    url = f"sqlite:///{folder}/kd.db"
    optimize(**TINY, storage=url, trials=2)
    more = ["optimize", "--train-size", "200", "--max-epochs", "2", "--cost", "flops", "--trials", "3"]
    with disks.read_only(folder):
        refused(kdsearch(*more, "--storage", f"sqlite:///{folder}/new.db"), "unable to open database file", "new.db")
        refused(kdsearch(*more, "--storage", f"journal:{folder}/new.log"), "the storage must", "new.log")
        result = kdsearch("status", "--storage", url)  # but what is there can be read
        assert (result.code, "trials: 2 complete" in result.err) == (0, True)
        result = kdsearch(*more, "--storage", url)
        assert result.code == 1
        assert "the storage must stay reachable: attempt to write a readonly database" in result.err
        assert "Traceback" not in result.err
    assert count(folder / "kd.db") == 2


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_study_runs_behind_a_grpc_proxy_and_one_line_says_when_it_is_gone(kdsearch: Run, tmp_path: Path, port: int):
    pytest.importorskip("grpc")
    url, file = f"grpc://127.0.0.1:{port}", tmp_path / "kd.db"
    words = [sys.executable, "-W", "ignore", "-c", SERVE, f"sqlite:///{file}", str(port)]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(20):
                try:
                    storage.open_storage(url)
                    break
                except StorageError:
                    continue
            assert len(optimize(**TINY, storage=url, trials=3).trials) == 3
            backend = storage.open_storage(url)
        finally:
            server.kill()
    assert count(file) == 3
    before = time.monotonic()
    refused(kdsearch("status", "--storage", url), "no gRPC proxy answered in 5 s", url)
    assert time.monotonic() - before < 15
    with pytest.raises(Exception, match="UNAVAILABLE") as gone:
        backend.get_all_studies()
    assert "127.0.0.1" in storage.trouble(gone.value)
