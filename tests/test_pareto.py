from __future__ import annotations

import math

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsearch.pareto import dominates, front, gains, gains_along, hypervolume, members, study_hypervolume, volume

NAN = math.nan
few = st.integers(0, 4).map(float)  # ties and duplicates are frequent
point3 = st.tuples(few, few, few)
with_nan = st.tuples(few | st.just(NAN), few | st.just(NAN))
number = st.floats(-5, 5, allow_subnormal=False) | few
points2 = st.lists(st.tuples(number, number), max_size=12)


def test_better_in_one_and_no_worse_in_any_dominates():
    assert dominates((1, 2), (1, 1))
    assert not dominates((1, 1), (1, 2))
    assert not dominates((2, 0), (0, 2))
    assert not dominates((1, 1), (1, 1))


@given(with_nan, with_nan)
def test_dominance_is_irreflexive_and_asymmetric(a, b):
    assert not dominates(a, a)
    assert not (dominates(a, b) and dominates(b, a))


@given(point3, point3, point3)
def test_dominance_is_transitive(a, b, c):
    if dominates(a, b) and dominates(b, c):
        assert dominates(a, c)


def test_a_point_with_nan_is_dominated_by_any_without_and_dominates_none():
    assert dominates((0, 0), (9, NAN))
    assert not dominates((9, NAN), (0, 0))
    assert not dominates((9, NAN), (0, NAN))


def test_points_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="equal length"):
        dominates((1, 2), (1, 2, 3))


@given(st.lists(point3, max_size=12))
def test_the_front_is_undominated_and_dominates_the_rest(points):
    kept = front(points)
    assert kept == sorted(set(kept))
    for index, point in enumerate(points):
        beaten = [i for i in kept if dominates(points[i], point)]
        assert bool(beaten) == (index not in kept)


@given(st.lists(with_nan, max_size=8))
def test_a_point_with_nan_is_never_on_the_front(points):
    assert not any(math.isnan(value) for i in front(points) for value in points[i])


@given(st.lists(point3, min_size=1, max_size=12))
def test_the_front_is_moocores(points):
    kept = moocore.is_nondominated(np.array(points), maximise=True, keep_weakly=True)
    assert front(points) == [*np.flatnonzero(kept)]


def test_equal_points_are_all_on_the_front():
    assert front([(1, 1), (1, 1), (0, 1)]) == [0, 1]
    assert front([]) == []


@given(points2.filter(len), st.tuples(number, number))
def test_hypervolume_is_moocores(points, reference):
    expected = moocore.hypervolume(np.array(points), ref=np.array(reference), maximise=True)
    assert hypervolume(points, reference) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(points2, st.tuples(number, number))
def test_hypervolume_never_falls_when_a_point_is_added(points, extra):
    assert hypervolume([*points, extra], (-1, -1)) >= hypervolume(points, (-1, -1)) - 1e-9


@given(points2, st.randoms(use_true_random=False))
def test_hypervolume_knows_neither_order_nor_duplicates(points, random):
    shuffled = points + points[:3]
    random.shuffle(shuffled)
    assert hypervolume(shuffled, (-2, -2)) == pytest.approx(hypervolume(points, (-2, -2)), rel=1e-12)


@given(points2)
def test_dominated_points_add_no_hypervolume(points):
    kept = [points[i] for i in front(points)]
    assert hypervolume(kept, (-2, -2)) == pytest.approx(hypervolume(points, (-2, -2)), rel=1e-12)


@pytest.mark.parametrize("worthless", [(NAN, 3), (3, NAN), (1, 9), (9, 1), (0, 0)])
def test_points_with_nan_or_not_beyond_the_reference_add_nothing(worthless):
    assert hypervolume([worthless], (1, 1)) == 0
    assert hypervolume([worthless, (2, 3)], (1, 1)) == 2


def test_a_studys_hypervolume_is_over_log_errors_and_log_ratio_from_its_floor():
    # errors of 50 % at the floor, of 5 % and 0.5 %: one decade and two, ratios of two decades and one
    assert study_hypervolume([(0.95, 100.0)], 0.5) == pytest.approx(1 * 2)
    assert study_hypervolume([(0.95, 100.0), (0.995, 10.0)], 0.5) == pytest.approx(1 * 2 + 1 * 1)
    assert study_hypervolume([(0.5, 100.0), (0.4, 1e6), (0.9, 1.0), (0.9, 0.5), (0.9, 0.0)], 0.5) == 0
    assert study_hypervolume([(1.0, 10.0)], 0.9) == pytest.approx(3)  # no error counts as one in 10,000
    assert study_hypervolume([], 0.5) == 0


@given(st.floats(0.0, 0.9), st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 1e4)), max_size=8))
def test_what_lies_below_the_floor_adds_nothing(floor, points):
    above = [(accuracy, ratio) for accuracy, ratio in points if accuracy > floor]
    assert study_hypervolume(points, floor) == study_hypervolume(above, floor)


def matrix(rows, dimensions=2):
    return np.array(rows, dtype=np.float64).reshape(-1, dimensions)


@st.composite
def clouds(draw, low=2, high=4):
    """Points and a reference in some number of dimensions; ties, duplicates and points beyond it are frequent."""
    size = draw(st.integers(low, high))
    row = st.lists(few | st.floats(-1, 5, allow_subnormal=False), min_size=size, max_size=size)
    return matrix(draw(st.lists(row, max_size=8)), size), np.array(draw(row)) / 2


@given(clouds(low=1))
def test_members_are_the_front_with_the_first_of_equal_points(cloud):
    points, _ = cloud
    on_front = front(points.tolist())
    first = [i for i in on_front if not any((points[i] == points[j]).all() for j in on_front if j < i)]
    assert members(points).tolist() == first


def test_no_points_have_no_members_and_no_volume():
    for size in (2, 3):
        assert members(np.zeros((0, size))).tolist() == []
        assert volume(np.zeros((0, size)), np.zeros(size)) == 0
        assert gains(np.zeros((0, size)), np.zeros((0, size)), np.zeros(size)).shape == (0,)


@given(clouds())
def test_volume_is_moocores(cloud):
    points, reference = cloud
    if len(points):
        expected = moocore.hypervolume(-points, ref=-reference)
        assert volume(points, reference) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(points2, st.tuples(number, number))
def test_volume_of_two_objectives_is_the_hypervolume(points, reference):
    assert volume(matrix(points), np.array(reference)) == hypervolume(points, reference)


def test_volume_of_one_objective_is_a_length():
    assert volume(np.array([[1.0], [3.0], [-2.0]]), np.array([0.5])) == 2.5
    assert volume(np.array([[-2.0]]), np.array([0.5])) == 0


@given(clouds(high=3), st.integers(0, 4))
def test_gains_are_differences_of_hypervolume(cloud, held_back):
    points, reference = cloud
    candidates, rest = points[:held_back], points[held_back:]
    on_front = rest[members(rest)]
    before = volume(on_front, reference)
    expected = [volume(np.vstack([on_front, point]), reference) - before for point in candidates]
    found = gains(on_front, candidates, reference)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert (found >= 0).all()


@pytest.mark.parametrize("size", [2, 3])
def test_what_is_dominated_or_equal_gains_nothing_at_all(size):
    generator = np.random.default_rng(0)  # a gain of 1e-17 would be one
    for _ in range(200):
        points = generator.random((5, size))
        on_front = points[members(points)]
        worse = np.minimum(on_front, on_front.mean(axis=0))
        assert (gains(on_front, np.vstack([points, worse]), np.full(size, -0.1)) == 0).all()


@given(clouds(), st.data())
def test_gains_along_an_axis_are_those_of_each_value(cloud, data):
    points, reference = cloud
    size = len(reference)
    axis = data.draw(st.integers(0, size - 1))
    point = np.array(data.draw(st.lists(few, min_size=size, max_size=size)), dtype=np.float64)
    values = np.array(data.draw(st.lists(few | st.floats(-1, 6, allow_subnormal=False), max_size=6)), dtype=np.float64)
    on_front = points[members(points)]
    each = np.tile(point, (len(values), 1))
    each[:, axis] = values
    found = gains_along(on_front, point, axis, values, reference)
    assert found == pytest.approx(gains(on_front, each, reference), rel=1e-9, abs=1e-9)
    assert (found >= 0).all()
