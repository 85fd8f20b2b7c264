from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from kdsearch.pruning import forecast
from kdsearch.pruning.history import History
from kdsearch.pruning.scale import make_scale
from kdsearch.records import Attr

MAX2 = ["maximize", "maximize"]
PRUNED, RUNNING = TrialState.PRUNED, TrialState.RUNNING


def power_law(error, exponent, steps):
    """Accuracies whose error falls as a power of the step."""
    return [1 - error * step**-exponent for step in steps]


def history_of(*trials, steps=range(1, 100), state=RUNNING):
    """Of (accuracies, ratio) pairs; the last one is asked about."""
    study = optuna.create_study(directions=MAX2)
    for accuracies, ratio in trials:
        curve = {str(steps[0] - 1): [None, ratio]}
        curve |= {str(step): [a, ratio] for step, a in zip(steps, accuracies, strict=False)}
        values = [accuracies[-1], ratio] if state == TrialState.COMPLETE else None
        study.add_trial(create_trial(state=state, values=values, user_attrs={Attr.CURVE: curve}))
    history = History()
    history.update(study, len(trials) - 1)
    return history


def scale_of(history, **options):
    others = history.curves()
    points = np.vstack([others.points, forecast.own_point(history)])
    lowest = min(np.nanmin(others.best), history.own.best[0])
    return make_scale(points, history.sign, history.observed, lowest=lowest, **options)


class Hope:
    """A forecast at one level of optimism."""

    def __init__(self, found, optimism):
        self.steps, self.values = found.steps, found.quantile(optimism)


def hope_of(history, last_step, *, optimism=0.9, neighbours=10, **options):
    found = forecast.forecast(history, scale_of(history, **options), last_step=last_step, neighbours=neighbours)
    return None if found is None else Hope(found, optimism)


@pytest.mark.parametrize(("steps", "expected"), [([1, 2, 4], [1, 2, 4]), ([0, 1, 3], [1, 2, 4]), ([5, 10], [5, 10])])
def test_steps_are_counted_from_one(steps, expected):
    assert np.exp(forecast.log_steps(np.array(steps), np.array(steps))) == pytest.approx(expected)


@given(st.floats(0.01, 1.0), st.floats(0.0, 2.0), st.integers(2, 8))
def test_a_power_law_goes_on_as_it_is(error, exponent, seen):
    clock = np.log(np.arange(1.0, 31.0))
    errors = np.log(error) - exponent * clock
    assert forecast.extended(errors[:seen], clock[:seen], clock) == pytest.approx(errors, abs=1e-9)


def test_a_curve_goes_on_as_its_second_half():
    clock = np.arange(6.0)
    errors = np.array([9.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    assert forecast.extended(errors, clock, np.array([0.5, 5.0, 7.0])).tolist() == [6.5, 0.0, -2.0]


def test_one_checkpoint_is_a_flat_curve():
    assert forecast.extended(np.array([-1.0]), np.array([0.0]), np.array([0.0, 1.0, 2.0])).tolist() == [-1.0] * 3


amplitudes = st.lists(st.floats(0.05, 0.9), min_size=2, max_size=5)


@given(amplitudes, st.floats(0.1, 0.9), st.floats(0.1, 1.5), st.integers(1, 7))
def test_among_power_laws_of_one_exponent_the_middle_case_is_exact(others, own, exponent, seen):
    whole = range(1, 9)
    trials = [(power_law(error, exponent, whole), 1.0 + i) for i, error in enumerate(others)]
    trials.append((power_law(own, exponent, whole)[:seen], 3.0))
    hope = hope_of(history_of(*trials), 8, optimism=0.5, ideal=1.0)
    assert hope is not None
    assert hope.steps.tolist() == list(whole)[seen:]
    assert hope.values == pytest.approx(power_law(own, exponent, whole)[seen:])


@given(amplitudes, st.floats(0.1, 0.9), st.floats(0.1, 1.5), st.integers(2, 7))
def test_neighbours_that_ended_early_are_carried_on(others, own, exponent, seen):
    trials = [(power_law(error, exponent, range(1, 5)), 1.0) for error in others]
    trials.append((power_law(own, exponent, range(1, 4)), 3.0))
    hope = hope_of(history_of(*trials), 20, optimism=0.5, ideal=1.0)
    assert hope is not None
    assert hope.steps.tolist() == [4, 20]  # the steps that someone reported, and its own last
    assert hope.values == pytest.approx(power_law(own, exponent, [4, 20]))


def test_a_trial_is_credited_with_the_progress_of_the_luckier():
    slow, quick = (power_law(0.5, 0.2, range(1, 9)), 1.0), (power_law(0.5, 1.0, range(1, 9)), 1.0)
    history = history_of(slow, quick, ([0.5], 1.0))
    timid, middling, bold = (hope_of(history, 8, optimism=optimism, ideal=1.0) for optimism in (0.0, 0.5, 1.0))
    assert (timid.values < slow[0][1:]).all()  # two trials leave it open whether a third is quicker or slower still
    assert (bold.values > quick[0][1:]).all()
    assert (timid.values < middling.values).all()
    assert (middling.values < bold.values).all()


def test_the_more_trials_are_known_the_less_is_left_open():
    curve = power_law(0.5, 0.5, range(1, 9)), 1.0
    widths = []
    for count in (2, 4, 16):
        history = history_of(*[curve] * count, ([0.5], 1.0))
        low, high = (hope_of(history, 8, optimism=optimism, ideal=1.0).values[-1] for optimism in (0.0, 1.0))
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2] > 0


def wider_learns_faster(*widths, own):
    """Whole trials whose exponent grows with a parameter, and one whose first checkpoint is like all others'."""
    study = optuna.create_study(directions=MAX2)
    space = {"width": FloatDistribution(0.0, 1.0)}
    for width in widths:
        curve = {"0": [None, 1.0]} | {str(n): [1 - 0.5 * n**-width, 1.0] for n in range(1, 9)}
        attrs = {Attr.CURVE: curve}
        study.add_trial(
            create_trial(values=[curve["8"][0], 1.0], params={"width": width}, distributions=space, user_attrs=attrs)
        )
    attrs = {Attr.CURVE: {"0": [None, 1.0], "1": [0.5, 1.0]}}
    study.add_trial(create_trial(state=RUNNING, params={"width": own}, distributions=space, user_attrs=attrs))
    history = History()
    history.update(study, len(widths))
    return history


def test_what_no_trial_reached_is_forecast_where_the_trend_leads():
    history = wider_learns_faster(0.1, 0.2, 0.3, 0.4, 0.5, own=0.9)
    middling = hope_of(history, 8, optimism=0.5, ideal=1.0)
    assert 1 - 0.5 * 8**-0.55 < middling.values[-1] < 1 - 0.5 * 8**-0.9  # the best of them reached 1 - 0.5 * 8**-0.5


def test_two_whole_trials_make_no_trend():
    history = wider_learns_faster(0.1, 0.5, own=0.9)
    assert hope_of(history, 8, optimism=0.5, ideal=1.0).values[-1] <= 1 - 0.5 * 8**-0.5


def test_trials_shorter_than_the_present_step_make_no_trend():
    whole = ([0.5, 0.6, 0.7], 1.0)
    history = history_of(whole, whole, whole, ([0.5, 0.6], 1.0), state=TrialState.COMPLETE)
    assert hope_of(history, 2) is None
    assert hope_of(history, 9, ideal=1.0).steps.tolist() == [3, 9]


def test_a_curve_that_has_levelled_out_stays_exactly_where_it_is():
    flat = [([value] * 5, 1.0) for value in (0.3, 0.6, 0.9)]
    for value in np.linspace(0.05, 0.95, 19):
        hope = hope_of(history_of(*flat, ([value] * 2, 1.0)), 5)
        assert hope.values.tolist() == [value] * 3  # to the last bit: more would be taken for a gain


def test_a_value_near_the_ideal_or_beyond_is_never_forecast_to_fall():
    others = [(power_law(0.5, 0.5, range(1, 6)), 1.0)] * 2
    for value in (0.99999, 1.0, 1.5):
        assert (hope_of(history_of(*others, ([value] * 2, 1.0)), 5, ideal=1.0).values >= value).all()


def test_nothing_is_forecast_from_fewer_than_two_that_went_further():
    long, short = ([0.5, 0.6, 0.7], 1.0), ([0.5], 1.0)
    assert hope_of(history_of(long, short, short, ([0.4], 1.0)), 3) is None
    assert hope_of(history_of(long, long, short, ([0.4], 1.0)), 3) is not None


def test_nothing_is_forecast_at_or_beyond_a_trials_end():
    long = ([0.5, 0.6, 0.7, 0.8], 1.0)
    history = history_of(long, long, ([0.4, 0.5], 1.0))
    assert hope_of(history, 1) is None
    assert hope_of(history, 2) is None
    assert hope_of(history, 3).steps.tolist() == [3]
    assert hope_of(history, 4).steps.tolist() == [3, 4]


def chosen(history, count, features=()):
    column = int(np.searchsorted(history.grid, history.own.steps[-1]))
    found = forecast.distances(
        history.curves(),
        scale_of(history),
        forecast.own_point(history),
        np.array(features, dtype=np.float64),
        column,
    )
    return np.argsort(found, kind="stable")[:count].tolist()


def test_neighbours_are_near_in_the_known_objective():
    history = history_of(([0.5, 0.6], 1.0), ([0.5, 0.6], 9.0), ([0.5, 0.6], 5.0), ([0.5], 4.5))
    assert chosen(history, 3) == [2, 0, 1]
    assert chosen(history, 1) == [2]
    assert len(chosen(history, 99)) == 3


def test_neighbours_are_near_in_error_at_the_same_step():
    history = history_of(([0.1, 0.9], 1.0), ([0.8, 0.81], 1.0), ([0.6, 0.95], 1.0), ([0.5], 1.0))
    assert chosen(history, 3) == [2, 0, 1]  # log errors 0.4, 0.9 and 0.2 after the first step; that of 0.5 is 0.5


def test_neighbours_are_near_in_parameters():
    study = optuna.create_study(directions=MAX2)
    unit = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
    for x, accuracies in ((0.0, [0.5, 0.6]), (1.0, [0.5, 0.6]), (0.6, [0.5, 0.6]), (0.7, [0.5])):
        curve = {str(step): [a, 2.0] for step, a in enumerate(accuracies, 1)}
        study.add_trial(create_trial(state=RUNNING, params={"x": x}, distributions=unit, user_attrs={"curve": curve}))
    history = History()
    history.update(study, 3)
    assert chosen(history, 3, [0.7]) == [2, 1, 0]


def test_the_pace_is_the_hypervolume_that_recent_trials_added_a_step():
    old = [([0.2, 0.5], 2.0), ([0.4], 3.0)]  # the third from last and before
    recent = [([0.1], 1.0)] * 7 + [([0.3, 0.5, 0.6], 3.0)]  # eight: the last one alone adds
    history = history_of(*old, *recent, ([0.1], 1.0), state=PRUNED)
    scale = scale_of(history, reference=[0.0, 0.0], log=[])
    before = 2.0 * 0.5 + (3.0 - 2.0) * 0.4
    now = 3.0 * 0.6
    assert forecast.pace(history, scale) == pytest.approx((now - before) / (7 * 1 + 3))


def test_the_recent_trials_are_a_third_of_the_ended_where_there_are_many():
    idle = [([0.1], 1.0)]
    history = history_of(*idle * 26, ([0.5, 0.5], 2.0), *idle * 9, ([0.1], 1.0), state=PRUNED)  # 36: 12 are recent
    scale = scale_of(history, reference=[0.0, 0.0], log=[])
    assert forecast.pace(history, scale) == pytest.approx((2.0 * 0.5 - 0.1) / 13)


def test_there_is_no_pace_before_three_trials_ended():
    one = ([0.5, 0.6], 2.0)
    for count, expected in ((0, 0.0), (2, 0.0), (3, 0.6 * 2.0 / 6)):
        history = history_of(*[one] * count, one, state=PRUNED)
        scale = make_scale(np.array([[0.6, 2.0]]), np.ones(2), 0, lowest=0.5, reference=[0.0, 0.0], log=[])
        assert forecast.pace(history, scale) == pytest.approx(expected)


@given(st.lists(st.tuples(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=4), st.floats(1.0, 50.0)), min_size=2))
def test_the_pace_is_never_negative(trials):
    history = history_of(*trials, state=PRUNED)
    assert forecast.pace(history, scale_of(history)) >= -1e-12
    assert math.isfinite(forecast.pace(history, scale_of(history)))


def test_the_pace_does_not_depend_on_whether_steps_are_counted_from_zero_or_one():
    trials = [([0.2, 0.5], 2.0), ([0.4], 3.0), ([0.1, 0.3, 0.6], 1.0), ([0.1], 1.0)]
    one, zero = (history_of(*trials, steps=range(first, 9), state=PRUNED) for first in (1, 0))
    assert forecast.pace(zero, scale_of(zero)) == pytest.approx(forecast.pace(one, scale_of(one)))


@pytest.mark.parametrize("first", [0, 1])
def test_the_demanded_share_of_the_pace_falls_while_the_first_ten_whole_trials_are_spent(first):
    for count, expected in ((1, 0.9), (5, 0.5), (9, 0.1), (20, 0.1)):
        history = history_of(*[([0.2, 0.4, 0.6], 2.0)] * count, ([0.1], 1.0), steps=range(first, 9), state=PRUNED)
        assert forecast.demanded(history, 0.1) == pytest.approx(expected), count
        assert forecast.demanded(history, 2.0) == 2.0
        assert forecast.demanded(history, 0.0) == 0.0  # any gain is enough


def test_the_demanded_share_counts_whole_trials_of_mean_length():
    long, short, ended = [0.2] * 8, [0.2] * 2, ([0.2], 1.0)
    history = history_of(*[(long, 2.0), (short, 2.0)] * 2, ended, state=TrialState.COMPLETE)  # whole: 20 steps
    assert forecast.demanded(history, 0.1) == pytest.approx(1 - (20 / 5) / 10)


def test_a_study_stands_still_where_recent_trials_gained_next_to_nothing():
    start, idle = [([0.2, 0.4, 0.5, 0.6], 2.0)] * 3, ([0.1, 0.2], 1.0)
    for last, expected in ((0.5, True), (0.605, True), (0.63, False), (0.9, False)):
        history = history_of(*start, *[idle] * 7, ([last], 2.0), idle, state=PRUNED)
        assert forecast.stands_still(history, scale_of(history)) == expected, last


def test_a_study_does_not_stand_still_before_eight_trials_ended():
    for count, expected in ((0, False), (7, False), (17, True)):
        history = history_of(*[([0.5, 0.6], 2.0)] * count, ([0.5, 0.6], 2.0), state=PRUNED)
        scale = make_scale(np.array([[0.6, 2.0]]), np.ones(2), 0, lowest=0.5)
        assert forecast.stands_still(history, scale) == expected, count


def test_quantiles_are_weighted():
    found = forecast.Forecast(np.array([9]), np.array([[0.0], [1.0], [2.0]]), np.array([0.25, 0.5, 0.25]))
    assert [found.quantile(level)[0] for level in (0.0, 0.5, 1.0)] == [0.0, 1.0, 2.0]
    heavy = forecast.Forecast(found.steps, found.values, np.array([0.1, 0.1, 0.8]))
    assert heavy.quantile(0.5)[0] > 1.0


def audited_study(finals, would_end=2):
    """Trials ended after two steps, and audited ones that came to some final value."""
    study = optuna.create_study(directions=MAX2)
    known = {"0": [None, 10.0], "1": [0.3, 10.0], "2": [0.4, 10.0]}
    for _ in range(12):
        study.add_trial(create_trial(state=PRUNED, user_attrs={Attr.CURVE: known}))
    for final in finals:
        attrs = {Attr.CURVE: known | {"3": [final, 10.0]}, Attr.AUDIT: {"would_end": would_end}}
        study.add_trial(create_trial(values=[final, 10.0], user_attrs=attrs))
    study.add_trial(create_trial(state=RUNNING, user_attrs={Attr.CURVE: {"0": [None, 10.0], "1": [0.3, 10.0]}}))
    history = History()
    history.update(study, len(study.trials) - 1)
    return history


def test_an_audited_trial_stands_for_those_that_were_ended():
    assert forecast.stand_in(audited_study([0.4, 0.4, 0.4]).ended) == 1 + 12 / 3
    assert forecast.stand_in(audited_study([]).ended) == 1
    assert forecast.stand_in(audited_study([0.4], would_end=None).ended) == 1


def test_mistakes_are_audited_trials_that_gained_after_they_would_have_been_ended():
    for finals, expected in (([0.4, 0.4, 0.4], 0.0), ([0.4, 0.4, 0.9], 1 / 4), ([], 0.0)):
        history = audited_study(finals)
        assert forecast.mistaken(history, scale_of(history), 1e-6) == pytest.approx(expected)
    assert forecast.mistaken(history := audited_study([0.9]), scale_of(history), 1e6) == 0
