from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import optuna
import pytest
from helpers.commands import Run, refused
from optuna.trial import TrialState, create_trial

from kdsearch.storage import open_storage


def add(study: optuna.Study, accuracy: float, ratio: float) -> None:
    attrs = {"test_accuracy": accuracy, "ratio": ratio, "curve": {"1": [accuracy, ratio]}}
    study.add_trial(create_trial(values=[accuracy, ratio], user_attrs=attrs))


@pytest.fixture
def studies(url: str) -> dict[str, optuna.Study]:
    """Two studies of one finished trial."""
    storage = open_storage(url)
    made = {
        name: optuna.create_study(storage=storage, study_name=name, directions=["maximize"] * 2) for name in ("a", "b")
    }
    for study in made.values():
        add(study, 0.9, 10.0)
    return made


@pytest.mark.parametrize(("form", "begins"), [("html", "<!doctype html>"), ("md", "# Study a"), ("csv", "number,")])
def test_a_report_has_the_format_that_was_asked_for(kdsearch: Run, studies, url: str, form: str, begins: str):
    result = kdsearch("report", "--storage", url, "--name", "a", "--format", form, "--json")
    path = Path(json.loads(result.out)["report"])
    assert path == Path("reports") / f"a.{form}"
    assert path.read_text(encoding="utf-8").startswith(begins)


def test_an_unknown_format_and_a_comparison_of_one_are_refused(kdsearch: Run, studies, url: str):
    unknown = kdsearch("report", "--storage", url, "--name", "a", "--format", "pdf")
    refused(unknown, "--format must be html, md, csv or json (got pdf)")
    refused(kdsearch("report", "--storage", url, "--compare", "b"), "--compare must make two studies or more (got b)")


@pytest.mark.parametrize("words", [("--format", "csv"), ("--watch",)])
def test_a_comparison_takes_no_option_that_it_would_ignore(kdsearch: Run, studies, url: str, words: tuple[str, ...]):
    result = kdsearch("report", "--storage", url, "--name", "a", "--compare", "b", *words)
    refused(result, f"--compare must stand alone: it writes one page (got {' '.join(words)}); drop {' '.join(words)}")


def test_studies_are_compared_in_one_page(kdsearch: Run, studies, url: str):
    result = kdsearch("report", "--storage", url, "--name", "a", "--compare", "b", "--plotlyjs", "cdn", "--json")
    found = json.loads(result.out)
    assert [each["study"] for each in found["studies"]] == ["a", "b"]
    assert "a and b" in Path(found["report"]).read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_watched_report_is_written_again_until_the_study_stands_still(kdsearch: Run, studies, url: str):
    study = studies["a"]
    study.add_trial(create_trial(state=TrialState.WAITING))
    waiting = study.trials[-1]

    def work() -> None:
        time.sleep(1.5)
        add(study, 0.95, 5.0)
        study._storage.set_trial_state_values(waiting._trial_id, TrialState.FAIL)

    worker = threading.Thread(target=work)
    worker.start()
    result = kdsearch("report", "--storage", url, "--name", "a", "--watch", "--every", "1", "--plotlyjs", "cdn")
    worker.join()
    assert result.code == 0
    assert "reports/a.html: 2 trials" in result.err
    assert "reports/a.html: 3 trials" in result.err
    page = Path("reports/a.html").read_text(encoding="utf-8")
    assert 'id="trial-2"' in page
    assert 'http-equiv="refresh"' not in page  # the study is over
