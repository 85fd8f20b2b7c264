from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsearch.reporting.figures.layers import beside, spread

heights = st.lists(st.floats(-100, 100), max_size=12)


@given(heights, st.floats(0.1, 5))
def test_spread_keeps_the_order_and_the_gap(values: list[float], gap: float):
    places = spread(values, gap)
    order = sorted(range(len(values)), key=lambda i: values[i])
    steps = [places[b] - places[a] for a, b in pairwise(order)]
    assert all(step >= gap - 1e-6 for step in steps)


def test_spread_leaves_what_is_far_apart_and_centres_what_is_not():
    assert spread([5.0, 1.0, 9.0], 1.0) == [5.0, 1.0, 9.0]
    assert spread([2.0, 2.0, 2.0], 1.0) == [1.0, 2.0, 3.0]
    assert spread([0.0, 0.0, 10.0], 2.0) == [-1.0, 1.0, 10.0]


def test_a_crowd_gets_one_column_and_a_loner_none():
    places = beside([(1.0, 5.0), (1.02, 5.1), (1.01, 4.9), (3.0, 7.0)], near=0.05, gap=1.0, reach=0.3)
    assert [place.x for place in places[:3]] == pytest.approx([1.32] * 3)
    assert [place.y for place in places[:3]] == pytest.approx([5.0, 6.0, 4.0])
    assert [place.crowded for place in places] == [True, True, True, False]
    assert places[3].y == 7.0


def test_negative_reach_puts_the_column_to_the_left():
    places = beside([(1.0, 5.0), (1.02, 5.1)], near=0.05, gap=1.0, reach=-0.3)
    assert [place.x for place in places] == pytest.approx([0.7, 0.7])
