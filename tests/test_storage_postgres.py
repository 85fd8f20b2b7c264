"""A study on a real PostgreSQL server, started for the test."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from kdsearch import storage
from kdsearch.search.study import optimize

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.slow,
    # SQLAlchemy's pool lets psycopg's connections be collected open, when a storage goes out of use
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
PASSWORD = "open-sesame"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of a server with a password; PostgreSQL refuses to run as root, so root hands it to another user."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="kdsearch-postgres-"))
    (folder / "password").write_text(PASSWORD)
    if as_user:
        shutil.chown(folder, "postgres")
        shutil.chown(folder / "password", "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def call(program: str, *words: str) -> None:
        subprocess.run([*as_user, programs / program, *words], check=True, cwd=folder, stdout=subprocess.DEVNULL)

    data = str(folder / "data")
    call("initdb", "-D", data, "-U", "ann", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    call("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
    yield f"postgresql+psycopg://ann:{PASSWORD}@127.0.0.1:{port}/postgres"
    gc.collect()
    call("pg_ctl", "-D", data, "-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


def test_a_study_runs_and_goes_on(server: str) -> None:
    options = {"cost": "flops", "train_size": 200, "max_epochs": 2, "device": "cpu", "seed": 3, "storage": server}
    optimize(dataset="digits", trials=2, name="there", **options)
    study = optimize(dataset="digits", trials=11, name="there", **options)
    assert len(study.trials) == 11
    assert [trial.number for trial in optuna.load_study(study_name="there", storage=server).best_trials] == [
        trial.number for trial in study.best_trials
    ]


def test_a_wrong_password_is_refused_without_being_shown(server: str) -> None:
    wrong = server.replace(PASSWORD, "guess")
    with pytest.raises(storage.StorageError) as refused:
        storage.open_storage(wrong)
    assert "guess" not in str(refused.value)
    assert "ann:***@" in str(refused.value)
