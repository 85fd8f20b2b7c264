from __future__ import annotations

import optuna
import pytest

from kdsearch.errors import DefinitionError
from kdsearch.search.definition import differences, open_defined
from kdsearch.storage import open_storage


def test_differences_name_the_key_and_both_values():
    old = {"a": {"b": 1, "c": [1, 2]}, "d": 4, "gone": 0}
    new = {"a": {"b": 2, "c": [1, 2]}, "d": 4, "new": {"e": 5}}
    assert differences(old, new) == ["a.b: 1 -> 2", "gone: 0 -> nothing", "new.e: nothing -> 5"]
    assert differences(old, old) == []


def test_a_study_is_found_again_by_its_definition(url):
    backend = open_storage(url)
    first = open_defined(backend, "one", {"a": 1})
    assert open_defined(backend, "one", {"a": 1})._study_id == first._study_id
    with pytest.raises(DefinitionError, match=r"must stay the same \(a: 1 -> 2\) \(got one\); choose another --name"):
        open_defined(backend, "one", {"a": 2})


def test_another_programs_attribute_of_that_name_is_no_definition(url):
    backend = open_storage(url)
    study = optuna.create_study(storage=backend, study_name="one", directions=["maximize"] * 2)
    study.set_user_attr("definition", "a text")
    with pytest.raises(DefinitionError, match=r"must have been made by kdsearch \(got one\); choose another --name"):
        open_defined(backend, "one", {"a": 1})
