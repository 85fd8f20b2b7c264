from __future__ import annotations

import optuna
import pytest

from kdsearch.distil.teacher import Teacher
from kdsearch.experiments.slides import run, training
from kdsearch.experiments.slides.deck import School, choose
from kdsearch.records import Progress
from kdsearch.search.definition import open_defined
from kdsearch.search.plan import Plan
from kdsearch.storage import open_storage


@pytest.fixture(scope="session")
def school(plan: Plan, teacher: Teacher) -> School:
    """The MNIST rows' recipe on 200 digits: quick, and the images are real."""
    return School("mnist", plan.split, teacher, teacher.answers(plan.split.train))


@pytest.fixture
def options(url: str) -> run.Options:
    return run.Options(dataset="mnist", jobs=choose("mnist", "m1,m7", "both"), repeats=2, url=url, name="slides-mnist")


@pytest.fixture
def slides(school: School, monkeypatch: pytest.MonkeyPatch):
    """Runs what a study of these options lacks, on digits, with few timings; returns the study."""
    monkeypatch.setattr(training, "PAIRS", 2)
    for name in ("MIN_PAIRS", "MAX_PAIRS"):
        monkeypatch.setattr(f"kdsearch.measure.latency.{name}", 2)

    def ran(options: run.Options, progress: Progress | None = None) -> optuna.Study:
        study = open_defined(open_storage(options.url), options.name, {"kind": "slides"})
        study.set_user_attr("teacher", vars(school.teacher.facts))
        run.run_all(study, options, school, run.missing(study, options), progress or Progress())
        return study

    return ran
