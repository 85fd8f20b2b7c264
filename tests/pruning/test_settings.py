from __future__ import annotations

import math

import numpy as np
import optuna
import pytest

from kdsearch.errors import KdsearchError
from kdsearch.pruning import settings
from kdsearch.pruning.pruner import ParetoPruner

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.uint8(3), np.float32(3)])
def test_a_whole_number_may_be_of_any_kind(value):
    found = [
        settings.whole("seed", value),
        settings.length(value),
        settings.units([value], None, None)["log"][0],
    ]
    assert found == [3] * 3
    assert {type(one) for one in found} == {int}


@pytest.mark.parametrize("value", [2.5, NAN, INF, None, "3", True, np.bool_(True), [3]])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(ValueError, match=r"^seed must be a whole number \(got "):
        settings.whole("seed", value)
    with pytest.raises(ValueError, match=r"^log must hold indices of objectives, whole numbers from 0 \(got "):
        settings.units([0, value], None, None)


def test_the_last_step_is_a_whole_number_or_a_name_or_left_out():
    assert [settings.length(value) for value in (None, "epochs", 1)] == [None, "epochs", 1]
    for value in (0, -1, 2.5, NAN, True, [3]):
        with pytest.raises(
            ValueError, match=r"^max_steps must be a whole number, at least 1, or .* \(got .*; leave it"
        ):
            settings.length(value)


def test_settings_are_kept_as_numbers():
    found = settings.units(np.array([1]), np.array([0.5, 1]), np.float32(0.5))
    assert found == {"log": (1,), "reference": (0.5, 1.0), "ideal": 0.5}
    assert settings.units(None, None, None) == {"log": None, "reference": None, "ideal": None}
    assert settings.units(iter([0, 1]), iter([0, 1]), 1) == {"log": (0, 1), "reference": (0.0, 1.0), "ideal": 1.0}
    assert settings.units((), None, None)["log"] == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log": [-1]}, r"log must hold indices of objectives, whole numbers from 0 \(got -1\)"),
        ({"log": ["ratio"]}, r"whole numbers from 0 \(got 'ratio'\)"),
        ({"log": "ratio"}, r"whole numbers from 0 \(got 'ratio'\); give a list"),
        ({"log": 1}, r"whole numbers from 0 \(got 1\); give a list"),
        ({"reference": [NAN, 0.0]}, r"reference must hold finite numbers, one for each objective \(got nan\)"),
        ({"reference": [0.0, -INF]}, r"finite numbers, one for each objective \(got -inf\)"),
        ({"reference": [0.0, None]}, r"finite numbers, one for each objective \(got None\)"),
        ({"reference": 0.5}, r"finite numbers, one for each objective \(got 0.5\); give a list"),
        ({"ideal": NAN}, r"ideal must be a finite number \(got nan\)"),
        ({"ideal": INF}, r"ideal must be a finite number \(got inf\)"),
        ({"ideal": "1"}, r"ideal must be a finite number \(got '1'\)"),
        ({"ideal": 10**400}, r"ideal must be a finite number \(got 1000"),
        ({"max_steps": 0}, r"max_steps must be a whole number, at least 1, .* \(got 0\)"),
        ({"max_steps": 2.5}, r"max_steps must be a whole number, at least 1, .* \(got 2.5\)"),
        ({"neighbours": 2.5}, r"neighbours must be a whole number \(got 2.5\)"),
        ({"neighbours": None}, r"neighbours must be a whole number \(got None\)"),
        ({"neighbours": np.int64(0)}, r"neighbours must be at least 1"),
        ({"seed": None}, r"seed must be a whole number \(got None\)"),
    ],
)
def test_the_pruner_refuses_settings_before_the_study(options, message):
    with pytest.raises(ValueError, match="^.*" + message):
        ParetoPruner(**options)


def test_settings_must_fit_the_objectives():
    settings.check_fit(2, [0, 1], [0.0, 0.0])
    settings.check_fit(2, None, None)
    with pytest.raises(ValueError, match=r"indices of the 2 objectives, 0 to 1 \(got 2\)"):
        settings.check_fit(2, [0, 2], None)
    with pytest.raises(ValueError, match=r"whole numbers from 0 \(got -1\)"):
        settings.check_fit(2, [-1], None)
    with pytest.raises(ValueError, match=r"one for each of the 2 objectives \(got 3\)"):
        settings.check_fit(2, None, [0.0] * 3)


def test_one_objective_is_refused_and_two_are_not():
    settings.refuse_one_objective(optuna.create_study(directions=["maximize"] * 2))
    with pytest.raises(KdsearchError, match=r"two or more objectives \(got 1\); use one of Optuna's own pruners with"):
        settings.refuse_one_objective(optuna.create_study())
