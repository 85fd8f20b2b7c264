from __future__ import annotations

import optuna
import pytest

from kdsearch import storage
from kdsearch.errors import KdsearchError
from kdsearch.records import StudyAttr
from kdsearch.search.study import join


@pytest.mark.parametrize(
    ("stored", "line"),
    [
        ({"pruner": "of_tomorrow"}, r"--pruner must be known \(got of_tomorrow\)"),
        ({"sampler": "of_tomorrow"}, r"--sampler must be known \(got of_tomorrow\)"),
        ({"trials": 0}, "--trials must be at least 1"),
        ({}, "the study must have been made by kdsearch"),
    ],
)
def test_what_a_storage_says_of_a_study_is_looked_at_before_a_worker_begins(url: str, stored: dict, line: str):
    study = optuna.create_study(storage=storage.open_storage(url), study_name="s", directions=["maximize"] * 2)
    study.set_user_attr(StudyAttr.OPTIONS, stored)
    with pytest.raises(KdsearchError, match=line):
        join(url, "s")
    assert study.trials == []
