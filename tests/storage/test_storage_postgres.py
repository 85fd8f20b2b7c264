"""A study on a real PostgreSQL server."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
from helpers.commands import Run
from helpers.postgres import PASSWORD, Server

from kdsearch import storage
from kdsearch.errors import StorageError
from kdsearch.reporting.dashboard.artifacts import PREFIX, Shelf
from kdsearch.reporting.dashboard.note import FIGURE_KEY, NOTE_KEY
from kdsearch.search.study import optimize

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.slow,
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
    wrong = server.url.replace(quote(PASSWORD, safe=""), "guess")
    with pytest.raises(StorageError) as refused:
        storage.open_storage(wrong)
    assert "guess" not in str(refused.value)
    assert "ann:***@" in str(refused.value)


@pytest.mark.parametrize("form", ["in its place", "in the query"])
def test_the_password_is_never_printed_or_written(server: Server, kdsearch: Run, tmp_path: Path, form: str) -> None:
    secret = quote(PASSWORD, safe="")
    url = server.url if form == "in its place" else server.url.replace(f":{secret}@", "@") + f"?password={secret}"
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
    study = optuna.load_study(study_name=name, storage=server.url)
    assert Shelf(url, tmp_path / "artifacts").fill(study) == 2  # the only trial's curve and card
    view = study._storage.get_study_system_attrs(study._study_id)
    assert view[f"{FIGURE_KEY}0"].startswith('{"data":[{')
    assert view[f"{NOTE_KEY}0"].startswith("**The run is over.**")
    assert sum(key.startswith(PREFIX) for key in view) == 2
    texts = [text for result in results for text in (result.out, result.err)] + [str(study.user_attrs), str(view)]
    texts += [path.read_text(encoding="utf-8") for path in (tmp_path / "artifacts").iterdir() if path.is_file()]
    texts += [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")]
    assert len(texts) == 20
    assert any("ann:***@" in text or "password=***" in text for text in texts)
    for text in texts:
        assert PASSWORD not in text
        assert secret not in text
