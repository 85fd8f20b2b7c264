from __future__ import annotations

import numpy as np
import pytest

from kdsearch.search.sampling.surrogate import GaussianProcess


def smooth(inputs):
    return np.sin(3 * inputs[:, 0]) + inputs[:, 1] ** 2 - 2 * inputs[:, 0]


def sample(count, columns=2, seed=0):
    return np.random.default_rng(seed).random((count, columns))


def fitted(inputs, targets):
    model = GaussianProcess()
    model.fit(inputs, targets)
    return model


def test_a_smooth_function_is_learnt():
    model = fitted(sample(40), smooth(sample(40)))
    unseen = sample(200, seed=1)
    mean, deviation = model.predict(unseen)
    wrong = np.abs(mean - smooth(unseen))
    assert np.sqrt((wrong**2).mean()) < 0.05 * smooth(unseen).std()
    assert (deviation < 0.5 * smooth(unseen).std()).all()


def test_what_was_seen_is_remembered():
    inputs = sample(30)
    mean, _ = fitted(inputs, smooth(inputs)).predict(inputs)
    assert mean == pytest.approx(smooth(inputs), abs=0.05)


def test_noise_is_not_learnt_by_heart():
    inputs, noise = sample(60), np.random.default_rng(2).normal(size=60)
    mean, _ = fitted(inputs, smooth(inputs) + noise).predict(inputs)
    assert np.abs(mean - smooth(inputs)).mean() < 0.7 * np.abs(noise).mean()


def test_uncertainty_grows_away_from_what_was_seen():
    inputs = sample(30) * 0.4
    _, deviation = fitted(inputs, smooth(inputs)).predict(np.array([[0.2, 0.2], [0.6, 0.6], [1.0, 1.0], [2.0, 2.0]]))
    assert (np.diff(deviation) > 0).all()
    assert deviation[0] > 0


def test_shift_and_unit_of_the_targets_pass_through():
    inputs, unseen = sample(20), sample(10, seed=1)
    mean, deviation = fitted(inputs, smooth(inputs)).predict(unseen)
    other_mean, other_deviation = fitted(inputs, 100 * smooth(inputs) - 7).predict(unseen)
    assert other_mean == pytest.approx(100 * mean - 7)
    assert other_deviation == pytest.approx(100 * deviation)


@pytest.mark.parametrize("stages", [(10, 20, 30), range(5, 31), (27, 30)])
def test_refitted_all_along_it_is_the_same_as_fitted_once(stages):
    unseen = sample(20, seed=1)
    for seed in range(10):
        generator = np.random.default_rng(seed)
        inputs = generator.random((30, 2))
        targets = np.sin(3 * inputs[:, 0]) + generator.normal(size=30) * generator.choice([0.1, 0.5])
        targets[28:] += 30  # after length and noise were last chosen anew
        model = GaussianProcess()
        for count in stages:
            model.fit(inputs[:count], targets[:count])
        for one, other in zip(model.predict(unseen), fitted(inputs, targets).predict(unseen), strict=True):
            assert one.tolist() == other.tolist()


def test_constant_targets_are_no_trouble():
    inputs = sample(12)
    mean, deviation = fitted(inputs, np.full(12, 0.3)).predict(sample(5, seed=1))
    assert mean == pytest.approx(np.full(5, 0.3))
    assert np.isfinite(deviation).all()
    assert (deviation < 1e-3).all()


def test_equal_inputs_are_no_trouble():
    inputs = np.full((12, 3), 0.5)
    mean, deviation = fitted(inputs, np.arange(12.0)).predict(inputs[:1])
    assert mean == pytest.approx([5.5], abs=0.5)
    assert np.isfinite(deviation).all()


def test_one_observation_is_enough():
    model = fitted(np.array([[0.5]]), np.array([2.0]))
    mean, deviation = model.predict(np.array([[0.5], [0.9]]))
    assert mean == pytest.approx([2.0, 2.0])
    assert np.isfinite(deviation).all()
