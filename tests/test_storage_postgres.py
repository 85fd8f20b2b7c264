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
from urllib.parse import quote

import optuna
import pytest
from commands import Run

from kdsearch import storage
from kdsearch.search.study import optimize

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.slow,
    # SQLAlchemy's pool lets psycopg's connections be collected open, when a storage goes out of use
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
PASSWORD = "open sesame/%7@ü"  # in a URL much of it is percent-encoded


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of a server with a password; PostgreSQL refuses to run as root, so root hands it to another user."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="kdsearch-postgres-"))
    (folder / "password").write_text(PASSWORD, encoding="utf-8")
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
    yield f"postgresql+psycopg://ann:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/postgres"
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
    wrong = server.replace(quote(PASSWORD, safe=""), "guess")
    with pytest.raises(storage.StorageError) as refused:
        storage.open_storage(wrong)
    assert "guess" not in str(refused.value)
    assert "ann:***@" in str(refused.value)


@pytest.mark.parametrize("form", ["in its place", "in the query"])
def test_the_password_is_never_printed_or_written(server: str, kdsearch: Run, tmp_path: Path, form: str) -> None:
    secret = quote(PASSWORD, safe="")
    url = server if form == "in its place" else server.replace(f":{secret}@", "@") + f"?password={secret}"
    name = f"never {form}"
    words = ["--storage", url, "--name", name]
    small = ["--trials", "1", "--cost", "flops", "--train-size", "200", "--max-epochs", "1", "--device", "cpu"]
    results = [
        kdsearch("optimize", *words, *small, "--json"),
        kdsearch("optimize", f"--storage={url}", "--name", name, *small, "--train-size", "100"),  # refused
        kdsearch("report", *words, "--report", "again.html"),
        kdsearch("status", *words, "--trial", "0"),
        kdsearch("status", *words, "--trial", "7"),
        kdsearch("status", "--storage", url, "--name", "nobody"),
        kdsearch("status", "--storage", url.replace("/postgres", "/no_such_database"), "--json"),
    ]
    assert [result.code for result in results] == [0, 1, 0, 0, 1, 1, 1]
    stored = optuna.load_study(study_name=name, storage=server).user_attrs
    texts = [text for result in results for text in (result.out, result.err)] + [str(stored)]
    texts += [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")]
    assert len(texts) == 17
    assert any("ann:***@" in text or "password=***" in text for text in texts)
    for text in texts:
        assert PASSWORD not in text
        assert secret not in text
