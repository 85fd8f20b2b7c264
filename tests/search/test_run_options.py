from __future__ import annotations

import dataclasses

import optuna
import pytest

from kdsearch import storage
from kdsearch.errors import DefinitionError, KdsearchError
from kdsearch.records import StudyAttr
from kdsearch.search import run_options as options
from kdsearch.search.run_options import Options

OTHER = {
    "trials": 7, "epochs_budget": 90, "timeout": 12.5, "sampler": "random", "candidates": 1, "pruner": "none", "seed": 3
}  # fmt: skip


@pytest.mark.parametrize("given", [Options(), Options(**OTHER)])
def test_a_worker_finds_in_the_storage_what_was_asked_for(url: str, given: Options):
    given.store(optuna.create_study(storage=storage.open_storage(url), study_name="s"))
    assert options.stored(storage.load_study(storage.open_storage(url), "s")) == given


def test_no_option_is_left_out_of_what_is_stored():
    assert set(OTHER) == {field.name for field in dataclasses.fields(Options)}
    assert not OTHER.items() & dataclasses.asdict(Options()).items()


def test_the_run_that_opened_a_study_last_decides():
    study = optuna.create_study()
    Options(trials=5).store(study)
    Options(trials=9, seed=1).store(study)
    assert options.stored(study) == Options(trials=9, seed=1)


def test_a_study_that_was_never_started_is_refused():
    study = optuna.create_study(study_name="empty")
    with pytest.raises(DefinitionError, match=r"started before workers join it \(got empty\); run `kdsearch optimize`"):
        options.stored(study)


@pytest.mark.parametrize("found", [7, [], "x", {"trials": 3, "of_tomorrow": 1}])
def test_options_of_another_version_are_refused_in_one_line(found: object):
    study = optuna.create_study(study_name="s")
    study.set_user_attr(StudyAttr.OPTIONS, found)
    with pytest.raises(DefinitionError, match=r"this version of kdsearch knows \(got s\)"):
        options.stored(study)


def test_the_budget_is_of_these_limits():
    budget = Options(**OTHER).budget()
    assert (budget.trials, budget.epochs, budget.seconds) == (7, 90, 12.5)
    assert Options().budget().trials == 50
    with pytest.raises(KdsearchError, match="--epochs-budget must be at least 1"):
        Options(epochs_budget=0).budget()
