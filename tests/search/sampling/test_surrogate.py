from __future__ import annotations

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import create_trial

from kdsearch.records import Attr
from kdsearch.search.sampling import surrogate
from kdsearch.search.sampling.surrogate import GaussianProcess, LikelyRatio, interpolated
from kdsearch.search.workshop import Workshop

ratios = st.floats(0.1, 1000.0)
pairs = st.dictionaries(ratios, ratios, min_size=1, max_size=6)


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


def config(width, **options):
    return {"width": width, "loss_weight": 0.5, "temperature": 4.0, "epochs": 2, "batch_size": 32, **options}


def study_of(*timed):
    """Of (configuration, ratio) pairs."""
    study = optuna.create_study(directions=["maximize"] * 2)
    for found, ratio in timed:
        attrs = {Attr.CONFIG: found, **({} if ratio is None else {Attr.RATIO: ratio})}
        study.add_trial(create_trial(values=[0.5, 1.0], user_attrs=attrs))
    return study


def true_ratio(workshop: Workshop, width: int) -> float:
    return workshop.measure(workshop.build(config(width), 0)).ratio


@given(pairs)
def test_known_points_are_met(known):
    for counted, ratio in known.items():
        assert interpolated(counted, known) == pytest.approx(ratio)


@given(st.lists(ratios, min_size=2, max_size=6, unique=True), st.lists(ratios, min_size=6, max_size=6), ratios, ratios)
def test_of_two_students_that_with_fewer_operations_is_no_slower(counts, values, one, other):
    known = dict(zip(sorted(counts), sorted(values), strict=False))
    less, more = sorted((one, other))
    assert interpolated(less, known) <= interpolated(more, known) * (1 + 1e-9)


@given(pairs, ratios)
def test_between_two_known_points_a_ratio_lies_between_theirs(known, counted):
    below, above = [c for c in known if c <= counted], [c for c in known if c >= counted]
    if below and above:
        ends = known[max(below)], known[min(above)]
        assert min(ends) * (1 - 1e-9) <= interpolated(counted, known) <= max(ends) * (1 + 1e-9)


def test_the_scales_are_logarithmic():
    assert interpolated(10.0, {1.0: 2.0, 100.0: 50.0}) == pytest.approx(10.0)


def test_one_known_point_scales_the_counted_ratio():
    assert interpolated(10.0, {4.0: 2.0}) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("counted", "known", "expected"),
    [
        (1000.0, {1.0: 1.0, 100.0: 10.0}, 10**1.5),  # as between the last two
        (0.01, {1.0: 1.0, 100.0: 10.0}, 0.1),
        (1000.0, {1.0: 1.0, 10.0: 1.0, 100.0: 100.0}, 1000.0),  # at most in proportion to operations
        (1000.0, {1.0: 5.0, 100.0: 4.0}, 4.0),  # fewer operations never make it slower
    ],
)
def test_beyond_the_known_points_ratios_go_on_as_between_the_last_two(counted, known, expected):
    assert interpolated(counted, known) == pytest.approx(expected)


def test_an_architecture_is_counted_once_a_process(workshop: Workshop, monkeypatch: pytest.MonkeyPatch):
    counted: list[int] = []
    plain = surrogate.flops.count

    def count(network, image):
        counted.append(1)
        return plain(network, image)

    surrogate._operations.cache_clear()
    monkeypatch.setattr(surrogate.flops, "count", count)
    first, second = LikelyRatio(workshop), LikelyRatio(workshop)
    counted.clear()  # of the teacher
    several = [config(50), config(50, epochs=1), config(50, temperature=2.0), config(75)]
    assert [first.counted(each) for each in several] == [second.counted(each) for each in several]
    assert len(counted) == 2
    assert first.counted(config(50)) == pytest.approx(true_ratio(workshop, 50))


def test_before_anything_was_timed_there_is_no_guess(workshop: Workshop):
    likely = LikelyRatio(workshop)
    assert likely(study_of(), [config(50)]) == [None]
    assert likely(study_of((config(50), None)), [config(50)]) == [None]


def test_an_architecture_that_was_timed_has_its_ratio(workshop: Workshop):
    study = study_of((config(20), 9.0), (config(50), 3.25), (config(100), 1.5))
    assert LikelyRatio(workshop)(study, [config(50, epochs=9, loss_weight=1.0)]) == [(3.25,)]


def test_counted_operations_need_no_weights_and_are_those_of_the_student(workshop: Workshop):
    likely = LikelyRatio(workshop)
    for width in (10, 50):
        assert likely.counted(config(width)) == true_ratio(workshop, width)
    assert likely.counted(config(10)) > likely.counted(config(50))


@pytest.mark.parametrize("timed", [(40,), (20, 80), (80, 20, 45)])
def test_where_the_ratio_is_counted_the_guess_is_exact(workshop: Workshop, timed):
    likely = LikelyRatio(workshop)
    study = study_of(*((config(width), true_ratio(workshop, width)) for width in timed))
    for width in (5, 30, 60, 200):
        found = likely(study, [config(width)])[0]
        assert found is not None
        np.testing.assert_allclose(found, (true_ratio(workshop, width),))


def test_a_guess_learns_from_each_timing(workshop: Workshop):
    likely, study = LikelyRatio(workshop), study_of((config(20), 8.0))
    before = likely(study, [config(50)])[0]
    study.add_trial(create_trial(values=[0.5, 1.0], user_attrs={Attr.CONFIG: config(60), Attr.RATIO: 7.9}))
    after = likely(study, [config(50)])[0]
    assert before is not None
    assert after is not None
    assert before[0] < 7.9 < after[0] < 8.0


@pytest.mark.parametrize("stages", [(10, 20, 30), (27, 30)])
def test_what_the_regression_no_longer_uses_still_decides_the_lengths(stages):
    inputs, unseen = sample(30), sample(20, seed=1)
    targets = smooth(inputs) + np.random.default_rng(0).normal(size=30) * 0.3
    model, once = GaussianProcess(), GaussianProcess()
    for count in stages:
        model.fit(inputs[:count], targets[:count], np.arange(count) >= count - 8)
    once.fit(inputs, targets, np.arange(30) >= 22)
    for one, other in zip(model.predict(unseen), once.predict(unseen), strict=True):
        assert one.tolist() == other.tolist()
