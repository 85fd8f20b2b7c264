"""Storages and studies for tests of faults."""

from __future__ import annotations

import uuid
from pathlib import Path

import optuna
import pytest
from helpers.postgres import Server

from kdsearch import storage

STORAGES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


@pytest.fixture(params=STORAGES)
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a storage that processes share, without a study of ours."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shared.db"
    server: Server = request.getfixturevalue("server")
    backend = optuna.storages.get_storage(storage.open_storage(server.url))
    for study in backend.get_all_studies():
        backend.delete_study(study._study_id)
    backend.remove_session()
    return server.url


@pytest.fixture
def slow_study(tmp_path: Path, digits_text: str) -> Path:
    """A study of digits whose one anchor trains for minutes; its teacher is that of the other tests."""
    text = digits_text.partition("m2 = ")[0]
    for old, new in [
        ("epochs = 25", "epochs = 2"),
        ("high = 30 }", "high = 30000 }"),
        ("epochs = 3,", "epochs = 30000,"),
    ]:
        assert text.count(old) == 1
        text = text.replace(old, new)
    path = tmp_path / f"{uuid.uuid4().hex}.toml"
    path.write_text(text, encoding="utf-8")
    return path
