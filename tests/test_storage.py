from __future__ import annotations

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
    ],
)
def test_a_password_is_never_shown(url, shown):
    assert storage.masked(url) == shown


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
    ],
)
def test_a_storage_that_cannot_be_reached_is_one_line_without_its_password(url: str):
    with pytest.raises(StorageError) as caught:
        storage.open_storage(url)
    assert "\n" not in str(caught.value)
    assert "check --storage" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path):
    (tmp_path / "kd.db").write_text("this is no database " * 100)
    with pytest.raises(StorageError, match="not a database"):
        storage.open_storage(f"sqlite:///{tmp_path}/kd.db")
    assert (tmp_path / "kd.db").read_text().startswith("this is no database")
