from __future__ import annotations

import dataclasses
import inspect

import optuna
import pytest

import kdsearch
from kdsearch import storage
from kdsearch.cli.search import optimize as command
from kdsearch.errors import DefinitionError, KdsearchError
from kdsearch.records import StudyAttr
from kdsearch.search import run_options as options
from kdsearch.search.run_options import Options, Request

OTHER = {
    "trials": 7, "epochs_budget": 90, "timeout": 12.5, "sampler": "random", "candidates": 1, "pruner": "none",
    "resume_trials": True, "seed": 3,
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


@pytest.mark.parametrize("field", [*dataclasses.fields(Request), *dataclasses.fields(Options)], ids=lambda f: f.name)
def test_python_and_the_command_line_take_the_same_options(field: dataclasses.Field):
    by_python = inspect.signature(kdsearch.optimize).parameters[field.name]
    assert by_python.default == field.default
    assert (
        f"{field.name}:" in kdsearch.optimize.__doc__
        or f"{field.name}, " in kdsearch.optimize.__doc__
        or (f", {field.name}:" in kdsearch.optimize.__doc__)
    )
    by_command = inspect.signature(command).parameters[field.name]
    assert by_command.default == field.default
    said = by_command.annotation.__metadata__[0]
    assert (said.help, said.min, said.envvar) == tuple(field.metadata[key] for key in ("help", "least", "env"))
    assert "[" not in said.help  # rich takes it for markup and drops it


def test_the_command_line_adds_what_is_its_own():
    shared = {field.name for kind in (Request, Options) for field in dataclasses.fields(kind)}
    assert set(inspect.signature(command).parameters) - shared == {"workers", "report", "dry_run", "as_json"}
    assert set(inspect.signature(kdsearch.optimize).parameters) - shared == {"workers", "command", "progress"}
