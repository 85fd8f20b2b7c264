from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsearch.pruning.scale import LEAST_ERROR, MARGIN, make_scale

UP2 = np.array([1.0, 1.0])


def scale_of(points, sign=UP2, lowest=None, observed=0, **options):
    points = np.array(points, dtype=np.float64)
    lowest = points[:, observed].min() if lowest is None else lowest
    return make_scale(points, np.array(sign), observed, lowest=lowest, **options)


def test_a_lopsided_known_objective_is_compared_by_rank():
    scale = scale_of([[0.5, 1.0], [0.7, 2.0], [0.8, 4.0], [0.9, 100.0]])
    assert scale.transform(np.array([[0.5, 2.0], [0.5, 3.0], [0.5, 100.0]]))[:, 1] == pytest.approx([1 / 3, 1 / 2, 1])


def test_an_even_known_objective_is_taken_as_it_is():
    scale = scale_of([[0.5, 1.0], [0.7, 5.0], [0.9, 9.0]])
    assert scale.transform(np.array([[0.5, 3.0]])).tolist() == [[0.5, 3.0]]
    assert not scale.log.any()


def test_a_reference_in_the_objectives_own_units_keeps_them():
    scale = scale_of([[0.5, 1.0], [0.7, 2.0], [0.9, 100.0]], reference=[0.0, 1.0])
    assert scale.transform(np.array([[0.5, 3.0]])).tolist() == [[0.5, 3.0]]


def test_the_observed_objective_is_taken_as_it_is_unless_told():
    points = [[0.001, 1.0], [0.9, 2.0]]
    assert scale_of(points).log.tolist() == [False, False]
    assert scale_of(points, log=[0]).log.tolist() == [True, False]


def test_objectives_on_a_log_scale_are_as_told():
    points = [[0.5, 1.0], [0.9, 100.0]]
    assert not scale_of(points, log=[]).log.any()
    assert scale_of([[0.5, 1.0], [0.9, 2.0]], log=[1]).log.tolist() == [False, True]


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_an_objective_on_a_log_scale_must_be_positive(value):
    with pytest.raises(ValueError, match=rf"on a log scale must be above 0 \(got {value}\)"):
        scale_of([[0.5, value], [0.9, 10.0]], log=[1])


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_the_reference_of_an_objective_on_a_log_scale_must_be_positive(value):
    with pytest.raises(ValueError, match=rf"on a log scale must be above 0 \(got {value}\)"):
        scale_of([[0.5, 1.0], [0.9, 10.0]], log=[1], reference=[0.0, value])


@pytest.mark.parametrize("index", [-1, 2, 0.5, "ratio"])
def test_an_index_that_no_objective_has_is_refused(index):
    with pytest.raises(ValueError, match=rf"log must hold indices of .*objectives.*\(got {index!r}\)"):
        scale_of([[0.5, 1.0], [0.9, 10.0]], log=[index])


def test_a_logarithm_keeps_its_direction():
    scale = scale_of([[0.5, -1.0], [0.9, -100.0]], sign=[1.0, -1.0], log=[1])  # to be minimised, so told as negatives
    assert scale.log.tolist() == [False, True]
    assert scale.transform(np.array([[0.5, -10.0], [0.5, -100.0]]))[:, 1].tolist() == [-1.0, -2.0]


def test_the_reference_lies_a_tenth_of_the_span_below_the_worst_seen():
    scale = scale_of([[0.5, 1.0], [0.9, 100.0]], lowest=0.1, log=[1])
    assert scale.reference == pytest.approx([0.1 - MARGIN * 0.8, 0.0 - MARGIN * 2.0])
    assert scale.span == pytest.approx([0.8, 2.0])


def test_a_reference_is_told_in_the_objectives_own_unit_and_direction():
    points = [[-0.5, 1.0], [-0.9, 100.0]]
    scale = scale_of(points, sign=[-1.0, 1.0], reference=[2.0, 0.1], log=[1])
    assert scale.reference == pytest.approx([-2.0, -1.0])


def test_points_that_are_all_the_same_have_a_span_above_zero():
    scale = scale_of([[0.5, 7.0]] * 3)
    assert (scale.span > 0).all()
    assert (scale.reference < scale.transform(np.array([[0.5, 7.0]]))[0]).all()


@pytest.mark.parametrize(
    ("values", "sign", "ideal"),
    [
        ([0.0, 0.8], 1.0, 1.0),  # a quarter of the span beyond the best
        ([0.0, 80.0], 1.0, 100.0),
        ([-3.0, -1.0], 1.0, -0.5),
        ([-2.0, -0.1], -1.0, 0.375),  # a loss, to be minimised
    ],
)
def test_the_ideal_is_guessed_from_what_was_seen(values, sign, ideal):
    scale = scale_of([[value, 1.0] for value in values], sign=[sign, 1.0])
    assert scale.ideal == pytest.approx(ideal)


def test_an_ideal_is_told_in_the_objectives_own_unit_and_direction():
    assert scale_of([[0.2, 1.0]], ideal=0.95).ideal == 0.95
    assert scale_of([[-0.2, 1.0]], sign=[-1.0, 1.0], ideal=0.05).ideal == -0.05


def test_the_observed_objective_may_be_any():
    scale = scale_of([[100.0, 0.2], [1.0, 0.9]], observed=1, log=[0])
    assert (scale.log.tolist(), scale.ideal) == ([True, False], pytest.approx(0.9 + 0.7 / 4))


@given(st.floats(-100.0, 0.99), st.floats(0.0, 5.0))
def test_values_undo_errors(value, lowest):
    scale = scale_of([[-100.0, 1.0], [0.99, 2.0]], lowest=-lowest, ideal=1.0)
    assert scale.values(scale.errors(np.array(value))) == pytest.approx(min(value, 1 - LEAST_ERROR * scale.unit))


def test_an_error_has_a_floor_and_so_a_logarithm():
    scale = scale_of([[0.0, 1.0], [1.0, 2.0]], ideal=1.0)
    errors = scale.errors(np.array([0.0, 0.5, 1.0, 1.5]))
    assert np.isfinite(errors).all()
    assert errors[2] == errors[3] == pytest.approx(np.log(LEAST_ERROR * scale.unit))
    assert (np.diff(errors)[:2] < 0).all()


def test_errors_of_an_observed_objective_on_a_log_scale_tell_good_from_bad():
    scale = scale_of([[-0.001, 1.0], [-1.0, 2.0]], sign=[-1.0, 1.0], log=[0], ideal=0.0)  # losses
    good, bad = scale.errors(np.array([-0.001, -1.0]))
    assert bad - good > np.log(10)


def test_points_are_not_changed_in_place():
    points = np.array([[0.5, 1.0], [0.9, 100.0]])
    scale_of(points).transform(points)
    assert points.tolist() == [[0.5, 1.0], [0.9, 100.0]]
