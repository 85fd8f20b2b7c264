"""A study on a real PostgreSQL server."""

from __future__ import annotations

import optuna
import pytest
from postgres import PASSWORD, Server

from kdsearch import storage
from kdsearch.search.study import optimize

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.slow,
    # SQLAlchemy's pool lets psycopg's connections be collected open, when a storage goes out of use
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_a_study_runs_and_goes_on(server: Server) -> None:
    options = {"cost": "flops", "train_size": 200, "max_epochs": 2, "device": "cpu", "seed": 3, "storage": server.url}
    optimize(dataset="digits", trials=2, name="there", **options)
    study = optimize(dataset="digits", trials=11, name="there", **options)
    assert len(study.trials) == 11
    assert [trial.number for trial in optuna.load_study(study_name="there", storage=server.url).best_trials] == [
        trial.number for trial in study.best_trials
    ]


def test_a_wrong_password_is_refused_without_being_shown(server: Server) -> None:
    wrong = server.url.replace(PASSWORD, "guess")
    with pytest.raises(storage.StorageError) as refused:
        storage.open_storage(wrong)
    assert "guess" not in str(refused.value)
    assert "ann:***@" in str(refused.value)
