import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsearch.pruning.trend import differences

SEEDS = st.integers(0, 10_000)


def observed(seed, count=40, noise=0.0, columns=3):
    """Inputs from 0 to 1, the slopes of their targets, and the targets."""
    random = np.random.default_rng(seed)
    inputs, slopes = random.random((count, columns)), random.normal(size=columns)
    return inputs, slopes, 5.0 + inputs @ slopes + noise * random.normal(size=count)


@given(SEEDS)
def test_a_linear_trend_is_found(seed):
    inputs, slopes, targets = observed(seed)
    apart = np.vstack([np.eye(3), [[0.0, 0.0, 0.0]]])
    mean, deviation = differences(inputs, targets, np.ones(40), apart)
    assert mean == pytest.approx([*slopes, 0.0], abs=0.05)
    assert deviation[-1] == 0
    assert (deviation < 0.1).all()


@given(SEEDS)
def test_it_lies_within_its_deviation(seed):
    inputs, slopes, targets = observed(seed, noise=0.5)
    mean, deviation = differences(inputs, targets, np.ones(40), np.eye(3))
    assert (np.abs(mean - slopes) < 5 * deviation).all()


def test_noise_alone_is_no_trend():
    random = np.random.default_rng(0)
    inputs, targets = random.random((100, 4)), random.normal(size=100)
    mean, deviation = differences(inputs, targets, np.ones(100), np.eye(4))
    assert (np.abs(mean) < 0.5).all()
    assert (np.abs(mean) < 2 * deviation).all()


@given(SEEDS)
def test_far_inputs_leave_more_open_than_near_ones(seed):
    inputs, _, targets = observed(seed, noise=0.3)
    _, deviation = differences(inputs, targets, np.ones(40), np.array([[0.1, 0, 0], [1.0, 0, 0], [2.0, 0, 0]]))
    assert (np.diff(deviation) > 0).all()


def test_few_observations_leave_more_open_than_many():
    def left_open(count):  # the median of many problems: two points may happen to lie on one level
        deviations = [differences(*(part[:count] for part in (inputs, targets, np.ones(40))), np.eye(3))[1]
                      for inputs, _, targets in (observed(seed, noise=0.3) for seed in range(50))]  # fmt: skip
        return np.median(deviations)

    assert left_open(3) > 1.2 * left_open(10) > 1.2 * left_open(40)


@given(SEEDS, st.floats(0.1, 100.0), st.floats(-10, 10))
def test_it_depends_on_neither_origin_nor_sum_of_weights_and_scales_with_the_targets(seed, factor, moved):
    inputs, _, targets = observed(seed, count=9, noise=0.2)
    weights = np.linspace(1.0, 3.0, 9)
    before = differences(inputs, targets, weights, np.eye(3))
    after = differences(inputs + moved, factor * targets + moved, factor * weights, np.eye(3))
    assert after[0] == pytest.approx(factor * before[0], rel=1e-3, abs=1e-6 * factor)
    assert after[1] == pytest.approx(factor * before[1], rel=1e-3, abs=1e-6 * factor)


def test_what_weighs_nothing_counts_for_nothing():
    inputs, _, targets = observed(1, count=12, noise=0.2)
    targets[0] += 5.0
    without, _ = differences(inputs[1:], targets[1:], np.ones(11), np.eye(3))
    light, _ = differences(inputs, targets, np.array([1e-6] + [1.0] * 11), np.eye(3))
    heavy, _ = differences(inputs, targets, np.ones(12), np.eye(3))
    assert np.abs(light - without).max() < 0.05 < np.abs(heavy - without).max()


@pytest.mark.parametrize("targets", [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
def test_targets_that_do_not_differ_have_no_trend(targets):
    mean, deviation = differences(np.eye(3), np.array(targets), np.ones(3), np.eye(3))
    assert mean.tolist() == [0.0] * 3
    assert (deviation < 1e-5).all()
