from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import optuna
import pytest

from kdsearch import storage
from kdsearch.errors import StorageError


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ann:secret@db:5432/kd", "postgresql://ann:***@db:5432/kd"),
        ("postgresql+psycopg://ann:s%40crt@db/kd", "postgresql+psycopg://ann:***@db/kd"),
        ("sqlite:///kdsearch.db", "sqlite:///kdsearch.db"),
        ("journal:/tmp/a b.log", "journal:/tmp/a b.log"),
        ("ann:secret at db", "***"),
        ("postgresql://ann:secret@db:port/kd", "***"),
        ("postgresql://db/kd?user=ann&password=secret", "postgresql://db/kd?password=***&user=ann"),
        (
            "postgresql://ann@db/kd?sslpassword=secret&sslmode=require",
            "postgresql://ann@db/kd?sslmode=require&sslpassword=***",
        ),
        ("grpc://host:13000", "grpc://host:13000"),
        ("grpc://ann:secret@host:13000", "grpc://ann:***@host:13000"),
        ("postgresql://ann:sec@ret@db/kd", "postgresql://ann:***@db/kd"),
        ("postgresql://ann:se/c@ret@db:5432/kd", "postgresql://ann:***@db:5432/kd"),
        ("journal:postgresql://ann:sec@ret@db/kd", "journal:postgresql://ann:***@db/kd"),
    ],
)
def test_a_password_is_never_shown(url, shown):
    assert storage.masked(url) == shown


@pytest.mark.parametrize(
    "text",
    [
        'connection to "postgresql+psycopg://ann:s%40cr et@db/kd" failed',
        "password s@cr et was refused",
        "--storage=postgresql+psycopg://ann:s%40cr et@db/kd",
        "(s%40cr et)",
        "another one: mysql://bob:s@cr et@host/kd",
    ],
)
def test_no_text_shows_a_password_in_any_form(text):
    shown = storage.hidden(text, "postgresql+psycopg://ann:s%40cr et@db/kd")
    assert "***" in shown
    assert "cr et" not in shown


def test_a_text_keeps_the_words_in_which_a_short_password_happens_to_lie():
    assert storage.hidden("a table has a name (a)", "mysql://ann:a@db/kd") == "*** table has *** name (***)"
    assert storage.hidden("nothing to hide", "sqlite:///kd.db") == "nothing to hide"


def test_only_a_storage_is_in_trouble_with_a_storage():
    assert storage.trouble(ValueError("no")) is None
    assert storage.trouble(sqlite3.OperationalError("disk I/O error\nmore")) == "disk I/O error"


def test_a_password_that_is_not_encoded_is_refused_before_any_server_is_asked():
    with pytest.raises(StorageError, match=r"must be percent-encoded: @ as %40.*got postgresql://ann:\*\*\*@db/kd\)"):
        storage.open_storage("postgresql://ann:sec@ret@db/kd")


@pytest.mark.parametrize("url", ["", " "])
def test_an_empty_url_is_told_in_words(url: str):
    with pytest.raises(StorageError, match="Could not parse SQLAlchemy URL"):
        storage.open_storage(url)


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///:memory:", "sqlite:///file::memory:?uri=true", "sqlite:///file:k?mode=memory&uri=true"],
)
def test_a_database_in_memory_cannot_be_shared(url: str):
    with pytest.raises(StorageError, match="in memory cannot be shared and ends with the command: name a file"):
        storage.open_storage(url)


def test_a_path_with_braces_is_a_path(tmp_path: Path):
    storage.fold(storage.open_storage(f"sqlite:///{tmp_path}/{{SCHEMA_VERSION}} {{x}}.db"))
    assert [path.name for path in tmp_path.iterdir()] == ["{SCHEMA_VERSION} {x}.db"]


@pytest.mark.parametrize("form", ["sqlite:///{}/kd.db", "journal:{}/kd.log"])
def test_a_study_is_found_again_under_its_name(form: str, tmp_path: Path):
    url = form.format(tmp_path)
    optuna.create_study(storage=storage.open_storage(url), study_name="b", directions=["maximize"] * 2)
    optuna.create_study(storage=storage.open_storage(url), study_name="a")
    again = storage.open_storage(url)
    assert storage.study_names(again) == ["a", "b"]
    assert [d.name for d in storage.load_study(again, "b").directions] == ["MAXIMIZE", "MAXIMIZE"]


def test_a_study_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path):
    backend = storage.open_storage(f"journal:{tmp_path}/kd.log")
    with pytest.raises(StorageError, match=r"got digits\).*studies there: none yet"):
        storage.load_study(backend, "digits")
    optuna.create_study(storage=backend, study_name="mnist")
    with pytest.raises(StorageError, match=r"studies there: mnist"):
        storage.load_study(backend, "digits")


@pytest.mark.parametrize(
    "url",
    [
        "kdsearch.db",
        "sqlite:////no/such/folder/kd.db",
        "journal:/no/such/folder/kd.log",
        "oracle+nothing://ann:secret@db/kd",
        "postgresql://ann:secret@127.0.0.1:1/kd",
        "postgresql://ann:secret@db:port/kd",
        "postgresql://ann@127.0.0.1:1/kd?password=secret",
        "postgresql://ann:an@secret@127.0.0.1:1/kd",
        "postgresql+psycopg://ann:{secret}@127.0.0.1:1/kd",
        "journal:postgresql://ann:secret@db/kd",
        "grpc://ann:secret@127.0.0.1:1",
        "grpc://127.0.0.1",
        "grpc:secret",
    ],
)
def test_a_storage_that_cannot_be_reached_is_one_line_without_its_password(url: str):
    with pytest.raises(StorageError) as caught:
        storage.open_storage(url)
    assert "\n" not in str(caught.value)
    assert "check --storage" in str(caught.value)
    assert "secret" not in str(caught.value)


def cats(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE cats (name)")
    connection.close()


@pytest.mark.parametrize(
    ("form", "make", "said"),
    [
        ("sqlite:///{}", lambda path: path.write_text("this is no database " * 100), "not a database"),
        ("sqlite:///{}", cats, r"something else than Optuna \(its tables: cats\)"),
        ("sqlite:///{}", Path.mkdir, "is a folder"),
        ("journal:{}", lambda path: path.write_text("a note without a line's end"), "no journal of Optuna"),
        ("journal:{}", lambda path: path.write_text('{"a": 1}\n{"b": 2}\n'), "no journal of Optuna"),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path, form, make, said):
    path = tmp_path / "some file.db"
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(StorageError, match=said) as caught:
        storage.open_storage(form.format(path))
    assert "\n" not in str(caught.value)
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_a_grpc_storage_without_grpcio_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)  # as import finds it where it is not installed
    with pytest.raises(StorageError, match=r"grpcio is missing: pip install 'kdsearch\[grpc\]'"):
        storage.open_storage("grpc://127.0.0.1:1")
